// Softmax over the edges of a row, and its gradient.
#pragma once

#include "graph/cpu/rows.h"

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

// The scores of the edges that are left, and -inf for the others; false where no edge is left. out may be score.
template <typename Left>
inline bool scores_of_left(const float* score, float* out, int64_t count, int64_t heads, const Left& left) {
  bool any = false;
  for (int64_t e = 0; e < count; ++e) {
    const bool in = left(e);
    any |= in;
    for (int64_t h = 0; h < heads; ++h) out[e * heads + h] = in ? score[e * heads + h] : -__builtin_inff();
  }
  return any;
}

// Rows of one column that fit a register, up to four. One after the other they would wait for their sums, and where the
// result replaces what it is made of, for the register stored before, which reaches into the row behind.
struct ShortRows {
  static constexpr int kMost = 4;
  int64_t begin[kMost];
  int lanes[kMost], count = 0;

  static bool fit(int64_t edges, int64_t heads) { return heads == 1 && edges <= kLanes; }

  // Adds a row; calls visit(*this) once there are as many as there may be.
  template <typename Visit>
  void add(int64_t first, int64_t edges, const Visit& visit) {
    begin[count] = first, lanes[count] = static_cast<int>(edges);
    if (++count == kMost) flush(visit);
  }
  template <typename Visit>
  void flush(const Visit& visit) {
    if (count == 0) return;
    for (; count < kMost; ++count) begin[count] = begin[0], lanes[count] = 0;
    visit(*this);
    count = 0;
  }
};

inline void softmax_of_short(const ShortRows& rows, const float* score, float* out) {
  Vec value[ShortRows::kMost];
  float most[ShortRows::kMost], total[ShortRows::kMost];
  for (int r = 0; r < ShortRows::kMost; ++r) {
    value[r] = first_lanes(rows.lanes[r], load(score + rows.begin[r], rows.lanes[r]), broadcast(-__builtin_inff()));
  }
  largest_of(value, most);
  for (int r = 0; r < ShortRows::kMost; ++r) {
    value[r] = first_lanes(rows.lanes[r], exp_of(value[r] - most[r]), Vec{});
  }
  sums_of(value, total);
  for (int r = 0; r < ShortRows::kMost; ++r) store(out + rows.begin[r], value[r] * (1 / total[r]), rows.lanes[r]);
}

// Softmax over each of the rows [first, last), of the edges that `keep` leaves; the others get 0. out may be score.
template <typename Index>
inline void softmax_of_rows(const Edges<Index>& graph, int64_t first, int64_t last, const float* score, float* out,
                            int64_t heads, const uint8_t* keep) {
  ShortRows rows;
  const float* given = keep ? out : score;
  const auto together = [&](const ShortRows& rows) { softmax_of_short(rows, given, out); };
  for (int64_t row = first; row < last; ++row) {
    const int64_t begin = graph.indptr[row], count = graph.indptr[row + 1] - begin, at = begin * heads;
    const auto left = [&](int64_t e) { return kept(keep, row) && kept(keep, graph.indices[begin + e]); };
    if (keep && !scores_of_left(score + at, out + at, count, heads, left)) {
      for (int64_t e = 0; e < count * heads; ++e) out[at + e] = 0;
    } else if (ShortRows::fit(count, heads)) {
      rows.add(begin, count, together);
    } else {
      softmax(given + at, out + at, count, heads);
    }
  }
  rows.flush(together);
}

template <typename Index>
void edge_softmax_rows(const EdgeSoftmax& op, const Part& part) {
  const Edges<Index> graph(op.csr, 0);
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    softmax_of_rows(graph, part.first_row, part.last_row, of_copy(op.score, copy),
                    op.out + copy * op.csr.edges * op.heads, op.heads, of_copy(op.keep, copy));
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

inline void softmax_grad_of_short(const ShortRows& rows, const float* alpha, const float* grad, float* out) {
  Vec share[ShortRows::kMost], upstream[ShortRows::kMost], product[ShortRows::kMost];
  float mean[ShortRows::kMost];
  for (int r = 0; r < ShortRows::kMost; ++r) {
    share[r] = load(alpha + rows.begin[r], rows.lanes[r]);
    upstream[r] = load(grad + rows.begin[r], rows.lanes[r]);
    product[r] = share[r] * upstream[r];
  }
  sums_of(product, mean);
  for (int r = 0; r < ShortRows::kMost; ++r) {
    store(out + rows.begin[r], share[r] * (upstream[r] - mean[r]), rows.lanes[r]);
  }
}

// The same for each of the rows [first, last).
template <typename Index>
inline void softmax_grad_of_rows(const Edges<Index>& graph, int64_t first, int64_t last, const float* alpha,
                                 const float* grad, float* out, int64_t heads) {
  ShortRows rows;
  const auto together = [&](const ShortRows& rows) { softmax_grad_of_short(rows, alpha, grad, out); };
  for (int64_t row = first; row < last; ++row) {
    const int64_t begin = graph.indptr[row], count = graph.indptr[row + 1] - begin, at = begin * heads;
    if (ShortRows::fit(count, heads)) {
      rows.add(begin, count, together);
    } else {
      softmax_grad(alpha + at, grad + at, out + at, count, heads);
    }
  }
  rows.flush(together);
}

template <typename Index>
void edge_softmax_grad_rows(const EdgeSoftmaxGrad& op, const Part& part) {
  const Edges<Index> graph(op.csr, 0);
  for (int64_t copy = part.first_copy; copy < part.last_copy; ++copy) {
    softmax_grad_of_rows(graph, part.first_row, part.last_row, of_copy(op.alpha, copy), of_copy(op.grad, copy),
                         op.out + copy * op.csr.edges * op.heads, op.heads);
  }
}

}  // namespace
}  // namespace onp
