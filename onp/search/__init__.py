"""Which units to prune: neuron graph, node features, GNN policy, environment, PPO agent, simpler searches.

Entry points: `setup.build_env` makes a search problem, `mask_search.search_mask` solves it.
May import `onp.data`, `onp.model`, `onp.engine` and `onp.detect`.
"""
