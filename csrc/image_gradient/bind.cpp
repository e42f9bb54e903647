// The Python face of the gradient: checks of sizes, then the CPU function.
#include "image_gradient/bind.h"

#include <stdexcept>

#include "image_gradient/image_gradient.h"

namespace {

using Pointer = uintptr_t;
using Size = int64_t;

void image_gradient(Pointer grad, Pointer filters, Pointer out, Size images, Size height, Size width, Size channels,
                    Size grad_height, Size grad_width, Size outputs, Size rows, Size columns, Size stride, Size padding,
                    int threads) {
  if (channels < 1 || channels > onp::kMostImageChannels || outputs < 1 || outputs % onp::kGradientPanel)
    throw std::invalid_argument("the image has 1 to 4 channels, and its filters a positive multiple of 16");
  if (images < 0 || height < 1 || width < 1 || grad_height < 1 || grad_width < 1 || rows < 1 || columns < 1 ||
      stride < 1 || padding < 0)
    throw std::invalid_argument("sizes and the stride are positive, the padding is not negative");
  if (height + 2 * padding < rows || (height + 2 * padding - rows) / stride + 1 != grad_height ||
      width + 2 * padding < columns || (width + 2 * padding - columns) / stride + 1 != grad_width)
    throw std::invalid_argument("the gradient is not of the size that the convolution gives");
  pybind11::gil_scoped_release release;
  onp::run_cpu(onp::ImageGradient{reinterpret_cast<const float*>(grad), reinterpret_cast<const float*>(filters),
                                  reinterpret_cast<float*>(out), images, height, width, channels, grad_height,
                                  grad_width, outputs, rows, columns, stride, padding},
               threads);
}

}  // namespace

void bind_image_gradient(pybind11::module_& m) {
  m.def("image_gradient", &image_gradient,
        "csrc/image_gradient/image_gradient.h: grad, filters, out, N, H, W, C, H', W', K, R, S, stride, padding, "
        "threads");
}
