"""Sparse message passing: spmm, edge softmax and attention in native, torch-scatter, torch-sparse and plain torch code."""
