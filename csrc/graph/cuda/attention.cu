// Edge softmax and GATv2 attention on CUDA. Attention visits each row once where no row is cut and a group of lanes
// holds a head; otherwise it makes scores edge by edge, their softmax row by row, then the weighted sum.
#include <cmath>

#include "graph/cuda/attention_rows.cuh"
#include "graph/cuda/rows.cuh"

namespace onp {
namespace {

__device__ inline float warp_sum(float value) {
  for (int step = kWarp / 2; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}
__device__ inline float warp_max(float value) {
  for (int step = kWarp / 2; step; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// One warp a row and head, its lanes along the edges. score may be out.
template <typename Index>
__global__ void __launch_bounds__(kThreads) softmax_rows(const EdgeSoftmax op) {
  const int lane = threadIdx.x % kWarp;
  ONP_FOR_GROUPS(item, op.copies * op.csr.rows * op.heads, kWarp) {
    const int64_t head = item % op.heads, row = item / op.heads % op.csr.rows, copy = item / op.heads / op.csr.rows;
    const int64_t begin = start_of<Index>(op.csr, row), end = start_of<Index>(op.csr, row + 1);
    const float* score = op.score.data + copy * op.score.copy + head;
    float* out = op.out + copy * op.csr.edges * op.heads + head;
    float most = -INFINITY, total = 0;
    for (int64_t p = begin + lane; p < end; p += kWarp) {
      if (left(op.keep, copy, row, source_of<Index>(op.csr, p))) most = fmaxf(most, score[p * op.heads]);
    }
    most = warp_max(most);
    for (int64_t p = begin + lane; p < end; p += kWarp) {
      const bool in = left(op.keep, copy, row, source_of<Index>(op.csr, p));
      const float power = in ? expf(score[p * op.heads] - most) : 0.0f;
      total += power;
      out[p * op.heads] = power;
    }
    total = warp_sum(total);
    for (int64_t p = begin + lane; p < end; p += kWarp) {
      if (left(op.keep, copy, row, source_of<Index>(op.csr, p))) out[p * op.heads] /= total;
    }
  }
}

template <typename Index>
__global__ void __launch_bounds__(kThreads) softmax_grad_rows(const EdgeSoftmaxGrad op) {
  const int lane = threadIdx.x % kWarp;
  ONP_FOR_GROUPS(item, op.copies * op.csr.rows * op.heads, kWarp) {
    const int64_t head = item % op.heads, row = item / op.heads % op.csr.rows, copy = item / op.heads / op.csr.rows;
    const int64_t begin = start_of<Index>(op.csr, row), end = start_of<Index>(op.csr, row + 1);
    const float* alpha = op.alpha.data + copy * op.alpha.copy + head;
    const float* grad = op.grad.data + copy * op.grad.copy + head;
    float* out = op.out + copy * op.csr.edges * op.heads + head;
    float mean = 0;
    for (int64_t p = begin + lane; p < end; p += kWarp) mean += alpha[p * op.heads] * grad[p * op.heads];
    mean = warp_sum(mean);
    for (int64_t p = begin + lane; p < end; p += kWarp) {
      out[p * op.heads] = alpha[p * op.heads] * (grad[p * op.heads] - mean);
    }
  }
}

template <typename Element, int V>
struct ScoreTerm {
  static constexpr int kWidth = V;
  Attention op;
  __device__ float operator()(int64_t copy, int64_t row, int64_t source, int64_t, int64_t f) const {
    const auto from = values_at<V, Element>(op.source, copy, source, f);
    const auto to = values_at<V, Element>(op.target, copy, row, f);
    const auto att = unpack<V>(op.att + f);
    float sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float z = from.at[v] + to.at[v];
      sum += att.at[v] * (z > 0 ? z : op.slope * z);
    }
    return sum;
  }
};

// What a receiver gathers: the gradients of its own features and of att.
template <typename Element, int V>
struct ToTarget {
  static constexpr int kWidth = V, kSums = 2;
  struct Begun {
    Pack<V> target;
    int64_t head;
  };
  struct Loaded {
    Pack<V> source;
    float ds;
  };
  AttentionGradTarget op;

  __device__ Begun begin(int64_t copy, int64_t row, int64_t f) const {
    return {values_at<V, Element>(op.forward.target, copy, row, f), over(f, op.forward.channels)};
  }
  __device__ Loaded load(const Begun& begun, int64_t copy, int64_t source, int64_t edge, int64_t f) const {
    const Attention& forward = op.forward;
    return {values_at<V, Element>(forward.source, copy, source, f),
            op.grad_score[(copy * forward.csr.edges + edge) * forward.heads + begun.head]};
  }
  __device__ void add(Sums<ToTarget>& sums, const Begun& begun, const Loaded& loaded) const {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float z = loaded.source.at[v] + begun.target.at[v];
      const float slope = loaded.ds * (z > 0 ? 1.0f : op.forward.slope);
      sums.of[0].at[v] += slope;
      sums.of[1].at[v] += slope * z;
    }
  }
  __device__ void finish(int64_t copy, int64_t row, int64_t f, Sums<ToTarget>& sums, int64_t) const {
    const int64_t at = (copy * op.forward.csr.rows + row) * op.forward.heads * op.forward.channels + f;
    const auto att = unpack<V>(op.forward.att + f);
#pragma unroll
    for (int v = 0; v < V; ++v) sums.of[0].at[v] *= att.at[v];
    put_pack(static_cast<Element*>(op.grad_target) + at, sums.of[0]);
    if (op.grad_att) put_pack(op.grad_att + at, sums.of[1]);
  }
};

// What a sender gathers: through the value it sends, and through the score.
template <typename Element, int V>
struct ToSource {
  static constexpr int kWidth = V, kSums = 2;
  struct Begun {
    Pack<V> source;
    int64_t head;
  };
  struct Loaded {
    Pack<V> target, grad;
    float alpha, ds;
  };
  AttentionGradSource op;

  __device__ Begun begin(int64_t copy, int64_t row, int64_t f) const {
    return {values_at<V, Element>(op.forward.source, copy, row, f), over(f, op.forward.channels)};
  }
  __device__ Loaded load(const Begun& begun, int64_t copy, int64_t receiver, int64_t edge, int64_t f) const {
    const Attention& forward = op.forward;
    const int64_t at = (copy * forward.csr.edges + edge) * forward.heads + begun.head;
    return {values_at<V, Element>(forward.target, copy, receiver, f), values_at<V, Element>(op.grad, copy, receiver, f),
            forward.alpha[at], op.grad_score[at]};
  }
  __device__ void add(Sums<ToSource>& sums, const Begun& begun, const Loaded& loaded) const {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float z = begun.source.at[v] + loaded.target.at[v];
      sums.of[0].at[v] += loaded.alpha * loaded.grad.at[v];
      sums.of[1].at[v] += loaded.ds * (z > 0 ? 1.0f : op.forward.slope);
    }
  }
  __device__ void finish(int64_t copy, int64_t row, int64_t f, Sums<ToSource>& sums, int64_t) const {
    const int64_t at = (copy * op.forward.csr.rows + row) * op.forward.heads * op.forward.channels + f;
    const auto att = unpack<V>(op.forward.att + f);
#pragma unroll
    for (int v = 0; v < V; ++v) sums.of[0].at[v] += att.at[v] * sums.of[1].at[v];
    put_pack(static_cast<Element*>(op.grad_source) + at, sums.of[0]);
  }
};

// Whether blocks of four features may be moved at once in all arrays of the op and its gradients.
bool in_fours(const Attention& op) {
  return op.channels % 4 == 0 && in_fours(op.source, op.bf16) && in_fours(op.target, op.bf16) && in_fours(op.att, 4) &&
         in_fours(op.partial, 4);
}

// Whether a group of lanes holds a head and no row is cut.
bool at_one_go(const Attention& op, int width) {
  return !op.csr.segment_row && op.channels > 0 && op.channels <= kWarp * width;
}

}  // namespace

const char* run_cuda(const EdgeSoftmax& op, void* stream) {
  const int64_t items = op.copies * op.csr.rows * op.heads;
  if (items == 0) return nullptr;
  with_types(op.csr, false, [&](auto index, auto) {
    softmax_rows<decltype(index)><<<blocks_for(items * kWarp), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(op);
  });
  return launch_error();
}

const char* run_cuda(const EdgeSoftmaxGrad& op, void* stream) {
  const int64_t items = op.copies * op.csr.rows * op.heads;
  if (items == 0) return nullptr;
  with_types(op.csr, false, [&](auto index, auto) {
    softmax_grad_rows<decltype(index)>
        <<<blocks_for(items * kWarp), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(op);
  });
  return launch_error();
}

const char* run_cuda(const Attention& op, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t items = op.copies * op.csr.rows * op.heads;
  if (items == 0) return nullptr;
  const bool fours = in_fours(op) && in_fours(op.out, op.bf16 ? 2 : 4), one_go = at_one_go(op, fours ? 4 : 1);
  with_types(op.csr, op.bf16, fours, [&](auto index, auto element, auto width) {
    using Index = decltype(index);
    using Element = decltype(element);
    constexpr int V = decltype(width)::value;
    if (one_go) {
      const int lanes = lanes_for(op.channels / V);
      attend_rows<Index, Element, V><<<blocks_for(items * lanes), kThreads, 0, queue>>>(op, lanes);
    } else {
      for_edges<Index>(op.csr, op.keep, op.copies, op.heads, op.channels, ScoreTerm<Element, V>{op}, op.alpha, queue);
    }
  });
  if (one_go) return launch_error();
  const Values alpha{op.alpha, op.csr.edges * op.heads};
  if (const char* error = run_cuda(EdgeSoftmax{op.csr, op.keep, alpha, op.alpha, op.copies, op.heads}, stream)) {
    return error;
  }
  Spmm sum = {};
  sum.csr = op.csr, sum.keep = op.keep, sum.x = op.source, sum.weight = alpha, sum.out = op.out;
  sum.partial = op.partial, sum.copies = op.copies, sum.heads = op.heads, sum.channels = op.channels;
  sum.reduce = Reduce::sum, sum.bf16 = op.bf16;
  return run_cuda(sum, stream);
}

const char* run_cuda(const AttentionGradTarget& op, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const Attention& forward = op.forward;
  const int64_t items = forward.copies * forward.csr.rows * forward.heads;
  if (items == 0) return nullptr;
  const bool fours = in_fours(forward) && in_fours(op.grad, forward.bf16) &&
                     in_fours(op.grad_target, forward.bf16 ? 2 : 4) && in_fours(op.grad_att, 4);
  if (at_one_go(forward, fours ? 4 : 1)) {
    with_types(forward.csr, forward.bf16, fours, [&](auto index, auto element, auto width) {
      constexpr int V = decltype(width)::value;
      const int lanes = lanes_for(forward.channels / V);
      attend_rows_grad<decltype(index), decltype(element), V>
          <<<blocks_for(items * lanes), kThreads, 0, queue>>>(op, lanes);
    });
    return launch_error();
  }
  const EdgeDot dot{forward.csr,   forward.keep,   op.grad,       forward.source,   Values{},
                    op.grad_score, forward.copies, forward.heads, forward.channels, forward.bf16};
  if (const char* error = run_cuda(dot, stream)) return error;
  const int64_t copy = forward.csr.edges * forward.heads;
  const EdgeSoftmaxGrad softmax{
      forward.csr,  Values{forward.alpha, copy}, Values{op.grad_score, copy}, op.grad_score, forward.copies,
      forward.heads};
  if (const char* error = run_cuda(softmax, stream)) return error;
  with_types(forward.csr, forward.bf16, fours, [&](auto index, auto element, auto width) {
    sum_over_edges<decltype(index)>(forward.csr, forward.keep, forward.copies, forward.heads * forward.channels,
                                    ToTarget<decltype(element), decltype(width)::value>{op}, forward.partial, queue);
  });
  return launch_error();
}

const char* run_cuda(const AttentionGradSource& op, void* stream) {
  const Attention& forward = op.forward;
  const bool fours =
      in_fours(forward) && in_fours(op.grad, forward.bf16) && in_fours(op.grad_source, forward.bf16 ? 2 : 4);
  with_types(forward.csr, forward.bf16, fours, [&](auto index, auto element, auto width) {
    sum_over_edges<decltype(index)>(forward.csr, forward.keep, forward.copies, forward.heads * forward.channels,
                                    ToSource<decltype(element), decltype(width)::value>{op}, forward.partial,
                                    static_cast<cudaStream_t>(stream));
  });
  return launch_error();
}

}  // namespace onp
