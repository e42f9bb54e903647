// Edge softmax and GATv2 attention on CUDA: scores edge by edge, their softmax row by row, then the weighted sum.
#include <cmath>

#include "cuda_rows.cuh"

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

template <typename Element>
struct ScoreTerm {
  Attention op;
  __device__ float operator()(int64_t copy, int64_t row, int64_t source, int64_t, int64_t f) const {
    const float z = value_at<Element>(op.source, copy, source, f) + value_at<Element>(op.target, copy, row, f);
    return op.att[f] * (z > 0 ? z : op.slope * z);
  }
};

struct Two {
  float first, second;
};
__device__ inline Two operator+(Two a, Two b) {
  return {a.first + b.first, a.second + b.second};
}

// What a receiver gathers: the gradients of its own features and of att.
template <typename Element>
struct ToTarget {
  using Sums = Two;
  AttentionGradTarget op;

  __device__ Two add(int64_t copy, int64_t row, int64_t source, int64_t edge, int64_t f) const {
    const Attention& forward = op.forward;
    const float z =
        value_at<Element>(forward.source, copy, source, f) + value_at<Element>(forward.target, copy, row, f);
    const float ds = op.grad_score[(copy * forward.csr.edges + edge) * forward.heads + f / forward.channels];
    const float slope = ds * (z > 0 ? 1.0f : forward.slope);
    return {slope, slope * z};
  }
  __device__ void finish(int64_t copy, int64_t row, int64_t f, Two total) const {
    const int64_t at = (copy * op.forward.csr.rows + row) * op.forward.heads * op.forward.channels + f;
    put(static_cast<Element*>(op.grad_target) + at, total.first * op.forward.att[f]);
    if (op.grad_att) op.grad_att[at] = total.second;
  }
};

// What a sender gathers: through the value it sends, and through the score.
template <typename Element>
struct ToSource {
  using Sums = Two;
  AttentionGradSource op;

  __device__ Two add(int64_t copy, int64_t row, int64_t receiver, int64_t edge, int64_t f) const {
    const Attention& forward = op.forward;
    const float z =
        value_at<Element>(forward.source, copy, row, f) + value_at<Element>(forward.target, copy, receiver, f);
    const int64_t at = (copy * forward.csr.edges + edge) * forward.heads + f / forward.channels;
    return {forward.alpha[at] * value_at<Element>(op.grad, copy, receiver, f),
            op.grad_score[at] * (z > 0 ? 1.0f : forward.slope)};
  }
  __device__ void finish(int64_t copy, int64_t row, int64_t f, Two total) const {
    const int64_t at = (copy * op.forward.csr.rows + row) * op.forward.heads * op.forward.channels + f;
    put(static_cast<Element*>(op.grad_source) + at, total.first + op.forward.att[f] * total.second);
  }
};

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
  with_types(op.csr, op.bf16, [&](auto index, auto element) {
    for_edges<decltype(index)>(op.csr, op.keep, op.copies, op.heads, op.channels, ScoreTerm<decltype(element)>{op},
                               op.alpha, static_cast<cudaStream_t>(stream));
  });
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
  const Attention& forward = op.forward;
  const EdgeDot dot{forward.csr,   forward.keep,   op.grad,       forward.source,   Values{},
                    op.grad_score, forward.copies, forward.heads, forward.channels, forward.bf16};
  if (const char* error = run_cuda(dot, stream)) return error;
  const int64_t copy = forward.csr.edges * forward.heads;
  const EdgeSoftmaxGrad softmax{
      forward.csr,  Values{forward.alpha, copy}, Values{op.grad_score, copy}, op.grad_score, forward.copies,
      forward.heads};
  if (const char* error = run_cuda(softmax, stream)) return error;
  with_types(forward.csr, forward.bf16, [&](auto index, auto element) {
    sum_over_edges<decltype(index)>(forward.csr, forward.keep, forward.copies, forward.heads * forward.channels,
                                    ToTarget<decltype(element)>{op}, forward.partial,
                                    static_cast<cudaStream_t>(stream));
  });
  return launch_error();
}

const char* run_cuda(const AttentionGradSource& op, void* stream) {
  const Attention& forward = op.forward;
  with_types(forward.csr, forward.bf16, [&](auto index, auto element) {
    sum_over_edges<decltype(index)>(forward.csr, forward.keep, forward.copies, forward.heads * forward.channels,
                                    ToSource<decltype(element)>{op}, forward.partial,
                                    static_cast<cudaStream_t>(stream));
  });
  return launch_error();
}

}  // namespace onp
