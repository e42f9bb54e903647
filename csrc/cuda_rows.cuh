// The two loops of the CUDA half. Over rows: a group of 1 to 32 lanes takes a row (or a segment of a long one); each
// lane owns features and adds them up in edge order. Over edges: a warp takes one and adds up its features. No atomics,
// so the same bits every time.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ops.h"

namespace onp {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;

__device__ inline float to_float(float value) {
  return value;
}
__device__ inline float to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
__device__ inline void put(float* to, float value) {
  *to = value;
}
__device__ inline void put(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}

template <typename Element>
__device__ inline float value_at(const Rows& rows, int64_t copy, int64_t row, int64_t f) {
  return to_float(static_cast<const Element*>(rows.data)[copy * rows.copy + row * rows.row + f]);
}

__device__ inline bool kept(const Keep& keep, int64_t copy, int64_t node) {
  return !keep.data || keep.data[copy * keep.copy + node];
}

// Whether the edge between these two nodes is left.
__device__ inline bool left(const Keep& keep, int64_t copy, int64_t row, int64_t source) {
  return kept(keep, copy, row) && kept(keep, copy, source);
}

template <typename Index>
__device__ inline int64_t source_of(const Csr& csr, int64_t p) {
  return static_cast<const Index*>(csr.indices)[p];
}
template <typename Index>
__device__ inline int64_t number_of(const Csr& csr, int64_t p) {
  return csr.edge ? static_cast<int64_t>(static_cast<const Index*>(csr.edge)[p]) : p;
}
template <typename Index>
__device__ inline int64_t start_of(const Csr& csr, int64_t row) {
  return static_cast<const Index*>(csr.indptr)[row];
}

// The segment a group works on: a row, or a part of one.
struct Segment {
  int64_t row, begin, end;
};
template <typename Index>
__device__ inline Segment segment_at(const Csr& csr, int64_t segment) {
  if (!csr.segment_row) return {segment, start_of<Index>(csr, segment), start_of<Index>(csr, segment + 1)};
  return {csr.segment_row[segment], csr.segment_begin[segment], csr.segment_begin[segment + 1]};
}

inline int64_t segments_of(const Csr& csr) {
  return csr.segment_row ? csr.segments : csr.rows;
}

// Lanes that take one row: as many as there are features, up to a warp.
inline int lanes_for(int64_t features) {
  int lanes = 1;
  while (lanes < kWarp && lanes < features) lanes *= 2;
  return lanes;
}

inline unsigned blocks_for(int64_t threads) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < (1 << 30) ? blocks : (1 << 30));
}

// Groups of `lanes` threads, numbered through the whole grid: a loop over `items` of them, any number of blocks.
#define ONP_FOR_GROUPS(item, items, lanes)                                                                     \
  for (int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / (lanes); item < (items); \
       item += static_cast<int64_t>(gridDim.x) * blockDim.x / (lanes))

// Message: `Sums add(copy, row, source, edge, f)` is the term of an edge; `void finish(copy, row, f, total)` writes the
// row's result. Sums is float, or two of them.
template <typename Index, typename Message>
__global__ void __launch_bounds__(kThreads)
    sum_segments(const Csr csr, const Keep keep, int64_t copies, int64_t features, int lanes, int64_t segments,
                 const Message message, typename Message::Sums* partial) {
  const int lane = threadIdx.x % lanes;
  ONP_FOR_GROUPS(item, copies * segments, lanes) {
    const int64_t copy = item / segments, number = item % segments;
    const Segment at = segment_at<Index>(csr, number);
    for (int64_t f = lane; f < features; f += lanes) {
      typename Message::Sums total = {};
      for (int64_t p = at.begin; p < at.end; ++p) {
        const int64_t source = source_of<Index>(csr, p);
        if (!left(keep, copy, at.row, source)) continue;
        total = total + message.add(copy, at.row, source, number_of<Index>(csr, p), f);
      }
      if (partial) {
        partial[item * features + f] = total;
      } else {
        message.finish(copy, at.row, f, total);
      }
    }
  }
}

// Second half where rows are cut: adds up the segments of each row, in order.
template <typename Message>
__global__ void __launch_bounds__(kThreads)
    join_segments(const Csr csr, int64_t copies, int64_t features, const Message message,
                  const typename Message::Sums* partial) {
  ONP_FOR_GROUPS(item, copies * csr.rows * features, 1) {
    const int64_t f = item % features, row = item / features % csr.rows, copy = item / features / csr.rows;
    typename Message::Sums total = {};
    for (int64_t s = csr.row_segment[row]; s < csr.row_segment[row + 1]; ++s) {
      total = total + partial[(copy * csr.segments + s) * features + f];
    }
    message.finish(copy, row, f, total);
  }
}

template <typename Index, typename Message>
void sum_over_edges(const Csr& csr, const Keep& keep, int64_t copies, int64_t features, const Message& message,
                    float* partial, cudaStream_t stream) {
  if (copies * csr.rows * features == 0) return;
  auto* parts = csr.segment_row ? reinterpret_cast<typename Message::Sums*>(partial) : nullptr;
  const int64_t segments = segments_of(csr);
  const int lanes = lanes_for(features);
  sum_segments<Index><<<blocks_for(copies * segments * lanes), kThreads, 0, stream>>>(csr, keep, copies, features,
                                                                                      lanes, segments, message, parts);
  if (!parts) return;
  join_segments<<<blocks_for(copies * csr.rows * features), kThreads, 0, stream>>>(csr, copies, features, message,
                                                                                   parts);
}

// One warp an edge and head: lanes share the features, and the sum of the lanes is made in a fixed order.
template <typename Index, typename Term>
__global__ void __launch_bounds__(kThreads) per_edge(const Csr csr, const Keep keep, int64_t copies, int64_t heads,
                                                     int64_t channels, const Term term, float* out) {
  const int lane = threadIdx.x % kWarp;
  ONP_FOR_GROUPS(item, copies * csr.edges * heads, kWarp) {
    const int64_t copy = item / (csr.edges * heads), p = item / heads % csr.edges, head = item % heads;
    const int64_t row = static_cast<const Index*>(csr.row)[p], source = source_of<Index>(csr, p);
    float sum = 0;
    if (left(keep, copy, row, source)) {
      for (int64_t c = lane; c < channels; c += kWarp) sum += term(copy, row, source, p, head * channels + c);
    }
    for (int step = kWarp / 2; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) out[(copy * csr.edges + p) * heads + head] = sum;
  }
}

template <typename Index, typename Term>
void for_edges(const Csr& csr, const Keep& keep, int64_t copies, int64_t heads, int64_t channels, const Term& term,
               float* out, cudaStream_t stream) {
  const int64_t items = copies * csr.edges * heads;
  if (items == 0) return;
  per_edge<Index><<<blocks_for(items * kWarp), kThreads, 0, stream>>>(csr, keep, copies, heads, channels, term, out);
}

// Runs `run(index, element)` with values of the types that csr and bf16 name.
template <typename Run>
void with_types(const Csr& csr, bool bf16, const Run& run) {
  if (csr.index_bytes == 4) {
    bf16 ? run(int32_t{}, __nv_bfloat16{}) : run(int32_t{}, float{});
  } else {
    bf16 ? run(int64_t{}, __nv_bfloat16{}) : run(int64_t{}, float{});
  }
}

inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace onp
