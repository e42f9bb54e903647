// The convolution on CPUs: which table of loops, which tiles on which thread.
#include <algorithm>

#include "threads.h"
#include "winograd/kernels.h"

namespace onp {
namespace {

const WinogradKernels& kernels() {
  static const WinogradKernels& chosen = ONP_CHOOSE_TABLE(winograd_kernels);
  return chosen;
}

// Tiles of a convolution that work through the filters together: the more, the fewer times those are read; the fewer,
// the closer to the core stays what lies between the transforms.
int64_t tiles_together(const Conv& op) {
  const int64_t products = op.inputs * op.outputs;
  return products <= 128 * 128 ? 12 : products <= 256 * 256 ? 48 : 96;
}

}  // namespace

void run_cpu(const ConvFilters& op, int threads) {
  parallel(op.outputs / kConvPanel, threads, [&](int64_t panel) { kernels().conv_filters(op, panel); });
}

void run_cpu(const Conv& op, int threads) {
  constexpr int64_t kRows = 12;  // a multiple of what every instruction set multiplies at once
  const int64_t tiles = op.tiles();
  if (!tiles) return;
  int64_t parts = (tiles + tiles_together(op) - 1) / tiles_together(op);
  // As many parts for every thread, of one size.
  parts = (parts + threads - 1) / threads * threads;
  const int64_t together = (tiles + parts * kRows - 1) / (parts * kRows) * kRows;
  parts = (tiles + together - 1) / together;
  parallel(parts, threads, [&](int64_t part) {
    kernels().conv_tiles(op, part * together, std::min(tiles, (part + 1) * together), together);
  });
}

}  // namespace onp
