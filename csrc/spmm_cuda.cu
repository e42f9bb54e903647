#include <cmath>

#include "spmm.h"

namespace onp {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;

// One warp per row, one lane per feature: neighbouring lanes read neighbouring floats of x, and the sum of a feature
// is made by one lane in edge order, so no atomics and the same bits every time.
template <typename Index>
__global__ void __launch_bounds__(kThreads) spmm_rows(const Spmm<Index> p) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (row >= p.csr.rows) return;
  const int64_t begin = p.csr.indptr[row], end = p.csr.indptr[row + 1];
  const bool bad_row = begin < 0 || end < begin || end > p.csr.edges;
  const float scale = p.mean && end > begin ? 1.0f / static_cast<float>(end - begin) : 1.0f;
  for (int64_t f = threadIdx.x % kWarp; f < p.features; f += kWarp) {
    float sum = bad_row ? NAN : 0.0f;
    for (int64_t e = begin; e < end && !bad_row; ++e) {
      const int64_t source = p.csr.indices[e];
      const bool inside = source >= 0 && source < p.csr.columns;
      const float w = p.weight ? p.weight[e] : 1.0f;
      sum += inside ? w * p.x[source * p.x_stride + f] : NAN;
    }
    p.out[row * p.out_stride + f] = sum * scale;
  }
}

}  // namespace

template <typename Index>
const char* spmm_cuda(const Spmm<Index>& p, void* stream) {
  if (p.csr.rows == 0 || p.features == 0) return nullptr;
  const int64_t blocks = (p.csr.rows + kThreads / kWarp - 1) / (kThreads / kWarp);
  spmm_rows<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template const char* spmm_cuda(const Spmm<int32_t>&, void*);
template const char* spmm_cuda(const Spmm<int64_t>&, void*);

}  // namespace onp
