"""Which neurons carry the backdoor: neuron graph, node features, GNN policy, environment, PPO agent, simpler searches.

Entry point: `onp.search.mask_search.search`. May import `onp.data`, `onp.model`, `onp.engine` and `onp.detect`.
"""
