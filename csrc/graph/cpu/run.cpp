// Message passing on CPUs: which table of loops, which parts of the work on which thread.
#include <algorithm>

#include "graph/cpu/kernels.h"
#include "threads.h"

namespace onp {
namespace {

const GraphKernels& kernels() {
  static const GraphKernels& chosen = ONP_CHOOSE_TABLE(graph_kernels);
  return chosen;
}

// Multiply-adds below which a second thread costs more to wake than it saves.
constexpr int64_t kWorkPerThread = 1 << 18;
// Parts per thread: a thread that is held up leaves the rest to the others.
constexpr int64_t kPartsPerThread = 4;

int64_t start_of(const Csr& csr, int64_t row) {
  return csr.index_bytes == 4 ? static_cast<const int32_t*>(csr.indptr)[row]
                              : static_cast<const int64_t*>(csr.indptr)[row];
}

// The first row before which at least `amount` of work lies, a row counting as one edge more than it has.
int64_t row_after(const Csr& csr, int64_t amount) {
  int64_t low = 0, high = csr.rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    start_of(csr, middle) + middle < amount ? low = middle + 1 : high = middle;
  }
  return low;
}

// Runs `kernel` over all rows of all copies in `parts` parts of equal work. Copies are kept together in a part where
// they share what they read.
template <typename Op>
void in_parts(void (*kernel)(const Op&, const Part&), const Op& op, const Csr& csr, int64_t copies, bool together,
              int64_t parts, int threads) {
  const int64_t work = csr.edges + csr.rows, groups = together ? 1 : copies;
  const auto cut = [&](int64_t part) {
    const int64_t at = static_cast<int64_t>(static_cast<double>(work) * groups / parts * part);
    const int64_t group = std::min(at / std::max<int64_t>(work, 1), groups - 1);
    return part == parts ? (groups - 1) * csr.rows + csr.rows : group * csr.rows + row_after(csr, at - group * work);
  };
  const auto run = [&](int64_t part) {
    int64_t row = part == 0 ? 0 : cut(part);
    const int64_t last = cut(part + 1);
    while (row < last) {
      const int64_t group = row / csr.rows;
      const int64_t stop = std::min(last, (group + 1) * csr.rows);
      kernel(op, {together ? 0 : group, together ? copies : group + 1, row - group * csr.rows, stop - group * csr.rows,
                  part});
      row = stop;
    }
  };
  parallel(parts, threads, run);
}

template <typename Op>
void by_rows(void (*kernel)(const Op&, const Part&), const Op& op, const Csr& csr, int64_t copies, int64_t features,
             bool together, int threads) {
  const int64_t worth = csr.edges * copies * features / kWorkPerThread;
  threads = static_cast<int>(std::min<int64_t>(threads, worth));
  if (threads < 2) return kernel(op, {0, copies, 0, csr.rows, 0});
  in_parts(kernel, op, csr, copies, together, threads * kPartsPerThread, threads);
}

// What an edge of attention costs, in multiply-adds: three for each channel, and an exponential.
int64_t attention_work(const Attention& op) {
  return op.heads * (3 * op.channels + 64);
}

}  // namespace

const char* csr_fault(const Csr& csr) {
  if (start_of(csr, 0) != 0) return "indptr must start at 0";
  if (kernels().falls(csr)) return "indptr must never fall";
  if (start_of(csr, csr.rows) != csr.edges) return "indptr must end at the number of edges";
  if (kernels().outside(csr)) return "an index is outside the rows of x";
  return nullptr;
}

void run_cpu(const Spmm& op, int threads) {
  if (op.mean && op.heads * op.channels == 0) std::fill_n(op.mean, op.copies * op.csr.rows, 0.0f);
  by_rows(kernels().spmm, op, op.csr, op.copies, op.heads * op.channels, op.x.copy == 0, threads);
}

void run_cpu(const SpmmMaxGrad& op, int threads) {
  if (op.copies * op.csr.rows * op.features < kWorkPerThread / 2) threads = 1;
  if (op.grad_x) {
    // A source may win in many rows, so one thread adds up all of a feature. Whole cache lines: no two write to one.
    constexpr int64_t kLine = 16;
    const int64_t lines = (op.features + kLine - 1) / kLine, blocks = std::min<int64_t>(threads, lines);
    parallel(op.copies * blocks, threads, [&](int64_t part) {
      const int64_t block = part % blocks, first = lines * block / blocks * kLine;
      const int64_t last = std::min(lines * (block + 1) / blocks * kLine, op.features);
      kernels().spmm_max_grad_x(op, part / blocks, first, last);
    });
  }
  if (op.grad_weight) {
    parallel(op.copies, threads, [&](int64_t copy) { kernels().spmm_max_grad_weight(op, copy); });
  }
}

void run_cpu(const EdgeDot& op, int threads) {
  by_rows(kernels().edge_dot, op, op.csr, op.copies, op.heads * op.channels, false, threads);
}

void run_cpu(const EdgeSoftmax& op, int threads) {
  by_rows(kernels().edge_softmax, op, op.csr, op.copies, 16 * op.heads, false, threads);
}

void run_cpu(const EdgeSoftmaxGrad& op, int threads) {
  by_rows(kernels().edge_softmax_grad, op, op.csr, op.copies, 8 * op.heads, false, threads);
}

void run_cpu(const Attention& op, int threads) {
  by_rows(kernels().attention, op, op.csr, op.copies, attention_work(op), false, threads);
}

void run_cpu(const AttentionGradTarget& op, int threads) {
  const Attention& forward = op.forward;
  const int64_t features = forward.heads * forward.channels;
  if (op.grad_att) std::fill_n(op.grad_att, kAttParts * features, 0.0f);
  if (forward.copies * forward.csr.edges * attention_work(forward) < 2 * kWorkPerThread) threads = 1;
  if (forward.copies) {
    in_parts(kernels().attention_grad_target, op, forward.csr, forward.copies, false, kAttParts, threads);
  }
  for (int64_t part = 1; op.grad_att && part < kAttParts; ++part) {
    for (int64_t f = 0; f < features; ++f) op.grad_att[f] += op.grad_att[part * features + f];
  }
}

void run_cpu(const AttentionGradSource& op, int threads) {
  const Attention& forward = op.forward;
  by_rows(kernels().attention_grad_source, op, forward.csr, forward.copies, attention_work(forward), false, threads);
}

}  // namespace onp
