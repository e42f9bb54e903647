// The gradient of a convolution to its input, where that has few channels, as images have: the contract of the CPU
// loops (rows.h). Raw pointers only.
//
// Letters: N images of H x W pixels and C channels, 1 to kMostImageChannels; K output channels, a multiple of
// kGradientPanel; filters of R x S. Channels lie side by side: out is [N, H, W, C], grad [N, H', W', K].
#pragma once

#include <cstdint>

namespace onp {

constexpr int kMostImageChannels = 4;
constexpr int kGradientPanel = 16;

// out[n, h, w, c] = sum over r, s, k of grad[n, y, x, k] * filters[r, s, c, k], where stride * y = h + padding - r and
// stride * x = w + padding - s. Sums are made in an order that depends on the sizes alone.
struct ImageGradient {
  const float* grad;
  const float* filters;
  float* out;
  int64_t images, height, width, channels, grad_height, grad_width, outputs, rows, columns, stride, padding;
};

void run_cpu(const ImageGradient& op, int threads);

}  // namespace onp
