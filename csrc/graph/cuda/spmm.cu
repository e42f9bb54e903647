// Gather, weigh, reduce on CUDA; the contract is ops.h, the loop over edges rows.cuh.
#include "graph/cuda/rows.cuh"

namespace onp {
namespace {

template <typename Element, int V>
struct Weighted {
  static constexpr int kWidth = V, kSums = 1;
  using Begun = int64_t;  // head
  struct Loaded {
    Pack<V> x;
    float w;
  };
  Spmm op;

  __device__ Begun begin(int64_t, int64_t, int64_t f) const { return op.heads == 1 ? 0 : over(f, op.channels); }
  __device__ Loaded load(Begun head, int64_t copy, int64_t source, int64_t edge, int64_t f) const {
    float w = 1.0f;
    if (op.weight.data) w = op.weight.data[copy * op.weight.copy + edge * op.heads + head];
    if (op.scale.data) w *= op.scale.data[copy * op.scale.copy + source];
    return {values_at<V, Element>(op.x, copy, source, f), w};
  }
  __device__ void add(Sums<Weighted>& sums, Begun, const Loaded& loaded) const {
#pragma unroll
    for (int v = 0; v < V; ++v) sums.of[0].at[v] += loaded.w * loaded.x.at[v];
  }
  __device__ void finish(int64_t copy, int64_t row, int64_t f, Sums<Weighted>& sums, int64_t count) const {
    const int64_t at = copy * op.csr.rows + row;
    if (op.reduce == Reduce::mean) {
      float factor = count > 0 ? 1.0f / static_cast<float>(count) : 0.0f;
      if (count < 0) {
        factor = op.mean[at];
      } else if (op.mean && f == 0) {
        op.mean[at] = factor;
      }
#pragma unroll
      for (int v = 0; v < V; ++v) sums.of[0].at[v] *= factor;
    }
    put_pack(static_cast<Element*>(op.out) + at * op.heads * op.channels + f, sums.of[0]);
  }
};

// 1 / number of edges left, which the sums of a mean are multiplied by where rows are cut.
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

template <typename Index, typename Element, int V>
__global__ void __launch_bounds__(kThreads) max_rows(const Spmm op, int lanes) {
  const int lane = threadIdx.x % lanes;
  ONP_FOR_GROUPS(item, op.copies * op.csr.rows, lanes) {
    const int64_t copy = over(item, op.csr.rows), row = item - copy * op.csr.rows;
    const int64_t begin = start_of<Index>(op.csr, row);
    const int64_t last = kept(op.keep, copy, row) ? start_of<Index>(op.csr, row + 1) - 1 : begin - 1;
    for (int64_t f = lane * V; f < op.channels; f += lanes * V) {
      Pack<V> best = {};
      Block<int32_t, V> winner;
#pragma unroll
      for (int v = 0; v < V; ++v) winner.at[v] = -1;
      for (int64_t p = begin; p <= last; p += kAhead) {
        Pack<V> value[kAhead];
        float w[kAhead];
        bool in[kAhead];
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          const int64_t q = p + u < last ? p + u : last;
          const int64_t source = source_of<Index>(op.csr, q);
          in[u] = p + u <= last && kept(op.keep, copy, source);
          w[u] = op.weight.data ? op.weight.data[copy * op.weight.copy + q] : 1.0f;
          value[u] = values_at<V, Element>(op.x, copy, source, f);
        }
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          if (!in[u]) continue;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const float term = w[u] * value[u].at[v], most = best.at[v];
            const bool stays = winner.at[v] >= 0 && (term <= most || most != most);  // the first of equals, and of NaNs
            best.at[v] = stays ? most : term;
            winner.at[v] = stays ? winner.at[v] : static_cast<int32_t>(p + u - begin);
          }
        }
      }
      put_pack(static_cast<Element*>(op.out) + item * op.channels + f, best);
      if (op.arg) *reinterpret_cast<Block<int32_t, V>*>(op.arg + item * op.channels + f) = winner;
    }
  }
}

// Through the transposed graph: a source looks which of its edges won, so nothing is added by two threads.
template <typename Index, typename Element, int V>
struct Winner {
  static constexpr int kWidth = V, kSums = 1;
  struct Begun {};
  struct Loaded {
    Block<int32_t, V> won;
    Pack<V> grad;
    int64_t position;  // of the edge in its row
    float w;
  };
  SpmmMaxGrad op;

  __device__ Begun begin(int64_t, int64_t, int64_t) const { return {}; }
  __device__ Loaded load(Begun, int64_t copy, int64_t receiver, int64_t edge, int64_t f) const {
    const int32_t* arg = op.arg + (copy * op.csr.rows + receiver) * op.features + f;
    return {*reinterpret_cast<const Block<int32_t, V>*>(arg), values_at<V, Element>(op.grad, copy, receiver, f),
            edge - start_of<Index>(op.csr, receiver),
            op.weight.data ? op.weight.data[copy * op.weight.copy + edge] : 1.0f};
  }
  __device__ void add(Sums<Winner>& sums, Begun, const Loaded& loaded) const {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (loaded.won.at[v] == loaded.position) sums.of[0].at[v] += loaded.w * loaded.grad.at[v];
    }
  }
  __device__ void finish(int64_t copy, int64_t source, int64_t f, const Sums<Winner>& sums, int64_t) const {
    put_pack(op.grad_x + (copy * op.csr.columns + source) * op.features + f, sums.of[0]);
  }
};

template <typename Element, int V>
struct DotTerm {
  static constexpr int kWidth = V;
  EdgeDot op;
  __device__ float operator()(int64_t copy, int64_t row, int64_t source, int64_t, int64_t f) const {
    const float scale = op.scale.data ? op.scale.data[copy * op.scale.copy + row] : 1.0f;
    const auto grad = values_at<V, Element>(op.grad, copy, row, f), x = values_at<V, Element>(op.x, copy, source, f);
    float sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) sum += scale * grad.at[v] * x.at[v];
    return sum;
  }
};

template <typename Index, typename Element>
struct WinnerTerm {
  static constexpr int kWidth = 1;
  SpmmMaxGrad op;
  __device__ float operator()(int64_t copy, int64_t row, int64_t source, int64_t p, int64_t f) const {
    const int64_t won = op.arg[(copy * op.csr.rows + row) * op.features + f];
    if (won < 0 || start_of<Index>(op.csr, row) + won != p) return 0;
    return values_at<1, Element>(op.grad, copy, row, f).at[0] * values_at<1, Element>(op.x, copy, source, f).at[0];
  }
};

}  // namespace

const char* run_cuda(const Spmm& op, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t rows = op.copies * op.csr.rows, features = op.heads * op.channels;
  if (rows == 0) return nullptr;
  const bool fours = op.channels % 4 == 0 && in_fours(op.x, op.bf16) && in_fours(op.out, op.bf16 ? 2 : 4) &&
                     in_fours(op.arg, 4) && in_fours(op.partial, 4);
  with_types(op.csr, op.bf16, fours, [&](auto index, auto element, auto width) {
    using Index = decltype(index);
    using Element = decltype(element);
    constexpr int V = decltype(width)::value;
    if (op.reduce == Reduce::max) {
      const int lanes = lanes_for(op.channels / V);
      max_rows<Index, Element, V><<<blocks_for(rows * lanes), kThreads, 0, queue>>>(op, lanes);
      return;
    }
    if (op.reduce == Reduce::mean && op.csr.segment_row) {
      mean_factors<Index><<<blocks_for(rows), kThreads, 0, queue>>>(op);
    }
    sum_over_edges<Index>(op.csr, op.keep, op.copies, features, Weighted<Element, V>{op}, op.partial, queue);
  });
  return launch_error();
}

const char* run_cuda(const SpmmMaxGrad& op, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const bool fours =
      op.features % 4 == 0 && in_fours(op.grad, op.bf16) && in_fours(op.arg, 4) && in_fours(op.grad_x, 4);
  with_types(op.csr, op.bf16, fours, [&](auto index, auto element, auto width) {
    using Index = decltype(index);
    using Element = decltype(element);
    // Rows are not cut here: the winners' terms are few.
    Csr back = op.transposed;
    back.segment_row = nullptr;
    if (op.grad_x) {
      const Winner<Index, Element, decltype(width)::value> winner{op};
      sum_over_edges<Index>(back, Keep{}, op.copies, op.features, winner, nullptr, queue);
    }
    if (op.grad_weight) {
      const WinnerTerm<Index, Element> term{op};
      for_edges<Index>(op.csr, Keep{}, op.copies, 1, op.features, term, op.grad_weight, queue);
    }
  });
  return launch_error();
}

const char* run_cuda(const EdgeDot& op, void* stream) {
  const bool fours = op.channels % 4 == 0 && in_fours(op.grad, op.bf16) && in_fours(op.x, op.bf16);
  with_types(op.csr, op.bf16, fours, [&](auto index, auto element, auto width) {
    const DotTerm<decltype(element), decltype(width)::value> term{op};
    for_edges<decltype(index)>(op.csr, op.keep, op.copies, op.heads, op.channels, term, op.out,
                               static_cast<cudaStream_t>(stream));
  });
  return launch_error();
}

}  // namespace onp
