// Softmax over the edges of a row, and its gradient.
#pragma once

#include "cpu_rows.h"

namespace onp {
namespace {

// Calls visit(at, cut, lanes) for the vectors of `count` values, the last of which may be cut.
template <typename Visit>
inline void for_vectors(int64_t count, const Visit& visit) {
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) visit(at, Constant<false>{}, 0);
  if (at < count) visit(at, Constant<true>{}, static_cast<int>(count - at));
}

// Softmax over `count` edges. An edge of score -inf gets 0. out may be score.
inline void softmax_of_one_head(const float* score, float* out, int64_t count) {
  const Vec lowest = broadcast(-__builtin_inff());
  if (count > 0 && count <= kLanes) {  // most rows: all in one register
    const int lanes = static_cast<int>(count);
    const Vec value = first_lanes(lanes, lanes < kLanes ? load(score, lanes) : load(score), lowest);
    const Vec power = first_lanes(lanes, exp_of(value - largest_of(value)), Vec{});
    const Vec alpha = power * (1 / sum_of(power));
    return lanes < kLanes ? store(out, alpha, lanes) : store(out, alpha);
  }
  Vec most = lowest;
  for_vectors(count, [&](int64_t at, auto cut, int lanes) {
    const Vec value = load_some<cut.value>(score + at, lanes);
    const Vec seen = cut.value ? first_lanes(lanes, value, most) : value;
    most = seen > most ? seen : most;
  });
  const float top = largest_of(most);
  double total = 0;  // a hub has thousands of edges
  for_vectors(count, [&](int64_t at, auto cut, int lanes) {
    const Vec power = exp_of(load_some<cut.value>(score + at, lanes) - top);
    store_some<cut.value>(out + at, power, lanes);
    total += sum_of(cut.value ? first_lanes(lanes, power, Vec{}) : power);
  });
  const float factor = static_cast<float>(1 / total);
  for_vectors(count, [&](int64_t at, auto cut, int lanes) {
    store_some<cut.value>(out + at, load_some<cut.value>(out + at, lanes) * factor, lanes);
  });
}

// The same for `heads` interleaved columns.
inline void softmax(const float* score, float* out, int64_t count, int64_t heads) {
  if (heads == 1) return softmax_of_one_head(score, out, count);
  for (int64_t h = 0; h < heads; ++h) {
    float most = -__builtin_inff();
    for (int64_t e = 0; e < count; ++e) most = score[e * heads + h] > most ? score[e * heads + h] : most;
    for (int64_t e = 0; e < count; ++e) out[e * heads + h] = score[e * heads + h] - most;
  }
  for_vectors(count * heads, [&](int64_t at, auto cut, int lanes) {
    store_some<cut.value>(out + at, exp_of(load_some<cut.value>(out + at, lanes)), lanes);
  });
  for (int64_t h = 0; h < heads; ++h) {
    double total = 0;
    for (int64_t e = 0; e < count; ++e) total += out[e * heads + h];
    const float factor = static_cast<float>(1 / total);
    for (int64_t e = 0; e < count; ++e) out[e * heads + h] *= factor;
  }
}

// The same where some edges are left out: left(e) tells which are not. The others get 0.
template <typename Left>
inline void softmax_of_left(const float* score, float* out, int64_t count, int64_t heads, const Left& left) {
  bool any = false;
  for (int64_t e = 0; e < count; ++e) {
    const bool in = left(e);
    any |= in;
    for (int64_t h = 0; h < heads; ++h) out[e * heads + h] = in ? score[e * heads + h] : -__builtin_inff();
  }
  if (any) return softmax(out, out, count, heads);
  for (int64_t at = 0; at < count * heads; ++at) out[at] = 0;
}

template <typename Index>
void edge_softmax_rows(const EdgeSoftmax& op, const Part& part) {
  const Edges<Index> graph(op.csr, 0);
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    const uint8_t* keep = of_copy(op.keep, copy);
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
      const int64_t begin = graph.indptr[row], count = graph.indptr[row + 1] - begin;
      const auto left = [&](int64_t e) { return kept(keep, row) && kept(keep, graph.indices[begin + e]); };
      const float* score = of_copy(op.score, copy) + begin * op.heads;
      float* out = op.out + (copy * op.csr.edges + begin) * op.heads;
      keep ? softmax_of_left(score, out, count, op.heads, left) : softmax(score, out, count, op.heads);
    }
  }
}

// out may be grad.
inline void softmax_grad(const float* alpha, const float* grad, float* out, int64_t count, int64_t heads) {
  if (heads == 1) {
    double sum = 0;
    for_vectors(count, [&](int64_t at, auto cut, int lanes) {
      sum += sum_of(load_some<cut.value>(alpha + at, lanes) * load_some<cut.value>(grad + at, lanes));
    });
    const float mean = static_cast<float>(sum);
    return for_vectors(count, [&](int64_t at, auto cut, int lanes) {
      const Vec centred = load_some<cut.value>(grad + at, lanes) - mean;
      store_some<cut.value>(out + at, load_some<cut.value>(alpha + at, lanes) * centred, lanes);
    });
  }
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

}  // namespace
}  // namespace onp
