"""Kernels behind `onp.ops`: `reference` is the plain-torch contract of every op."""
