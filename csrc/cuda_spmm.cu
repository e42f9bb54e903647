// Gather, weigh, reduce on CUDA; the contract is ops.h, the loop over edges cuda_rows.cuh.
#include "cuda_rows.cuh"

namespace onp {
namespace {

template <typename Element>
struct Weighted {
  using Sums = float;
  Spmm op;

  __device__ float add(int64_t copy, int64_t, int64_t source, int64_t edge, int64_t f) const {
    float w = 1.0f;
    if (op.weight.data) w = op.weight.data[copy * op.weight.copy + edge * op.heads + f / op.channels];
    if (op.scale.data) w *= op.scale.data[copy * op.scale.copy + source];
    return w * value_at<Element>(op.x, copy, source, f);
  }
  __device__ void finish(int64_t copy, int64_t row, int64_t f, float total) const {
    const int64_t at = copy * op.csr.rows + row;
    const float factor = op.reduce == Reduce::mean ? op.mean[at] : 1.0f;
    put(static_cast<Element*>(op.out) + at * op.heads * op.channels + f, total * factor);
  }
};

// 1 / number of edges left, which the sums of a mean are multiplied by.
template <typename Index>
__global__ void __launch_bounds__(kThreads) mean_factors(const Spmm op) {
  ONP_FOR_GROUPS(item, op.copies * op.csr.rows, 1) {
    const int64_t copy = item / op.csr.rows, row = item % op.csr.rows;
    int64_t count = 0;
    const int64_t begin = start_of<Index>(op.csr, row), end = start_of<Index>(op.csr, row + 1);
    if (!op.keep.data) count = end - begin;
    for (int64_t p = begin; op.keep.data && p < end; ++p)
      count += left(op.keep, copy, row, source_of<Index>(op.csr, p));
    op.mean[item] = count ? 1.0f / static_cast<float>(count) : 0.0f;
  }
}

template <typename Index, typename Element>
__global__ void __launch_bounds__(kThreads) max_rows(const Spmm op, int lanes) {
  const int lane = threadIdx.x % lanes;
  ONP_FOR_GROUPS(item, op.copies * op.csr.rows, lanes) {
    const int64_t copy = item / op.csr.rows, row = item % op.csr.rows;
    const int64_t begin = start_of<Index>(op.csr, row), end = start_of<Index>(op.csr, row + 1);
    for (int64_t f = lane; f < op.channels; f += lanes) {
      float best = 0;
      int32_t winner = -1;
      for (int64_t p = begin; p < end; ++p) {
        const int64_t source = source_of<Index>(op.csr, p);
        if (!left(op.keep, copy, row, source)) continue;
        const float w = op.weight.data ? op.weight.data[copy * op.weight.copy + p] : 1.0f;
        const float value = w * value_at<Element>(op.x, copy, source, f);
        if (winner >= 0 && (value <= best || best != best)) continue;  // the first of equals, and of NaNs
        best = value;
        winner = static_cast<int32_t>(p - begin);
      }
      put(static_cast<Element*>(op.out) + item * op.channels + f, best);
      if (op.arg) op.arg[item * op.channels + f] = winner;
    }
  }
}

// Through the transposed graph: a source looks which of its edges won, so nothing is added by two threads.
template <typename Index, typename Element>
struct Winner {
  using Sums = float;
  SpmmMaxGrad op;

  __device__ float add(int64_t copy, int64_t, int64_t receiver, int64_t edge, int64_t f) const {
    const int64_t won = op.arg[(copy * op.csr.rows + receiver) * op.features + f];
    if (won < 0 || start_of<Index>(op.csr, receiver) + won != edge) return 0;
    const float w = op.weight.data ? op.weight.data[copy * op.weight.copy + edge] : 1.0f;
    return w * value_at<Element>(op.grad, copy, receiver, f);
  }
  __device__ void finish(int64_t copy, int64_t source, int64_t f, float total) const {
    op.grad_x[(copy * op.csr.columns + source) * op.features + f] = total;
  }
};

template <typename Element>
struct DotTerm {
  EdgeDot op;
  __device__ float operator()(int64_t copy, int64_t row, int64_t source, int64_t, int64_t f) const {
    const float scale = op.scale.data ? op.scale.data[copy * op.scale.copy + row] : 1.0f;
    return scale * value_at<Element>(op.grad, copy, row, f) * value_at<Element>(op.x, copy, source, f);
  }
};

template <typename Index, typename Element>
struct WinnerTerm {
  SpmmMaxGrad op;
  __device__ float operator()(int64_t copy, int64_t row, int64_t source, int64_t p, int64_t f) const {
    const int64_t won = op.arg[(copy * op.csr.rows + row) * op.features + f];
    if (won < 0 || start_of<Index>(op.csr, row) + won != p) return 0;
    return value_at<Element>(op.grad, copy, row, f) * value_at<Element>(op.x, copy, source, f);
  }
};

}  // namespace

const char* run_cuda(const Spmm& op, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t rows = op.copies * op.csr.rows, features = op.heads * op.channels;
  if (rows == 0) return nullptr;
  with_types(op.csr, op.bf16, [&](auto index, auto element) {
    using Index = decltype(index);
    using Element = decltype(element);
    if (op.reduce == Reduce::max) {
      const int lanes = lanes_for(op.channels);
      max_rows<Index, Element><<<blocks_for(rows * lanes), kThreads, 0, queue>>>(op, lanes);
      return;
    }
    if (op.reduce == Reduce::mean) mean_factors<Index><<<blocks_for(rows), kThreads, 0, queue>>>(op);
    sum_over_edges<Index>(op.csr, op.keep, op.copies, features, Weighted<Element>{op}, op.partial, queue);
  });
  return launch_error();
}

const char* run_cuda(const SpmmMaxGrad& op, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  with_types(op.csr, op.bf16, [&](auto index, auto element) {
    using Index = decltype(index);
    using Element = decltype(element);
    // Rows are not cut here: the winners' terms are few.
    Csr back = op.transposed;
    back.segment_row = nullptr;
    if (op.grad_x) {
      sum_over_edges<Index>(back, Keep{}, op.copies, op.features, Winner<Index, Element>{op}, nullptr, queue);
    }
    if (op.grad_weight) {
      const WinnerTerm<Index, Element> term{op};
      for_edges<Index>(op.csr, Keep{}, op.copies, 1, op.features, term, op.grad_weight, queue);
    }
  });
  return launch_error();
}

const char* run_cuda(const EdgeDot& op, void* stream) {
  with_types(op.csr, op.bf16, [&](auto index, auto element) {
    for_edges<decltype(index)>(op.csr, op.keep, op.copies, op.heads, op.channels, DotTerm<decltype(element)>{op},
                               op.out, static_cast<cudaStream_t>(stream));
  });
  return launch_error();
}

}  // namespace onp
