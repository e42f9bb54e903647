// Gradients of max: what a row and feature hand back to the one term that won.
#pragma once

#include "graph/cpu/rows.h"

namespace onp {
namespace {

// Calls visit(f, position of the winner, gradient) for the features [first, last) of all rows of a copy.
template <typename Index, typename Element, typename Visit>
inline void for_winners(const SpmmMaxGrad& op, int64_t copy, int64_t first, int64_t last, const Visit& visit) {
  const auto* indptr = static_cast<const Index*>(op.csr.indptr);
  for (int64_t row = 0; row < op.csr.rows; ++row) {
    const int32_t* arg = op.arg + (copy * op.csr.rows + row) * op.features;
    const Element* grad = row_of<Element>(op.grad, copy, row);
    const int64_t begin = indptr[row];
    for (int64_t f = first; f < last; ++f) {
      if (arg[f] >= 0) visit(f, begin + arg[f], to_float(grad[f]));
    }
  }
}

template <typename Index, typename Element>
void max_grad_x(const SpmmMaxGrad& op, int64_t copy, int64_t first, int64_t last) {
  const auto* indices = static_cast<const Index*>(op.csr.indices);
  const int64_t features = op.features;
  float* sum = op.grad_x + copy * op.csr.columns * features;
  for (int64_t row = 0; row < op.csr.columns; ++row) {
    for (int64_t f = first; f < last; ++f) sum[row * features + f] = 0;
  }
  if (const float* weight = of_copy(op.weight, copy)) {
    for_winners<Index, Element>(op, copy, first, last, [=](int64_t f, int64_t p, float grad) {
      sum[indices[p] * features + f] += weight[p] * grad;
    });
  } else {
    for_winners<Index, Element>(op, copy, first, last,
                                [=](int64_t f, int64_t p, float grad) { sum[indices[p] * features + f] += grad; });
  }
}

template <typename Index, typename Element>
void max_grad_weight(const SpmmMaxGrad& op, int64_t copy) {
  const auto* indices = static_cast<const Index*>(op.csr.indices);
  float* sum = op.grad_weight + copy * op.csr.edges;
  for (int64_t p = 0; p < op.csr.edges; ++p) sum[p] = 0;
  for_winners<Index, Element>(op, copy, 0, op.features, [&](int64_t f, int64_t p, float grad) {
    sum[p] += grad * to_float(row_of<Element>(op.x, copy, indices[p])[f]);
  });
}

}  // namespace
}  // namespace onp
