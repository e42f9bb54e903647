// The loops of the convolution. kernels.cpp is compiled once per instruction set and fills one table each.
#pragma once

#include "isa_table.h"
#include "winograd/winograd.h"

namespace onp {

struct WinogradKernels {
  // Output channels [16 * panel, 16 * panel + 16).
  void (*conv_filters)(const ConvFilters&, int64_t panel);
  // The tiles [first, last), at most `room` of them at a time.
  void (*conv_tiles)(const Conv&, int64_t first, int64_t last, int64_t room);
};

ONP_DECLARE_TABLES(WinogradKernels, winograd_kernels)

}  // namespace onp
