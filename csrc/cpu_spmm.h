// Gather, weigh, reduce: sum and mean, max, and the dot products their gradient needs.
#pragma once

#include "cpu_rows.h"

namespace onp {
namespace {

// `Vectors` registers of features for each of `Copies` copies that share x: a source row is read once for all of them.
// Plain: neither a mask nor a factor per source nor renumbered edges.
template <int Vectors, int Copies, bool Plain, typename Index, typename Element>
inline void sum_block(const Spmm& op, const Edges<Index>& graph, int64_t copy, int64_t row, int64_t head, int64_t f,
                      int lanes, const float* factor) {
  const int64_t begin = graph.indptr[row], end = graph.indptr[row + 1];
  const Element* x = row_of<Element>(op.x, copy, 0) + f;
  const int64_t stride = op.x.row;
  const float* weight[Copies];
  const float* scale[Copies];
  const uint8_t* keep[Copies];
  bool here[Copies];
  for (int c = 0; c < Copies; ++c) {
    weight[c] = of_copy(op.weight, copy + c);
    scale[c] = of_copy(op.scale, copy + c);
    keep[c] = of_copy(op.keep, copy + c);
    here[c] = kept(keep[c], row);
  }
  Vec sum[Copies][Vectors] = {};
  for (int64_t p = begin; p < end; ++p) {
    const int64_t source = graph.indices[p];
    const Element* from = x + source * stride;
    prefetch<Vectors>(x + graph.ahead(p) * stride);
    Vec value[Vectors];
    for (int v = 0; v < Vectors; ++v) value[v] = load_some(from + v * kLanes, lanes);
    const int64_t e = (Plain ? p : graph.number(p)) * op.heads + head;
    for (int c = 0; c < Copies; ++c) {
      if (!Plain && !(here[c] && kept(keep[c], source))) continue;
      float w = weight[c] ? weight[c][e] : 1.0f;
      if (!Plain && scale[c]) w *= scale[c][source];
      for (int v = 0; v < Vectors; ++v) sum[c][v] += w * value[v];
    }
  }
  Element* out = static_cast<Element*>(op.out);
  const int64_t features = op.heads * op.channels;
  for (int c = 0; c < Copies; ++c) {
    Element* to = out + ((copy + c) * op.csr.rows + row) * features + f;
    for (int v = 0; v < Vectors; ++v) store_some(to + v * kLanes, sum[c][v] * factor[c], lanes);
  }
}

template <int Vectors, typename Index, typename Element>
inline void max_block(const Spmm& op, const Edges<Index>& graph, int64_t copy, int64_t row, int64_t f, int lanes) {
  const int64_t begin = graph.indptr[row], end = graph.indptr[row + 1];
  const Element* x = row_of<Element>(op.x, copy, 0) + f;
  const float* weight = of_copy(op.weight, copy);
  const uint8_t* keep = of_copy(op.keep, copy);
  const bool here = kept(keep, row);
  Vec best[Vectors] = {};
  IntVec winner[Vectors];
  for (int v = 0; v < Vectors; ++v) winner[v] = IntVec{} - 1;
  for (int64_t p = begin; p < end && here; ++p) {
    prefetch<Vectors>(x + graph.ahead(p) * op.x.row);
    const int64_t source = graph.indices[p];
    if (!kept(keep, source)) continue;
    const float w = weight ? weight[p] : 1.0f;
    const IntVec place = IntVec{} + static_cast<int32_t>(p - begin);
    for (int v = 0; v < Vectors; ++v) {
      const Vec value = w * load_some(x + source * op.x.row + v * kLanes, lanes);
      const IntVec better = (value > best[v]) | (value != value) | (winner[v] < 0);
      best[v] = better ? value : best[v];
      winner[v] = better ? place : winner[v];
    }
  }
  const int64_t at = (copy * op.csr.rows + row) * op.channels + f;
  for (int v = 0; v < Vectors; ++v) {
    store_some(static_cast<Element*>(op.out) + at + v * kLanes, best[v], lanes);
    if (op.arg) store_some(op.arg + at + v * kLanes, winner[v], lanes);
  }
}

template <typename Index>
inline float mean_factor(const Edges<Index>& graph, const uint8_t* keep, int64_t row) {
  int64_t count = 0;
  const int64_t begin = graph.indptr[row], end = graph.indptr[row + 1];
  if (!keep) count = end - begin;
  if (keep && keep[row]) {
    for (int64_t p = begin; p < end; ++p) count += keep[graph.indices[p]];
  }
  return count ? 1.0f / static_cast<float>(count) : 0.0f;
}

template <int Copies, bool Plain, typename Index, typename Element>
inline void sum_row(const Spmm& op, const Edges<Index>& graph, int64_t copy, int64_t row) {
  float factor[Copies];
  for (int c = 0; c < Copies; ++c) {
    factor[c] = op.reduce == Reduce::mean ? mean_factor(graph, of_copy(op.keep, copy + c), row) : 1.0f;
    if (op.mean) op.mean[(copy + c) * op.csr.rows + row] = factor[c];
  }
  for (int64_t head = 0; head < op.heads; ++head) {
    for_blocks(op.channels, [&](auto count, int64_t f, int lanes) {
      constexpr int kVectors = decltype(count)::value;
      if constexpr (kVectors * Copies <= kRegisters) {
        sum_block<kVectors, Copies, Plain, Index, Element>(op, graph, copy, row, head, head * op.channels + f, lanes,
                                                           factor);
      } else {
        for (int c = 0; c < Copies; ++c) {
          sum_block<kVectors, 1, Plain, Index, Element>(op, graph, copy + c, row, head, head * op.channels + f, lanes,
                                                        factor + c);
        }
      }
    });
  }
}

template <bool Plain, typename Index, typename Element>
void sum_rows(const Spmm& op, const Part& part) {
  const Edges<Index> graph(op.csr);
  const bool shared = op.x.copy == 0;
  int64_t copy = part.first_copy;
  for (; shared && copy + 4 <= part.last_copy; copy += 4) {
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      sum_row<4, Plain, Index, Element>(op, graph, copy, row);
    }
  }
  for (; copy < part.last_copy; ++copy) {
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      sum_row<1, Plain, Index, Element>(op, graph, copy, row);
    }
  }
}

template <typename Index, typename Element>
void spmm_rows(const Spmm& op, const Part& part) {
  if (op.reduce != Reduce::max) {
    const bool plain = !op.keep.data && !op.scale.data && !op.csr.edge;
    return plain ? sum_rows<true, Index, Element>(op, part) : sum_rows<false, Index, Element>(op, part);
  }
  const Edges<Index> graph(op.csr);
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      for_blocks(op.channels, [&](auto count, int64_t f, int lanes) {
        // Twice the registers of a sum: values and winners.
        constexpr int kVectors = decltype(count)::value,
                      kAtOnce = kVectors < kRegisters / 2 ? kVectors : kRegisters / 2;
        for (int v = 0; v < kVectors; v += kAtOnce) {
          max_block<kAtOnce, Index, Element>(op, graph, copy, row, f + v * kLanes, lanes);
        }
      });
    }
  }
}

template <typename Element>
inline float dot(const Element* a, const Element* b, int64_t width) {
  Vec sum = {};
  int64_t f = 0;
  for (; f + kLanes <= width; f += kLanes) sum += load(a + f) * load(b + f);
  if (f < width) sum += load(a + f, static_cast<int>(width - f)) * load(b + f, static_cast<int>(width - f));
  return sum_of(sum);
}

template <typename Index, typename Element>
void edge_dot_rows(const EdgeDot& op, const Part& part) {
  const Edges<Index> graph(op.csr);
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(op.keep, copy);
    const float* scale = of_copy(op.scale, copy);
    float* out = op.out + copy * op.csr.edges * op.heads;
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      const Element* grad = row_of<Element>(op.grad, copy, row);
      const float factor = scale ? scale[row] : 1.0f;
      for (int64_t p = graph.indptr[row]; p < graph.indptr[row + 1]; ++p) {
        const int64_t source = graph.indices[p];
        const bool left = kept(keep, row) && kept(keep, source);
        const Element* x = row_of<Element>(op.x, copy, source);
        for (int64_t h = 0; h < op.heads; ++h) {
          const int64_t f = h * op.channels;
          out[graph.number(p) * op.heads + h] = left ? factor * dot(grad + f, x + f, op.channels) : 0.0f;
        }
      }
    }
  }
}

}  // namespace
}  // namespace onp
