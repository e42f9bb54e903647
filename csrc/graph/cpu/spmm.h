// Gather, weigh, reduce: sum and mean, max.
#pragma once

#include "graph/cpu/rows.h"

namespace onp {
namespace {

// Edges that are moved together at a time where a mask leaves some out.
constexpr int64_t kPiece = 256;

// One walk over the rows: `Vectors` registers of features (of the last, some lanes only, if Cut) from `f` on, for each
// of `Copies` copies that share x, whose rows are then read once for all of them.
template <int Vectors_, bool Cut_, int Copies_, typename Index_, typename Element_>
struct Walk {
  static constexpr int Vectors = Vectors_, Copies = Copies_;
  static constexpr bool Cut = Cut_;
  using Index = Index_;
  using Element = Element_;
  using Sums = Vec[Copies][Vectors];

  const Spmm& op;
  const Edges<Index>& graph;
  int64_t copy, head, f;
  int lanes;
  const Element* x = row_of<Element>(op.x, copy, 0) + f;
  int64_t stride = op.x.row;
  int64_t step = op.weight.data ? op.heads : 0;  // from one edge's weight to the next

  const float* weight(int c) const {
    static const float one = 1;
    return op.weight.data ? of_copy(op.weight, copy + c) + head : &one;
  }

  // sum += weight * x over `count` edges, weight_of(c, p) of which is copy c's; no source behind `last` is looked at.
  template <typename WeightOf>
  void add(Sums& sum, const Index* source, int64_t count, const Index* last, const WeightOf& weight_of) const {
    for (int64_t p = 0; p < count; ++p) {
      const Element* from = x + source[p] * stride;
      if (graph.far) prefetch<Vectors>(x + *(last - source - p > kAhead ? source + p + kAhead : last) * stride);
      Vec value[Vectors];
      load_all<Vectors, Cut>(from, lanes, value);
      for (int c = 0; c < Copies; ++c) {
        const Vec w = broadcast(weight_of(c, p));
        for (int v = 0; v < Vectors; ++v) sum[c][v] += w * value[v];
      }
    }
  }

  // The result of row `row`, `count` of whose edges were added up.
  void finish(const Sums& sum, int64_t row, int64_t count) const {
    const float factor = op.reduce != Reduce::mean ? 1.0f : count ? 1.0f / static_cast<float>(count) : 0.0f;
    for (int c = 0; c < Copies; ++c) {
      const int64_t at = (copy + c) * op.csr.rows + row;
      if (op.mean) op.mean[at] = factor;
      Element* to = static_cast<Element*>(op.out) + at * op.heads * op.channels + f;
      Vec value[Vectors];
      for (int v = 0; v < Vectors; ++v) value[v] = sum[c][v] * factor;
      store_all<Vectors, Cut>(to, value, lanes);
    }
  }
};

// Without a mask, sources and weights are read where they are: here neither renumbered nor with a factor per source.
template <typename Walk>
inline void sum_plain_row(const Walk& walk, int64_t row) {
  const auto& graph = walk.graph;
  const int64_t begin = graph.indptr[row], count = graph.indptr[row + 1] - begin;
  const float* weight[Walk::Copies];
  for (int c = 0; c < Walk::Copies; ++c) weight[c] = walk.weight(c) + begin * walk.step;
  typename Walk::Sums sum = {};
  walk.add(sum, graph.indices + begin, count, graph.indices + graph.last,
           [&](int c, int64_t p) { return weight[c][p * walk.step]; });
  walk.finish(sum, row, count);
}

template <typename Walk>
inline void sum_numbered_row(const Walk& walk, int64_t row) {
  const auto& graph = walk.graph;
  const int64_t begin = graph.indptr[row], count = graph.indptr[row + 1] - begin;
  const float* scale = of_copy(walk.op.scale, walk.copy);
  const float* weight = walk.weight(0);
  const auto* source = graph.indices + begin;
  typename Walk::Sums sum = {};
  walk.add(sum, source, count, graph.indices + graph.last, [&](int, int64_t p) {
    return weight[graph.number(begin + p) * walk.step] * (scale ? scale[source[p]] : 1.0f);
  });
  walk.finish(sum, row, count);
}

// Sources and weights of the edges [begin, end) that the mask leaves, moved together; returns their number.
template <typename Walk>
inline int64_t gather_left(const Walk& walk, int64_t begin, int64_t end, typename Walk::Index* source, float* weight) {
  const uint8_t* keep = of_copy(walk.op.keep, walk.copy);
  const float* scale = of_copy(walk.op.scale, walk.copy);
  const float* of_edge = walk.weight(0);
  int64_t count = 0;
  for (int64_t p = begin; p < end; ++p) {
    const auto from = walk.graph.indices[p];
    source[count] = from;
    weight[count] = of_edge[walk.graph.number(p) * walk.step] * (scale ? scale[from] : 1.0f);
    count += kept(keep, from);
  }
  return count;
}

template <typename Walk>
inline void sum_left_row(const Walk& walk, int64_t row) {
  typename Walk::Index source[kPiece];
  float weight[kPiece];
  const int64_t begin = walk.graph.indptr[row];
  const int64_t end = kept(of_copy(walk.op.keep, walk.copy), row) ? walk.graph.indptr[row + 1] : begin;
  typename Walk::Sums sum = {};
  int64_t total = 0;
  for (int64_t p = begin; p < end; p += kPiece) {
    const int64_t count = gather_left(walk, p, p + kPiece < end ? p + kPiece : end, source, weight);
    walk.add(sum, source, count, source + (count ? count - 1 : 0), [&](int, int64_t p) { return weight[p]; });
    total += count;
  }
  walk.finish(sum, row, total);
}

// The largest term of each feature of a row, and where it is: a NaN wins, of equal ones the first.
template <bool Winner, typename Walk>
inline void max_row(const Walk& walk, int64_t row) {
  constexpr int kVectors = Walk::Vectors;
  const auto& graph = walk.graph;
  const uint8_t* keep = of_copy(walk.op.keep, walk.copy);
  const float* weight = walk.weight(0);
  const int64_t begin = graph.indptr[row], end = kept(keep, row) ? graph.indptr[row + 1] : begin;
  Vec best[kVectors] = {};
  IntVec winner[kVectors];
  for (int v = 0; v < kVectors; ++v) winner[v] = IntVec{} - 1;
  const auto term = [&](int64_t p, int v) {
    const auto* from = walk.x + graph.indices[p] * walk.stride + v * kLanes;
    return weight[p * walk.step] * load_some<Walk::Cut>(from, walk.lanes);
  };
  int64_t p = begin;
  while (p < end && !kept(keep, graph.indices[p])) ++p;
  for (int v = 0; v < kVectors && p < end; ++v) {
    best[v] = term(p, v);
    winner[v] = IntVec{} + static_cast<int32_t>(p - begin);
  }
  for (++p; p < end; ++p) {
    if (!kept(keep, graph.indices[p])) continue;
    if (graph.far) prefetch<kVectors>(walk.x + graph.ahead(p) * walk.stride);
    const IntVec place = IntVec{} + static_cast<int32_t>(p - begin);
    for (int v = 0; v < kVectors; ++v) {
      const Vec value = term(p, v);
      const IntVec better = ~(value <= best[v]) & (best[v] == best[v]);
      best[v] = better ? value : best[v];
      if (Winner) winner[v] = better ? place : winner[v];
    }
  }
  const int64_t at = (walk.copy * walk.op.csr.rows + row) * walk.op.channels + walk.f;
  for (int v = 0; v < kVectors; ++v) {
    store_some<Walk::Cut>(static_cast<typename Walk::Element*>(walk.op.out) + at + v * kLanes, best[v], walk.lanes);
    if (Winner) store_some<Walk::Cut>(walk.op.arg + at + v * kLanes, winner[v], walk.lanes);
  }
}

// Calls visit(walk) for walks that cover all features of `Copies` copies from `copy` on, `most` registers at a time.
template <int Most, int Copies, typename Index, typename Element, typename Visit>
inline void for_walks(const Spmm& op, const Edges<Index>& graph, int64_t copy, const Visit& visit) {
  for (int64_t head = 0; head < op.heads; ++head) {
    for_blocks<Most>(op.channels, [&](auto vectors, auto cut, int64_t offset, int lanes) {
      visit(Walk<decltype(vectors)::value, decltype(cut)::value, Copies, Index, Element>{
          op, graph, copy, head, head * op.channels + offset, lanes});
    });
  }
}

template <typename Index, typename Element>
void spmm_rows(const Spmm& op, const Part& part) {
  const Edges<Index> graph(op.csr, op.x.row * sizeof(Element));
  const bool plain = !op.keep.data && !op.scale.data && !op.csr.edge;
  const auto rows = [&](const auto& visit) {
    for (int64_t row = part.first_row; row < part.last_row; ++row) visit(row);
  };
  int64_t copy = part.first_copy;
  for (; op.reduce != Reduce::max && plain && op.x.copy == 0 && copy + 4 <= part.last_copy; copy += 4) {
    for_walks<kRegisters / 4, 4, Index, Element>(
        op, graph, copy, [&](const auto& walk) { rows([&](int64_t row) { sum_plain_row(walk, row); }); });
  }
  for (; copy < part.last_copy; ++copy) {
    if (op.reduce == Reduce::max) {
      // Twice the registers of a sum: values and winners.
      for_walks<kRegisters / 2, 1, Index, Element>(op, graph, copy, [&](const auto& walk) {
        op.arg ? rows([&](int64_t row) { max_row<true>(walk, row); })
               : rows([&](int64_t row) { max_row<false>(walk, row); });
      });
    } else {
      for_walks<kRegisters, 1, Index, Element>(op, graph, copy, [&](const auto& walk) {
        if (plain) return rows([&](int64_t row) { sum_plain_row(walk, row); });
        op.keep.data ? rows([&](int64_t row) { sum_left_row(walk, row); })
                     : rows([&](int64_t row) { sum_numbered_row(walk, row); });
      });
    }
  }
}

}  // namespace
}  // namespace onp
