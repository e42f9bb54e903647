#include <algorithm>
#include <future>
#include <vector>

#include "spmm.h"

// The module is built for any x86-64 but the loops below are worth wide vectors: the compiler emits them once per
// instruction set and the loader picks by feature ("arch=" would match exact CPU models only). Elsewhere (other
// compilers, other CPUs) the one generic version is used.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define ONP_PER_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#define ONP_INLINE inline __attribute__((always_inline))
#else
#define ONP_PER_CPU
#define ONP_INLINE inline
#endif

namespace onp {
namespace {

// Multiply-adds below which a thread costs more to start than it saves (about 0.1 ms of work).
constexpr int64_t kWorkPerThread = 1 << 20;

// Features [first, first + Width) of one row: a fixed width keeps the sums in registers over all edges.
template <int Width, bool Weighted, typename Index>
ONP_INLINE void reduce_block(const Spmm<Index>& p, int64_t begin, int64_t end, float scale, int64_t first, float* out) {
  const Index* indices = p.csr.indices;
  const float* weight = p.weight;
  const float* features = p.x + first;
  const int64_t stride = p.x_stride;
  float sum[Width] = {};
  for (int64_t e = begin; e < end; ++e) {
    const float* x = features + static_cast<int64_t>(indices[e]) * stride;
    const float w = Weighted ? weight[e] : 1.0f;
    for (int f = 0; f < Width; ++f) sum[f] += w * x[f];
  }
  for (int f = 0; f < Width; ++f) out[first + f] = sum[f] * scale;
}

template <bool Weighted, typename Index>
ONP_INLINE void reduce_rows(const Spmm<Index>& p, int64_t first_row, int64_t last_row) {
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t begin = p.csr.indptr[row], end = p.csr.indptr[row + 1];
    const float scale = p.mean && end > begin ? 1.0f / static_cast<float>(end - begin) : 1.0f;
    float* out = p.out + row * p.out_stride;
    int64_t f = 0;
    for (; f + 32 <= p.features; f += 32) reduce_block<32, Weighted>(p, begin, end, scale, f, out);
    for (; f + 8 <= p.features; f += 8) reduce_block<8, Weighted>(p, begin, end, scale, f, out);
    for (; f < p.features; ++f) reduce_block<1, Weighted>(p, begin, end, scale, f, out);
  }
}

template <typename Index>
ONP_INLINE bool any_outside(const Index* indices, int64_t edges, int64_t columns) {
  bool outside = false;
  for (int64_t e = 0; e < edges; ++e) outside |= (indices[e] < 0) | (indices[e] >= columns);
  return outside;
}

template <typename Index>
ONP_INLINE bool any_fall(const Index* indptr, int64_t rows) {
  bool fall = false;
  for (int64_t r = 0; r < rows; ++r) fall |= indptr[r + 1] < indptr[r];
  return fall;
}

// target_clones takes plain functions, not templates: one overload per index type.
ONP_PER_CPU void rows_of(const Spmm<int32_t>& p, int64_t first, int64_t last) {
  p.weight ? reduce_rows<true>(p, first, last) : reduce_rows<false>(p, first, last);
}
ONP_PER_CPU void rows_of(const Spmm<int64_t>& p, int64_t first, int64_t last) {
  p.weight ? reduce_rows<true>(p, first, last) : reduce_rows<false>(p, first, last);
}
ONP_PER_CPU bool outside(const int32_t* i, int64_t edges, int64_t columns) {
  return any_outside(i, edges, columns);
}
ONP_PER_CPU bool outside(const int64_t* i, int64_t edges, int64_t columns) {
  return any_outside(i, edges, columns);
}
ONP_PER_CPU bool falls(const int32_t* indptr, int64_t rows) {
  return any_fall(indptr, rows);
}
ONP_PER_CPU bool falls(const int64_t* indptr, int64_t rows) {
  return any_fall(indptr, rows);
}

}  // namespace

template <typename Index>
const char* csr_fault(const Csr<Index>& csr) {
  if (csr.indptr[0] != 0) return "indptr must start at 0";
  if (falls(csr.indptr, csr.rows)) return "indptr must never fall";
  if (csr.indptr[csr.rows] != csr.edges) return "indptr must end at the number of edges";
  if (outside(csr.indices, csr.edges, csr.columns)) return "an index is outside the rows of x";
  return nullptr;
}

template <typename Index>
void spmm_cpu(const Spmm<Index>& p, int threads) {
  const int64_t work = p.csr.edges * p.features;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, work / kWorkPerThread));
  // Rows are cut where the edges are, not where the rows are: degrees may be very uneven.
  std::vector<int64_t> cut(parts + 1, p.csr.rows);
  cut[0] = 0;
  for (int64_t part = 1; part < parts; ++part) {
    const Index* last = p.csr.indptr + p.csr.rows;
    cut[part] = std::lower_bound(p.csr.indptr, last, p.csr.edges / parts * part) - p.csr.indptr;
  }
  std::vector<std::future<void>> others;
  for (int64_t part = 1; part < parts; ++part) {
    others.push_back(std::async(std::launch::async, [&p, &cut, part] { rows_of(p, cut[part], cut[part + 1]); }));
  }
  rows_of(p, cut[0], cut[1]);
  for (auto& other : others) other.get();
}

template const char* csr_fault(const Csr<int32_t>&);
template const char* csr_fault(const Csr<int64_t>&);
template void spmm_cpu(const Spmm<int32_t>&, int);
template void spmm_cpu(const Spmm<int64_t>&, int);

}  // namespace onp
