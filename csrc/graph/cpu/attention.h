// GATv2 attention, a few rows at a time: their neighbours' rows come from memory once, for the scores, and are still in
// a cache for the weighted sum. Row by row the vectors of the softmax would wait for the scores to be written.
#pragma once

#include "graph/cpu/edges.h"
#include "graph/cpu/softmax.h"
#include "graph/cpu/spmm.h"

namespace onp {
namespace {

constexpr int kBlock = 4;  // registers of features at a time in the gradients, which add up to three sums of each

template <int Vectors, bool Cut>
struct ScoreTerm {
  Vec mine[Vectors], att[Vectors];
  float slope;

  template <typename Element>
  ScoreTerm(const Element* target, const float* att_, float slope_, int lanes) : slope(slope_) {
    for (int v = 0; v < Vectors; ++v) mine[v] = load_some<Cut>(target + v * kLanes, lanes);
    for (int v = 0; v < Vectors; ++v) att[v] = load_some<Cut>(att_ + v * kLanes, lanes);
  }
  Vec operator()(int v, Vec value) const { return att[v] * leaky_relu(value + mine[v], slope); }
};

template <typename Index, typename Element>
void attention_rows(const Attention& op, const Part& part) {
  const Edges<Index> graph(op.csr, op.source.row * sizeof(Element));
  const int64_t width = op.channels, heads = op.heads;
  // The weighted sum is spmm's, with alpha as weights.
  Spmm sum = {};
  sum.csr = op.csr, sum.keep = op.keep, sum.x = op.source, sum.out = op.out;
  sum.weight = {op.alpha, op.csr.edges * heads};
  sum.copies = op.copies, sum.heads = heads, sum.channels = width, sum.reduce = Reduce::sum;
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(op.keep, copy);
    float* alpha = op.alpha + copy * op.csr.edges * heads;
    for_batches(graph, heads * width * sizeof(Element), part, [&](int64_t first, int64_t last) {
      const auto term_of = [&](int64_t row, auto vectors, auto cut, int64_t f, int lanes) {
        const Element* target = row_of<Element>(op.target, copy, row) + f;
        return ScoreTerm<decltype(vectors)::value, decltype(cut)::value>(target, op.att + f, op.slope, lanes);
      };
      sums_of_edges<Element>(graph, first, last, op.source, copy, heads, width, alpha, term_of);
      softmax_of_rows(graph, first, last, alpha, alpha, heads, keep);
      for_walks<kRegisters, 1, Index, Element>(sum, graph, copy, [&](const auto& walk) {
        for (int64_t row = first; row < last; ++row) keep ? sum_left_row(walk, row) : sum_plain_row(walk, row);
      });
    });
  }
}

// The sum of the terms times leaky_relu's derivative: 1 for those above zero, `slope` for the rest of `total`.
inline Vec sloped(Vec above, float total, float slope) {
  return above * (1 - slope) + total * slope;
}

template <typename Index, typename Element>
void attention_grad_target_rows(const AttentionGradTarget& op, const Part& part) {
  const Attention& forward = op.forward;
  const Edges<Index> graph(forward.csr, forward.source.row * sizeof(Element));
  const int64_t width = forward.channels, heads = forward.heads, features = heads * width;
  float* grad_att = op.grad_att ? op.grad_att + part.number * features : nullptr;
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(forward.keep, copy);
    const float* alpha = forward.alpha + copy * forward.csr.edges * heads;
    float* grad_score = op.grad_score + copy * forward.csr.edges * heads;
    const auto left = [&](int64_t row, int64_t p) { return kept(keep, row) && kept(keep, graph.indices[p]); };
    for_batches(graph, heads * width * sizeof(Element), part, [&](int64_t first, int64_t last) {
      const auto term_of = [&](int64_t row, auto vectors, auto cut, int64_t f, int lanes) {
        const Element* grad = row_of<Element>(op.grad, copy, row) + f;
        return DotTerm<decltype(vectors)::value, decltype(cut)::value>(grad, lanes);
      };
      sums_of_edges<Element>(graph, first, last, forward.source, copy, heads, width, grad_score, term_of);
      for (int64_t row = first; keep && row < last; ++row) {
        for (int64_t p = graph.indptr[row]; p < graph.indptr[row + 1]; ++p) {
          for (int64_t h = 0; h < heads && !left(row, p); ++h) grad_score[p * heads + h] = 0;
        }
      }
      softmax_grad_of_rows(graph, first, last, alpha, grad_score, grad_score, heads);
      const auto gather = [&](auto for_att, auto vectors, auto cut, int64_t h, int64_t offset, int lanes) {
        constexpr int kVectors = decltype(vectors)::value;
        constexpr bool kCut = decltype(cut)::value;
        const int64_t f = h * width + offset;
        Vec to_att[kVectors] = {};
        for (int64_t row = first; row < last; ++row) {
          const Element* target = row_of<Element>(forward.target, copy, row) + f;
          Vec above[kVectors] = {}, mine[kVectors];
          float total = 0;
          for (int v = 0; v < kVectors; ++v) mine[v] = load_some<kCut>(target + v * kLanes, lanes);
          for (int64_t p = graph.indptr[row]; p < graph.indptr[row + 1]; ++p) {
            if (!left(row, p)) continue;
            const float ds = grad_score[p * heads + h];
            const Element* x = row_of<Element>(forward.source, copy, graph.indices[p]) + f;
            total += ds;
            for (int v = 0; v < kVectors; ++v) {
              const Vec z = load_some<kCut>(x + v * kLanes, lanes) + mine[v];
              above[v] = add_where_above(z, Vec{}, above[v], broadcast(ds));
              if (for_att.value) to_att[v] += ds * leaky_relu(z, forward.slope);
            }
          }
          Element* to = static_cast<Element*>(op.grad_target) + (copy * forward.csr.rows + row) * features + f;
          for (int v = 0; v < kVectors; ++v) {
            const Vec att = load_some<kCut>(forward.att + f + v * kLanes, lanes);
            store_some<kCut>(to + v * kLanes, att * sloped(above[v], total, forward.slope), lanes);
          }
        }
        for (int v = 0; for_att.value && v < kVectors; ++v) {
          float* to = grad_att + f + v * kLanes;
          store_some<kCut>(to, load_some<kCut>(to, lanes) + to_att[v], lanes);
        }
      };
      for_heads<kBlock>(heads, width, [&](auto... block) {
        op.grad_att ? gather(Constant<true>{}, block...) : gather(Constant<false>{}, block...);
      });
    });
  }
}

template <typename Index, typename Element>
void attention_grad_source_rows(const AttentionGradSource& op, const Part& part) {
  const Attention& forward = op.forward;
  const Edges<Index> graph(forward.csr,
                           2 * forward.target.row * sizeof(Element));  // transposed: its rows are the sources
  const int64_t width = forward.channels, heads = forward.heads, features = heads * width;
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(forward.keep, copy);
    const float* alpha = forward.alpha + copy * forward.csr.edges * heads;
    const float* grad_score = op.grad_score + copy * forward.csr.edges * heads;
    for_heads<kBlock>(heads, width, [&](auto vectors, auto cut, int64_t h, int64_t offset, int lanes) {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr bool kCut = decltype(cut)::value;
      const int64_t f = h * width + offset;
      const Element* targets = row_of<Element>(forward.target, copy, 0) + f;
      const Element* grads = row_of<Element>(op.grad, copy, 0) + f;
      for (int64_t row = part.first_row; row < part.last_row; ++row) {
        const Element* source = row_of<Element>(forward.source, copy, row) + f;
        Vec by_value[kVectors] = {}, above[kVectors] = {}, bound[kVectors];
        float total = 0;
        for (int v = 0; v < kVectors; ++v) bound[v] = -load_some<kCut>(source + v * kLanes, lanes);
        for (int64_t p = graph.indptr[row]; p < graph.indptr[row + 1]; ++p) {
          const int64_t receiver = graph.indices[p], e = graph.number(p) * heads + h;
          if (graph.far) prefetch<kVectors>(targets + graph.ahead(p) * forward.target.row);
          if (graph.far) prefetch<kVectors>(grads + graph.ahead(p) * op.grad.row);
          if (!(kept(keep, row) && kept(keep, receiver))) continue;
          const float weight = alpha[e], ds = grad_score[e];
          total += ds;
          for (int v = 0; v < kVectors; ++v) {
            by_value[v] += weight * load_some<kCut>(grads + receiver * op.grad.row + v * kLanes, lanes);
            const Vec target = load_some<kCut>(targets + receiver * forward.target.row + v * kLanes, lanes);
            above[v] = add_where_above(target, bound[v], above[v], broadcast(ds));  // source + target > 0
          }
        }
        Element* to = static_cast<Element*>(op.grad_source) + (copy * forward.csr.rows + row) * features + f;
        for (int v = 0; v < kVectors; ++v) {
          const Vec att = load_some<kCut>(forward.att + f + v * kLanes, lanes);
          store_some<kCut>(to + v * kLanes, by_value[v] + att * sloped(above[v], total, forward.slope), lanes);
        }
      }
    });
  }
}

}  // namespace
}  // namespace onp
