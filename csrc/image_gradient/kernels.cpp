// Compiled once per instruction set, see CMakeLists.txt; ONP_ISA names it.
#include "image_gradient/kernels.h"

#include "image_gradient/rows.h"

namespace onp {

const ImageGradientKernels& ONP_TABLE(image_gradient_kernels)() {
  static const ImageGradientKernels table = {gradient_rows};
  return table;
}

}  // namespace onp
