// Sparse times dense over CSR rows: the contract shared by spmm_cpu.cpp and spmm_cuda.cu.
// No Python and no torch below this line of the project: raw pointers, element counts, a stream.
#pragma once

#include <cstdint>

namespace onp {

// Row r owns the edges indptr[r] .. indptr[r + 1] - 1; edge e reads source row indices[e] of x.
template <typename Index>
struct Csr {
  const Index* indptr;   // [rows + 1], starts at 0, never falls, ends at edges
  const Index* indices;  // [edges], each in [0, columns)
  int64_t rows;
  int64_t columns;
  int64_t edges;
};

// out[r, f] = sum over the edges e of row r of weight[e] * x[indices[e], f], divided by the number of edges of the
// row if mean is set. A row without edges is zero. Edges are added in their stored order, so results repeat bit for
// bit.
template <typename Index>
struct Spmm {
  Csr<Index> csr;
  const float* weight;  // [edges], or null: every weight is one
  const float* x;       // [columns, features], features contiguous, rows x_stride elements apart
  float* out;           // [rows, features], features contiguous, rows out_stride elements apart
  int64_t features;
  int64_t x_stride;
  int64_t out_stride;
  bool mean;
};

// What is wrong with the arrays of csr, which lie in host memory, or null if nothing is.
template <typename Index>
const char* csr_fault(const Csr<Index>& csr);

// All pointers are host memory. Uses up to `threads` threads where the work pays for starting them.
template <typename Index>
void spmm_cpu(const Spmm<Index>& problem, int threads);

// All pointers are memory of the current CUDA device; the work is queued on `stream` and not waited for. Checking the
// arrays would mean waiting, so the kernel stays inside them by itself: a row that reads outside becomes NaN.
// Returns CUDA's text for a failed launch, or null.
template <typename Index>
const char* spmm_cuda(const Spmm<Index>& problem, void* stream);

}  // namespace onp
