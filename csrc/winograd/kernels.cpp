// Compiled once per instruction set, see CMakeLists.txt; ONP_ISA names it.
#include "winograd/kernels.h"

#include "winograd/tiles.h"

namespace onp {

const WinogradKernels& ONP_TABLE(winograd_kernels)() {
  static const WinogradKernels table = {conv_filters, conv_tiles};
  return table;
}

}  // namespace onp
