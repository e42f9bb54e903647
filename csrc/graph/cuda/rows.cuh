// The two loops of the CUDA half. Over rows: a group of 1 to 32 lanes takes a row (or a segment of a long one); each
// lane owns features, four side by side where alignment allows, and adds them up in edge order. Over edges: a group
// takes one and adds up its features. No atomics, so the same bits every time.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "graph/ops.h"

namespace onp {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kAhead = 4;  // edges whose values are under way at once
constexpr unsigned kAll = 0xffffffffu;

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

// Numbers side by side, as one load or store moves them.
template <typename Number, int V>
struct alignas(sizeof(Number) * V) Block {
  Number at[V];
};

template <int V>
struct Pack {
  float at[V];
};

template <int V, typename Element>
__device__ inline Pack<V> unpack(const Element* from) {
  const auto block = *reinterpret_cast<const Block<Element, V>*>(from);
  Pack<V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.at[v] = to_float(block.at[v]);
  return pack;
}
template <int V, typename Element>
__device__ inline void put_pack(Element* to, const Pack<V>& pack) {
  Block<Element, V> block;
#pragma unroll
  for (int v = 0; v < V; ++v) put(&block.at[v], pack.at[v]);
  *reinterpret_cast<Block<Element, V>*>(to) = block;
}

template <int V, typename Element>
__device__ inline Pack<V> values_at(const Rows& rows, int64_t copy, int64_t row, int64_t f) {
  return unpack<V>(static_cast<const Element*>(rows.data) + copy * rows.copy + row * rows.row + f);
}

// a / b, neither negative, without the long division of 64 bits where 32 do.
__device__ inline int64_t over(int64_t a, int64_t b) {
  return (a | b) >> 32 ? a / b : static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
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

// Lanes that take one row: as many as there are blocks of features, up to a warp.
inline int lanes_for(int64_t blocks) {
  int lanes = 1;
  while (lanes < kWarp && lanes < blocks) lanes *= 2;
  return lanes;
}

// Whether blocks of four numbers of this size may be moved at once.
inline bool in_fours(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % (4 * bytes) == 0;
}
inline bool in_fours(const Rows& rows, bool bf16) {
  return in_fours(rows.data, bf16 ? 2 : 4) && rows.row % 4 == 0 && rows.copy % 4 == 0;
}

inline unsigned blocks_for(int64_t threads) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < (1 << 30) ? blocks : (1 << 30));
}

// Groups of `lanes` threads, numbered through the whole grid: a loop over `items` of them, any number of blocks.
#define ONP_FOR_GROUPS(item, items, lanes)                                                                     \
  for (int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / (lanes); item < (items); \
       item += static_cast<int64_t>(gridDim.x) * blockDim.x / (lanes))

// Message: for V = kWidth features from f on and kSums sums of each. `begin(copy, row, f)` is what all edges of a row
// use, `load(begun, copy, source, edge, f)` what one of them reads, `add(sums, begun, loaded)` its term, and
// `finish(copy, row, f, sums, count)` writes the result; count: edges left, or -1 where a row was cut.
template <typename Message>
struct Sums {
  Pack<Message::kWidth> of[Message::kSums];
};

template <typename Index, typename Message>
__global__ void __launch_bounds__(kThreads)
    sum_segments(const Csr csr, const Keep keep, int64_t copies, int64_t features, int lanes, int64_t segments,
                 const Message message, float* partial) {
  constexpr int V = Message::kWidth;
  const int lane = threadIdx.x % lanes;
  ONP_FOR_GROUPS(item, copies * segments, lanes) {
    const int64_t copy = over(item, segments), number = item - copy * segments;
    const Segment at = segment_at<Index>(csr, number);
    const int64_t last = kept(keep, copy, at.row) ? at.end - 1 : at.begin - 1;
    for (int64_t f = lane * V; f < features; f += lanes * V) {
      const auto begun = message.begin(copy, at.row, f);
      Sums<Message> sums = {};
      int64_t count = 0;
      for (int64_t p = at.begin; p <= last; p += kAhead) {
        typename Message::Loaded loaded[kAhead];
        bool in[kAhead];
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          const int64_t q = p + u < last ? p + u : last;
          const int64_t source = source_of<Index>(csr, q);
          in[u] = p + u <= last && kept(keep, copy, source);
          loaded[u] = message.load(begun, copy, source, number_of<Index>(csr, q), f);
        }
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          if (!in[u]) continue;
          message.add(sums, begun, loaded[u]);
          ++count;
        }
      }
      if (!partial) {
        message.finish(copy, at.row, f, sums, count);
        continue;
      }
#pragma unroll
      for (int n = 0; n < Message::kSums; ++n) {
        put_pack(partial + (item * Message::kSums + n) * features + f, sums.of[n]);
      }
    }
  }
}

// Second half where rows are cut: adds up the segments of each row, in order.
template <typename Message>
__global__ void __launch_bounds__(kThreads)
    join_segments(const Csr csr, int64_t copies, int64_t features, const Message message, const float* partial) {
  constexpr int V = Message::kWidth, N = Message::kSums;
  const int64_t blocks = features / V;
  ONP_FOR_GROUPS(item, copies * csr.rows * blocks, 1) {
    const int64_t f = item % blocks * V, row = item / blocks % csr.rows, copy = item / blocks / csr.rows;
    Sums<Message> sums = {};
    for (int64_t s = csr.row_segment[row]; s < csr.row_segment[row + 1]; ++s) {
      for (int n = 0; n < N; ++n) {
        const auto part = unpack<V>(partial + ((copy * csr.segments + s) * N + n) * features + f);
        for (int v = 0; v < V; ++v) sums.of[n].at[v] += part.at[v];
      }
    }
    message.finish(copy, row, f, sums, -1);
  }
}

template <typename Index, typename Message>
void sum_over_edges(const Csr& csr, const Keep& keep, int64_t copies, int64_t features, const Message& message,
                    float* partial, cudaStream_t stream) {
  if (copies * csr.rows * features == 0) return;
  float* parts = csr.segment_row ? partial : nullptr;
  const int64_t segments = segments_of(csr), blocks = features / Message::kWidth;
  const int lanes = lanes_for(blocks);
  sum_segments<Index><<<blocks_for(copies * segments * lanes), kThreads, 0, stream>>>(csr, keep, copies, features,
                                                                                      lanes, segments, message, parts);
  if (!parts) return;
  join_segments<<<blocks_for(copies * csr.rows * blocks), kThreads, 0, stream>>>(csr, copies, features, message, parts);
}

// The sum over the lanes of a group, in a fixed order; every lane of the warp takes part.
__device__ inline float group_sum(float value, int lanes) {
  for (int step = lanes / 2; step; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// As ONP_FOR_GROUPS, but all groups of a warp go round together, those without an item too: lanes may exchange values.
#define ONP_FOR_GROUPS_TOGETHER(item, items, lanes)                                            \
  for (int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / (lanes); \
       item - static_cast<int64_t>(threadIdx.x % kWarp / (lanes)) < (items);                   \
       item += static_cast<int64_t>(gridDim.x) * blockDim.x / (lanes))

// One group an edge and head. Term: `operator()(copy, row, source, edge, f)` is the sum over kWidth features from f on.
template <typename Index, typename Term>
__global__ void __launch_bounds__(kThreads) per_edge(const Csr csr, const Keep keep, int64_t copies, int64_t heads,
                                                     int64_t channels, int lanes, const Term term, float* out) {
  const int lane = threadIdx.x % lanes;
  const int64_t items = copies * csr.edges * heads;
  ONP_FOR_GROUPS_TOGETHER(item, items, lanes) {
    const int64_t each = item < items ? item : items - 1, place = over(each, heads), head = each - place * heads;
    const int64_t copy = over(place, csr.edges), p = place - copy * csr.edges;
    const int64_t row = static_cast<const Index*>(csr.row)[p], source = source_of<Index>(csr, p);
    float sum = 0;
    if (left(keep, copy, row, source)) {
      for (int64_t c = lane * Term::kWidth; c < channels; c += lanes * Term::kWidth) {
        sum += term(copy, row, source, p, head * channels + c);
      }
    }
    sum = group_sum(sum, lanes);
    if (lane == 0 && item < items) out[item] = sum;
  }
}

template <typename Index, typename Term>
void for_edges(const Csr& csr, const Keep& keep, int64_t copies, int64_t heads, int64_t channels, const Term& term,
               float* out, cudaStream_t stream) {
  const int64_t items = copies * csr.edges * heads;
  if (items == 0) return;
  const int lanes = lanes_for(channels / Term::kWidth);
  per_edge<Index>
      <<<blocks_for(items * lanes), kThreads, 0, stream>>>(csr, keep, copies, heads, channels, lanes, term, out);
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

// The same with the number of features that are moved at once behind them.
template <typename Run>
void with_types(const Csr& csr, bool bf16, bool fours, const Run& run) {
  with_types(csr, bf16, [&](auto index, auto element) {
    fours ? run(index, element, std::integral_constant<int, 4>{})
          : run(index, element, std::integral_constant<int, 1>{});
  });
}

inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace onp
