// Sums over the features of an edge: the scores of attention, and the dot products that gradients need.
#pragma once

#include "graph/cpu/rows.h"

namespace onp {
namespace {

constexpr int64_t kRowsAtOnce = 16;
constexpr int64_t kBytesAtOnce = 24 << 10;  // most of a first-level cache

// Calls visit(first, last) for the rows of a part, a few at a time: as many as have their sources, of `bytes` each, in
// the first-level cache when they are visited for the second time, but one at least.
template <typename Index, typename Visit>
inline void for_batches(const Edges<Index>& graph, int64_t bytes, const Part& part, const Visit& visit) {
  int64_t first = part.first_row;
  while (first < part.last_row) {
    const int64_t most = first + kRowsAtOnce < part.last_row ? first + kRowsAtOnce : part.last_row;
    int64_t last = first + 1;
    while (last < most && (graph.indptr[last + 1] - graph.indptr[first]) * bytes <= kBytesAtOnce) ++last;
    visit(first, last);
    first = last;
  }
}

// Calls visit(vectors, cut, head, offset in the head's channels, lanes if cut) for blocks that cover all features.
template <int Most, typename Visit>
inline void for_heads(int64_t heads, int64_t width, const Visit& visit) {
  for (int64_t h = 0; h < heads; ++h) {
    for_blocks<Most>(width,
                     [&](auto vectors, auto cut, int64_t offset, int lanes) { visit(vectors, cut, h, offset, lanes); });
  }
}

// out[e * heads + h] for the edges of the rows [first, last): the sum over the channels of h of what a term makes of
// the source's. term_of(row, vectors, cut, f, lanes) is a row's term, term(v, register v of the block at f).
template <typename Element, typename Index, typename TermOf>
inline void sums_of_edges(const Edges<Index>& graph, int64_t first, int64_t last, const Rows& rows, int64_t copy,
                          int64_t heads, int64_t width, float* out, const TermOf& term_of) {
  constexpr int kEdges = 4, kMost = 8;
  for (int64_t at = graph.indptr[first] * heads; width == 0 && at < graph.indptr[last] * heads; ++at) out[at] = 0;
  for_heads<kMost>(heads, width, [&](auto vectors, auto cut, int64_t h, int64_t offset, int lanes) {
    constexpr int kVectors = decltype(vectors)::value;
    constexpr bool kCut = decltype(cut)::value;
    const int64_t f = h * width + offset;
    const Element* x = row_of<Element>(rows, copy, 0) + f;
    for (int64_t row = first; row < last; ++row) {
      const auto term = term_of(row, vectors, cut, f, lanes);
      const int64_t end = graph.indptr[row + 1];
      for (int64_t p = graph.indptr[row]; p < end; p += kEdges) {
        Vec sum[kEdges] = {};
        const Element* from[kEdges];
        for (int e = 0; e < kEdges; ++e) {
          const int64_t edge = p + e < end ? p + e : end - 1;
          from[e] = x + graph.indices[edge] * rows.row;
          if (graph.far) prefetch<kVectors>(x + graph.ahead(edge) * rows.row);
        }
        // A term's own numbers, which may be too many for the registers, are read once for all edges.
        for (int v = 0; v < kVectors; ++v) {
          for (int e = 0; e < kEdges; ++e) sum[e] += term(v, load_some<kCut>(from[e] + v * kLanes, lanes));
        }
        float total[kEdges];
        sums_of(sum, total);
        for (int e = 0; e < kEdges && p + e < end; ++e) {
          float& to = out[(p + e) * heads + h];
          to = offset ? to + total[e] : total[e];
        }
      }
    }
  });
}

template <int Vectors, bool Cut>
struct DotTerm {
  Vec other[Vectors];

  template <typename Element>
  DotTerm(const Element* other_, int lanes) {
    for (int v = 0; v < Vectors; ++v) other[v] = load_some<Cut>(other_ + v * kLanes, lanes);
  }
  Vec operator()(int v, Vec value) const { return value * other[v]; }
};

template <typename Index, typename Element>
void edge_dot_rows(const EdgeDot& op, const Part& part) {
  const Edges<Index> graph(op.csr, op.x.row * sizeof(Element));
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(op.keep, copy);
    const float* scale = of_copy(op.scale, copy);
    float* out = op.out + copy * op.csr.edges * op.heads;
    const auto term_of = [&](int64_t row, auto vectors, auto cut, int64_t f, int lanes) {
      const Element* grad = row_of<Element>(op.grad, copy, row) + f;
      return DotTerm<decltype(vectors)::value, decltype(cut)::value>(grad, lanes);
    };
    for_batches(graph, op.heads * op.channels * sizeof(Element), part, [&](int64_t first, int64_t last) {
      sums_of_edges<Element>(graph, first, last, op.x, copy, op.heads, op.channels, out, term_of);
      for (int64_t row = first; row < last && (scale || keep); ++row) {
        for (int64_t p = graph.indptr[row]; p < graph.indptr[row + 1]; ++p) {
          const bool left = kept(keep, row) && kept(keep, graph.indices[p]);
          for (int64_t h = 0; h < op.heads; ++h) {
            float& value = out[p * op.heads + h];
            value = left ? value * (scale ? scale[row] : 1.0f) : 0.0f;
          }
        }
      }
    });
  }
}

}  // namespace
}  // namespace onp
