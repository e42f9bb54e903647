// Attention where a group of lanes holds a head and no row is cut: the forward pass and the receivers' gradients, each
// in one visit of every row.
#pragma once

#include <cmath>

#include "graph/cuda/rows.cuh"

namespace onp {
namespace {

// The row and head that a group of lanes works on, kAhead edges at a time. All groups of a warp go round together.
template <typename Index>
struct Visit {
  int64_t copy, row, head, begin, end;
  bool receives;

  __device__ Visit(const Csr& csr, const Keep& keep, int64_t item, int64_t items, int64_t heads) {
    const int64_t each = item < items ? item : items - 1, place = over(each, heads);
    head = each - place * heads, copy = over(place, csr.rows), row = place - copy * csr.rows;
    begin = start_of<Index>(csr, row), end = item < items ? start_of<Index>(csr, row + 1) : begin;
    receives = kept(keep, copy, row);
  }
  // A position that may be read for edge p: its own, or some other where the row is at its end.
  __device__ int64_t readable(int64_t p) const {
    const int64_t last = end > 0 ? end - 1 : 0;
    return p < last ? p : last;
  }
};

// The softmax is made as the edges come: sums so far are rescaled when a larger score turns up.
template <typename Index, typename Element, int V>
__global__ void __launch_bounds__(kThreads) attend_rows(const Attention op, int lanes) {
  const int lane = threadIdx.x % lanes;
  const bool mine = lane * V < op.channels;
  const int64_t items = op.copies * op.csr.rows * op.heads;
  ONP_FOR_GROUPS_TOGETHER(item, items, lanes) {
    const Visit<Index> at(op.csr, op.keep, item, items, op.heads);
    const int64_t f = at.head * op.channels + (mine ? lane * V : 0);
    const auto target = values_at<V, Element>(op.target, at.copy, at.row, f);
    const auto att = unpack<V>(op.att + f);
    float* score = op.alpha + at.copy * op.csr.edges * op.heads + at.head;
    Pack<V> sums = {};
    float most = -INFINITY, total = 0;
    bool any = false;
    for (int64_t p = at.begin; __any_sync(kAll, p < at.end); p += kAhead) {
      Pack<V> value[kAhead];
      float dot[kAhead];
      bool in[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int64_t source = source_of<Index>(op.csr, at.readable(p + u));
        in[u] = p + u < at.end && at.receives && kept(op.keep, at.copy, source);
        value[u] = values_at<V, Element>(op.source, at.copy, source, f);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        dot[u] = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const float z = value[u].at[v] + target.at[v];
          dot[u] += att.at[v] * (z > 0 ? z : op.slope * z);
        }
        dot[u] = group_sum(mine ? dot[u] : 0.0f, lanes);
      }
      float next = most;
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (in[u]) next = fmaxf(next, dot[u]);
        // Each lane keeps the scores that it will come back for.
        if (p + u < at.end && (p + u - at.begin) % lanes == lane) {
          score[(p + u) * op.heads] = in[u] ? dot[u] : -INFINITY;
        }
      }
      const float rescale = next == most ? 1.0f : expf(most - next);
      total *= rescale;
#pragma unroll
      for (int v = 0; v < V; ++v) sums.at[v] *= rescale;
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (!in[u]) continue;
        const float power = dot[u] == next ? 1.0f : expf(dot[u] - next);
        any = true;
        total += power;
#pragma unroll
        for (int v = 0; v < V; ++v) sums.at[v] += power * value[u].at[v];
      }
      most = next;
    }
    if (any && fabsf(most) == INFINITY) total = NAN;  // infinity less itself
#pragma unroll
    for (int v = 0; v < V; ++v) sums.at[v] = any ? sums.at[v] / total : 0.0f;
    if (mine && item < items) {
      const int64_t to = (at.copy * op.csr.rows + at.row) * op.heads * op.channels + f;
      put_pack(static_cast<Element*>(op.out) + to, sums);
    }
    for (int64_t p = at.begin + lane; p < at.end; p += lanes) {
      const bool in = left(op.keep, at.copy, at.row, source_of<Index>(op.csr, p));
      score[p * op.heads] = in ? expf(score[p * op.heads] - most) / total : 0.0f;
    }
  }
}

// Sums over a row's edges of alpha * (d - mean) * g, where mean is known when all have come: of alpha * d * g, and of
// alpha * g. Every d is taken relative to the first, so that nothing is left to cancel where they are alike.
template <typename Index, typename Element, int V>
__global__ void __launch_bounds__(kThreads) attend_rows_grad(const AttentionGradTarget grad, int lanes) {
  const Attention& op = grad.forward;
  const int lane = threadIdx.x % lanes;
  const bool mine = lane * V < op.channels;
  const int64_t items = op.copies * op.csr.rows * op.heads;
  ONP_FOR_GROUPS_TOGETHER(item, items, lanes) {
    const Visit<Index> at(op.csr, op.keep, item, items, op.heads);
    const int64_t f = at.head * op.channels + (mine ? lane * V : 0), all = at.copy * op.csr.edges * op.heads + at.head;
    const auto target = values_at<V, Element>(op.target, at.copy, at.row, f);
    const auto upstream = values_at<V, Element>(grad.grad, at.copy, at.row, f);
    const float* alpha = op.alpha + all;
    float* score = grad.grad_score + all;
    Pack<V> first = {}, first_att = {}, second = {}, second_att = {};
    float mean = 0, about = 0;
    bool any = false;
    for (int64_t p = at.begin; __any_sync(kAll, p < at.end); p += kAhead) {
      Pack<V> value[kAhead];
      float dot[kAhead], share[kAhead];
      bool in[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int64_t q = at.readable(p + u), source = source_of<Index>(op.csr, q);
        in[u] = p + u < at.end && at.receives && kept(op.keep, at.copy, source);
        share[u] = alpha[q * op.heads];
        value[u] = values_at<V, Element>(op.source, at.copy, source, f);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        dot[u] = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) dot[u] += upstream.at[v] * value[u].at[v];
        dot[u] = group_sum(mine ? dot[u] : 0.0f, lanes);
        if (in[u] && !any) about = dot[u], any = true;
        dot[u] -= about;
        // Each lane keeps the products that it will come back for.
        if (p + u < at.end && (p + u - at.begin) % lanes == lane) score[(p + u) * op.heads] = in[u] ? dot[u] : 0.0f;
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (!in[u]) continue;
        mean += share[u] * dot[u];
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const float z = value[u].at[v] + target.at[v], slope = share[u] * (z > 0 ? 1.0f : op.slope);
          first.at[v] += dot[u] * slope, first_att.at[v] += dot[u] * (slope * z);
          second.at[v] += slope, second_att.at[v] += slope * z;
        }
      }
    }
    if (mine && item < items) {
      const int64_t to = (at.copy * op.csr.rows + at.row) * op.heads * op.channels + f;
      const auto att = unpack<V>(op.att + f);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        first.at[v] = att.at[v] * (first.at[v] - mean * second.at[v]);
        first_att.at[v] -= mean * second_att.at[v];
      }
      put_pack(static_cast<Element*>(grad.grad_target) + to, first);
      if (grad.grad_att) put_pack(grad.grad_att + to, first_att);
    }
    for (int64_t p = at.begin + lane; p < at.end; p += lanes) {
      score[p * op.heads] = alpha[p * op.heads] * (score[p * op.heads] - mean);
    }
  }
}

}  // namespace
}  // namespace onp
