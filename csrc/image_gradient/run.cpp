// The gradient on CPUs: which table of loops, which rows on which thread.
#include <algorithm>

#include "image_gradient/kernels.h"
#include "threads.h"

namespace onp {
namespace {

const ImageGradientKernels& kernels() {
  static const ImageGradientKernels& chosen = ONP_CHOOSE_TABLE(image_gradient_kernels);
  return chosen;
}

}  // namespace

void run_cpu(const ImageGradient& op, int threads) {
  constexpr int64_t kRows = 16;  // of a part
  const int64_t rows = op.images * op.height;
  parallel((rows + kRows - 1) / kRows, threads,
           [&](int64_t part) { kernels().gradient_rows(op, part * kRows, std::min(rows, (part + 1) * kRows)); });
}

}  // namespace onp
