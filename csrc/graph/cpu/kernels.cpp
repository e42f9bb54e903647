// Compiled once per instruction set, see CMakeLists.txt; ONP_ISA names it.
#include "graph/cpu/kernels.h"

#include "graph/cpu/attention.h"
#include "graph/cpu/max_grad.h"

namespace onp {
namespace {

template <typename Op, typename Run>
inline void with_index(const Op& csr, const Run& run) {
  csr.index_bytes == 4 ? run(int32_t{}) : run(int64_t{});
}

template <typename Run>
inline void with_types(const Csr& csr, bool bf16, const Run& run) {
  with_index(csr, [&](auto index) { bf16 ? run(index, Bf16{}) : run(index, float{}); });
}

void spmm(const Spmm& op, const Part& part) {
  with_types(op.csr, op.bf16,
             [&](auto index, auto element) { spmm_rows<decltype(index), decltype(element)>(op, part); });
}

void spmm_max_grad_x(const SpmmMaxGrad& op, int64_t copy, int64_t first, int64_t last) {
  with_types(op.csr, op.bf16,
             [&](auto index, auto element) { max_grad_x<decltype(index), decltype(element)>(op, copy, first, last); });
}

void spmm_max_grad_weight(const SpmmMaxGrad& op, int64_t copy) {
  with_types(op.csr, op.bf16,
             [&](auto index, auto element) { max_grad_weight<decltype(index), decltype(element)>(op, copy); });
}

void edge_dot(const EdgeDot& op, const Part& part) {
  with_types(op.csr, op.bf16,
             [&](auto index, auto element) { edge_dot_rows<decltype(index), decltype(element)>(op, part); });
}

void edge_softmax(const EdgeSoftmax& op, const Part& part) {
  with_index(op.csr, [&](auto index) { edge_softmax_rows<decltype(index)>(op, part); });
}

void edge_softmax_grad(const EdgeSoftmaxGrad& op, const Part& part) {
  with_index(op.csr, [&](auto index) { edge_softmax_grad_rows<decltype(index)>(op, part); });
}

void attention(const Attention& op, const Part& part) {
  with_types(op.csr, op.bf16,
             [&](auto index, auto element) { attention_rows<decltype(index), decltype(element)>(op, part); });
}

void attention_grad_target(const AttentionGradTarget& op, const Part& part) {
  with_types(op.forward.csr, op.forward.bf16, [&](auto index, auto element) {
    attention_grad_target_rows<decltype(index), decltype(element)>(op, part);
  });
}

void attention_grad_source(const AttentionGradSource& op, const Part& part) {
  with_types(op.forward.csr, op.forward.bf16, [&](auto index, auto element) {
    attention_grad_source_rows<decltype(index), decltype(element)>(op, part);
  });
}

bool outside(const Csr& csr) {
  bool found = false;
  with_index(csr, [&](auto index) {
    const auto* indices = static_cast<const decltype(index)*>(csr.indices);
    for (int64_t e = 0; e < csr.edges; ++e) found |= (indices[e] < 0) | (indices[e] >= csr.columns);
  });
  return found;
}

bool falls(const Csr& csr) {
  bool found = false;
  with_index(csr, [&](auto index) {
    const auto* indptr = static_cast<const decltype(index)*>(csr.indptr);
    for (int64_t r = 0; r < csr.rows; ++r) found |= indptr[r + 1] < indptr[r];
  });
  return found;
}

}  // namespace

const GraphKernels& ONP_TABLE(graph_kernels)() {
  static const GraphKernels table = {
      spmm,      spmm_max_grad_x,       spmm_max_grad_weight,  edge_dot, edge_softmax, edge_softmax_grad,
      attention, attention_grad_target, attention_grad_source, outside,  falls};
  return table;
}

}  // namespace onp
