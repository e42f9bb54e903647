// The loops of message passing on CPUs. kernels.cpp is compiled once per instruction set and fills one table each;
// run.cpp picks a table at run time and cuts the work into parts.
#pragma once

#include "graph/ops.h"
#include "isa_table.h"

namespace onp {

// Copies [first_copy, last_copy) of rows [first_row, last_row); `number` counts the parts of one call.
struct Part {
  int64_t first_copy, last_copy, first_row, last_row;
  int64_t number;
};

struct GraphKernels {
  void (*spmm)(const Spmm&, const Part&);
  // grad_x of the features [first, last) of a copy, grad_weight of a copy.
  void (*spmm_max_grad_x)(const SpmmMaxGrad&, int64_t copy, int64_t first, int64_t last);
  void (*spmm_max_grad_weight)(const SpmmMaxGrad&, int64_t copy);
  void (*edge_dot)(const EdgeDot&, const Part&);
  void (*edge_softmax)(const EdgeSoftmax&, const Part&);
  void (*edge_softmax_grad)(const EdgeSoftmaxGrad&, const Part&);
  void (*attention)(const Attention&, const Part&);
  void (*attention_grad_target)(const AttentionGradTarget&, const Part&);
  void (*attention_grad_source)(const AttentionGradSource&, const Part&);
  // Whether an index is outside [0, columns), and whether indptr falls anywhere.
  bool (*outside)(const Csr&);
  bool (*falls)(const Csr&);
};

ONP_DECLARE_TABLES(GraphKernels, graph_kernels)

}  // namespace onp
