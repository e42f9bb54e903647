"""Sparse message passing on CSR graphs: spmm, edge softmax and attention, and graph layers made of them.

A library of its own. The policy of `onp.search` uses one layer, `layers.SAGEConv`, and with it `ops.spmm`; `GATv2Conv`,
`GINConv`, `edge_softmax`, `attention` and `native_attention` are for other graph networks; here only tests and
benchmarks use them.

Entry points: `csr.Csr`, `ops` and `layers`. `backend` chooses between the compiled module (`native_*`), torch-sparse,
torch-scatter and plain torch (`onp_kernels.reference_graph`). May import `onp.engine.native` and `onp.errors`.
"""
