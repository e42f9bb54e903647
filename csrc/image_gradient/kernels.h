// The loops of the gradient. kernels.cpp is compiled once per instruction set and fills one table each.
#pragma once

#include "image_gradient/image_gradient.h"
#include "isa_table.h"

namespace onp {

struct ImageGradientKernels {
  // The rows [first, last) of all images, one after the other.
  void (*gradient_rows)(const ImageGradient&, int64_t first, int64_t last);
};

ONP_DECLARE_TABLES(ImageGradientKernels, image_gradient_kernels)

}  // namespace onp
