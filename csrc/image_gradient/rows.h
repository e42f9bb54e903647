// The gradient to one row of an image. Pixels that lie a stride apart read the same taps of the filters, so several of
// them are summed together, and a tap is loaded once for all of them.
#pragma once

#include <vector>

#include "image_gradient/image_gradient.h"
#include "vec.h"

namespace onp {
namespace {

template <int kChannels>
constexpr int kPixels = kRegisters / (kChannels == 1 ? 2 : 4);

// Where the gradient lies that tap `tap` carries to `place`; -1 where there is none.
inline int64_t source(int64_t place, int64_t tap, int64_t padding, int64_t stride, int64_t size) {
  const int64_t shifted = place + padding - tap;
  if (shifted < 0 || shifted % stride) return -1;
  return shifted / stride < size ? shifted / stride : -1;
}

template <int kChannels>
void add_tap(const ImageGradient& op, const float* const (&from)[kPixels<kChannels>], const float* filters,
             Vec (&sum)[kPixels<kChannels> * kChannels]) {
  for (int64_t k = 0; k < op.outputs; k += kLanes) {
    Vec grad[kPixels<kChannels>];
    for (int p = 0; p < kPixels<kChannels>; ++p) grad[p] = load(from[p] + k);
    for (int c = 0; c < kChannels; ++c) {
      const Vec filter = load(filters + c * op.outputs + k);
      for (int p = 0; p < kPixels<kChannels>; ++p) sum[p * kChannels + c] += grad[p] * filter;
    }
  }
}

template <int kChannels>
void gradient_row(const ImageGradient& op, int64_t number) {
  constexpr int kTogether = kPixels<kChannels>, kSums = kTogether * kChannels;
  static thread_local std::vector<float> zeros;
  if (static_cast<int64_t>(zeros.size()) < op.outputs) zeros.assign(op.outputs, 0.0f);
  const int64_t image = number / op.height, row = number % op.height;
  float* out = op.out + number * op.width * kChannels;
  for (int64_t residue = 0; residue < op.stride; ++residue) {
    for (int64_t first = residue; first < op.width; first += op.stride * kTogether) {
      Vec sum[kSums] = {};
      for (int64_t r = 0; r < op.rows; ++r) {
        const int64_t y = source(row, r, op.padding, op.stride, op.grad_height);
        if (y < 0) continue;
        const float* line = op.grad + (image * op.grad_height + y) * op.grad_width * op.outputs;
        for (int64_t s = 0; s < op.columns; ++s) {
          // The pixels together are a stride apart, so all or none of them divide.
          const int64_t shifted = first + op.padding - s;
          if (((shifted % op.stride) + op.stride) % op.stride) continue;
          const int64_t left = (shifted - (shifted < 0 ? op.stride - 1 : 0)) / op.stride;
          const float* from[kTogether];
          for (int p = 0; p < kTogether; ++p) {
            const int64_t x = left + p;
            from[p] = x >= 0 && x < op.grad_width ? line + x * op.outputs : zeros.data();
          }
          add_tap<kChannels>(op, from, op.filters + (r * op.columns + s) * kChannels * op.outputs, sum);
        }
      }
      for (int p = 0; p < kTogether; ++p) {
        const int64_t column = first + p * op.stride;
        for (int c = 0; c < kChannels && column < op.width; ++c)
          out[column * kChannels + c] = sum_of(sum[p * kChannels + c]);
      }
    }
  }
}

void gradient_rows(const ImageGradient& op, int64_t first, int64_t last) {
  for (int64_t number = first; number < last; ++number) {
    switch (op.channels) {
      case 1:
        gradient_row<1>(op, number);
        break;
      case 2:
        gradient_row<2>(op, number);
        break;
      case 3:
        gradient_row<3>(op, number);
        break;
      default:
        gradient_row<4>(op, number);
    }
  }
}

}  // namespace
}  // namespace onp
