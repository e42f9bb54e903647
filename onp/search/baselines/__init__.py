"""Searches over masks without an agent: greedy by first-order effects, random, CMA-ES."""
