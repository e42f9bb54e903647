// Softmax over the edges of a row, and GATv2 attention in one visit per row: its neighbours' rows come from memory
// once, for the scores, and are still in the first-level cache for the weighted sum.
#pragma once

#include "cpu_spmm.h"

namespace onp {
namespace {

// Softmax over `count` edges of `heads` interleaved columns, in place. An edge of score -inf gets 0.
inline void softmax_in_place(float* score, int64_t count, int64_t heads) {
  for (int64_t h = 0; h < heads; ++h) {
    float most = -__builtin_inff();
    for (int64_t e = 0; e < count; ++e) most = score[e * heads + h] > most ? score[e * heads + h] : most;
    for (int64_t e = 0; e < count; ++e) score[e * heads + h] -= most;
  }
  int64_t at = 0;
  for (; at + kLanes <= count * heads; at += kLanes) store(score + at, exp_of(load(score + at)));
  if (at < count * heads) {
    const int lanes = static_cast<int>(count * heads - at);
    store(score + at, exp_of(load(score + at, lanes)), lanes);
  }
  for (int64_t h = 0; h < heads; ++h) {
    double total = 0;  // a hub has thousands of edges
    for (int64_t e = 0; e < count; ++e) total += score[e * heads + h];
    const float factor = static_cast<float>(1 / total);
    for (int64_t e = 0; e < count; ++e) score[e * heads + h] *= factor;
  }
}

// The same where some edges are left out: those still marked by `left(p)` false end up as 0.
template <typename Left>
inline void softmax_of_left(float* score, int64_t count, int64_t heads, const Left& left) {
  bool any = false;
  for (int64_t e = 0; e < count; ++e) {
    const bool in = left(e);
    any |= in;
    for (int64_t h = 0; !in && h < heads; ++h) score[e * heads + h] = -__builtin_inff();
  }
  if (any) return softmax_in_place(score, count, heads);
  for (int64_t at = 0; at < count * heads; ++at) score[at] = 0;
}

template <typename Index>
void edge_softmax_rows(const EdgeSoftmax& op, const Part& part) {
  const Edges<Index> graph(op.csr, 0);
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(op.keep, copy);
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      const int64_t begin = graph.indptr[row], count = graph.indptr[row + 1] - begin;
      if (count == 0) continue;  // a graph without edges has no arrays to copy
      float* out = op.out + (copy * op.csr.edges + begin) * op.heads;
      memcpy(out, of_copy(op.score, copy) + begin * op.heads, count * op.heads * sizeof(float));
      softmax_of_left(out, count, op.heads,
                      [&](int64_t e) { return kept(keep, row) && kept(keep, graph.indices[begin + e]); });
    }
  }
}

inline void softmax_grad(const float* alpha, const float* grad, float* out, int64_t count, int64_t heads) {
  for (int64_t h = 0; h < heads; ++h) {
    double sum = 0;
    for (int64_t at = h; at < count * heads; at += heads) sum += static_cast<double>(alpha[at]) * grad[at];
    const float mean = static_cast<float>(sum);
    for (int64_t at = h; at < count * heads; at += heads) out[at] = alpha[at] * (grad[at] - mean);
  }
}

template <typename Index>
void edge_softmax_grad_rows(const EdgeSoftmaxGrad& op, const Part& part) {
  const Edges<Index> graph(op.csr, 0);
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      const int64_t begin = graph.indptr[row], count = graph.indptr[row + 1] - begin, at = begin * op.heads;
      softmax_grad(of_copy(op.alpha, copy) + at, of_copy(op.grad, copy) + at,
                   op.out + copy * op.csr.edges * op.heads + at, count, op.heads);
    }
  }
}

// <att, leaky_relu(source + target)> over `width` channels.
template <typename Element>
inline float score_of(const Element* source, const Element* target, const float* att, float slope, int64_t width) {
  Vec sum = {};
  int64_t f = 0;
  for (; f + kLanes <= width; f += kLanes) {
    sum += load(att + f) * leaky_relu(load(source + f) + load(target + f), slope);
  }
  if (f < width) {
    const int lanes = static_cast<int>(width - f);
    sum += load(att + f, lanes) * leaky_relu(load(source + f, lanes) + load(target + f, lanes), slope);
  }
  return sum_of(sum);
}

template <typename Index, typename Element>
void attention_rows(const Attention& op, const Part& part) {
  const Edges<Index> graph(op.csr, op.source.row * sizeof(Element));
  const int64_t width = op.channels;
  // The weighted sum is spmm's, with alpha as weights.
  Spmm sum = {};
  sum.csr = op.csr, sum.keep = op.keep, sum.x = op.source, sum.out = op.out;
  sum.weight = {op.alpha, op.csr.edges * op.heads};
  sum.copies = op.copies, sum.heads = op.heads, sum.channels = width, sum.reduce = Reduce::sum;
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(op.keep, copy);
    const Element* sources = row_of<Element>(op.source, copy, 0);
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      const int64_t begin = graph.indptr[row], count = graph.indptr[row + 1] - begin;
      const Element* target = row_of<Element>(op.target, copy, row);
      float* alpha = op.alpha + (copy * op.csr.edges + begin) * op.heads;
      const auto left = [&](int64_t e) { return kept(keep, row) && kept(keep, graph.indices[begin + e]); };
      for (int64_t e = 0; e < count; ++e) {
        const Element* source = sources + graph.indices[begin + e] * op.source.row;
        const Element* next = sources + graph.ahead(begin + e) * op.source.row;
        for (int64_t f = 0; f < op.heads * width; f += 64 / sizeof(Element)) __builtin_prefetch(next + f);
        for (int64_t h = 0; h < op.heads; ++h) {
          const int64_t f = h * width;
          alpha[e * op.heads + h] = score_of(source + f, target + f, op.att + f, op.slope, width);
        }
      }
      keep ? softmax_of_left(alpha, count, op.heads, left) : softmax_in_place(alpha, count, op.heads);
      for_walks<kRegisters, 1, Index, Element>(
          sum, graph, copy, [&](const auto& walk) { keep ? sum_left_row(walk, row) : sum_plain_row(walk, row); });
    }
  }
}

// The derivative of leaky_relu at z.
inline Vec slope_at(Vec z, float slope) {
  return z > 0 ? broadcast(1.0f) : broadcast(slope);
}

template <typename Index, typename Element>
void attention_grad_target_rows(const AttentionGradTarget& op, const Part& part) {
  const Attention& forward = op.forward;
  const Edges<Index> graph(forward.csr, forward.source.row * sizeof(Element));
  const int64_t width = forward.channels, heads = forward.heads, features = heads * width;
  float* grad_att = op.grad_att + part.number * features;
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(forward.keep, copy);
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      const int64_t begin = graph.indptr[row], end = graph.indptr[row + 1];
      const Element* target = row_of<Element>(forward.target, copy, row);
      const Element* grad = row_of<Element>(op.grad, copy, row);
      const float* alpha = forward.alpha + copy * forward.csr.edges * heads;
      float* grad_score = op.grad_score + copy * forward.csr.edges * heads;
      Element* grad_target = static_cast<Element*>(op.grad_target) + (copy * forward.csr.rows + row) * features;
      const auto left = [&](int64_t source) { return kept(keep, row) && kept(keep, source); };
      for (int64_t p = begin; p < end; ++p) {
        const int64_t source = graph.indices[p];
        const Element* x = row_of<Element>(forward.source, copy, source);
        for (int64_t h = 0; h < heads; ++h) {
          grad_score[p * heads + h] = left(source) ? dot(grad + h * width, x + h * width, width) : 0.0f;
        }
      }
      float* own = grad_score + begin * heads;
      softmax_grad(alpha + begin * heads, own, own, end - begin, heads);
      for (int64_t h = 0; h < heads; ++h) {
        for_blocks<4>(width, [&](auto count, auto cut, int64_t offset, int lanes) {
          constexpr int kVectors = decltype(count)::value;
          constexpr bool kCut = decltype(cut)::value;
          {
            const int64_t f = h * width + offset;
            Vec to_target[kVectors] = {}, to_att[kVectors] = {}, mine[kVectors];
            for (int v = 0; v < kVectors; ++v) mine[v] = load_some<kCut>(target + f + v * kLanes, lanes);
            for (int64_t p = begin; p < end; ++p) {
              const int64_t source = graph.indices[p];
              if (!left(source)) continue;
              const float ds = grad_score[p * heads + h];
              const Element* x = row_of<Element>(forward.source, copy, source) + f;
              for (int v = 0; v < kVectors; ++v) {
                const Vec z = load_some<kCut>(x + v * kLanes, lanes) + mine[v];
                const Vec slope = ds * slope_at(z, forward.slope);
                to_target[v] += slope;
                to_att[v] += slope * z;
              }
            }
            for (int v = 0; v < kVectors; ++v) {
              const int64_t at = f + v * kLanes;
              store_some<kCut>(grad_target + at, to_target[v] * load_some<kCut>(forward.att + at, lanes), lanes);
              store_some<kCut>(grad_att + at, load_some<kCut>(grad_att + at, lanes) + to_att[v], lanes);
            }
          }
        });
      }
    }
  }
}

template <typename Index, typename Element>
void attention_grad_source_rows(const AttentionGradSource& op, const Part& part) {
  const Attention& forward = op.forward;
  const Edges<Index> graph(forward.csr, 2 * forward.target.row * sizeof(Element));  // transposed: its rows are the sources
  const int64_t width = forward.channels, heads = forward.heads, features = heads * width;
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(forward.keep, copy);
    const float* alpha = forward.alpha + copy * forward.csr.edges * heads;
    const float* grad_score = op.grad_score + copy * forward.csr.edges * heads;
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      const int64_t begin = graph.indptr[row], end = graph.indptr[row + 1];
      const Element* source = row_of<Element>(forward.source, copy, row);
      Element* out = static_cast<Element*>(op.grad_source) + (copy * forward.csr.rows + row) * features;
      for (int64_t h = 0; h < heads; ++h) {
        for_blocks<4>(width, [&](auto count, auto cut, int64_t offset, int lanes) {
          constexpr int kVectors = decltype(count)::value;
          constexpr bool kCut = decltype(cut)::value;
          {
            const int64_t f = h * width + offset;
            Vec by_value[kVectors] = {}, by_score[kVectors] = {}, mine[kVectors];
            for (int v = 0; v < kVectors; ++v) mine[v] = load_some<kCut>(source + f + v * kLanes, lanes);
            for (int64_t p = begin; p < end; ++p) {
              const int64_t receiver = graph.indices[p];
              prefetch<kVectors>(row_of<Element>(forward.target, copy, graph.ahead(p)) + f);
              prefetch<kVectors>(row_of<Element>(op.grad, copy, graph.ahead(p)) + f);
              if (!(kept(keep, row) && kept(keep, receiver))) continue;
              const int64_t e = graph.number(p) * heads + h;
              const Element* target = row_of<Element>(forward.target, copy, receiver) + f;
              const Element* grad = row_of<Element>(op.grad, copy, receiver) + f;
              for (int v = 0; v < kVectors; ++v) {
                const Vec z = mine[v] + load_some<kCut>(target + v * kLanes, lanes);
                by_value[v] += alpha[e] * load_some<kCut>(grad + v * kLanes, lanes);
                by_score[v] += grad_score[e] * slope_at(z, forward.slope);
              }
            }
            for (int v = 0; v < kVectors; ++v) {
              const int64_t at = f + v * kLanes;
              store_some<kCut>(out + at, by_value[v] + by_score[v] * load_some<kCut>(forward.att + at, lanes), lanes);
            }
          }
        });
      }
    }
  }
}

}  // namespace
}  // namespace onp
