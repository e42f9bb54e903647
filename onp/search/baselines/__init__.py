"""Searches over masks without an agent: greedy by first-order effects, random, CMA-ES; baselines of the learned policy.

Entry point of each file: `search(env, score, max_evaluations, seed)`. May import what `onp.search` may.
"""
