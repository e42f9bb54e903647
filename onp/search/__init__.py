"""Which units to prune: node features, environment, first-order search; neuron graph, GNN policy and PPO agent; baselines.

Entry points: `setup.build_env` makes a search problem, `mask_search.search_mask` solves it.
May import `onp.data`, `onp.model`, `onp.engine` and `onp.detect`.
"""
