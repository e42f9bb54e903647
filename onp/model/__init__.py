"""The classifier: safe loading, the captured graph, prunable layers, masks; pruning, shrinking, fine-tuning.

Entry point: `onp.model.victim.load_victim`. May import `onp.data`.
"""
