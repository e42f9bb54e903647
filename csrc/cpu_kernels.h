// The loops of the CPU half. cpu_kernels.cpp is compiled once per instruction set and fills one table each; cpu.cpp
// picks a table at run time and cuts the work into parts.
#pragma once

#include "conv.h"
#include "ops.h"

namespace onp {

// Copies [first_copy, last_copy) of rows [first_row, last_row); `number` counts the parts of one call.
struct Part {
  int64_t first_copy, last_copy, first_row, last_row;
  int64_t number;
};

struct Kernels {
  const char* isa;
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
  // Output channels [16 * panel, 16 * panel + 16).
  void (*conv_filters)(const ConvFilters&, int64_t panel);
  // The tiles [first, last), at most `room` of them at a time.
  void (*conv_tiles)(const Conv&, int64_t first, int64_t last, int64_t room);
  // Whether an index is outside [0, columns), and whether indptr falls anywhere.
  bool (*outside)(const Csr&);
  bool (*falls)(const Csr&);
};

const Kernels& kernels_generic();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace onp
