// The Python face of the convolution: checks of sizes, then the CPU function.
#include "winograd/bind.h"

#include <stdexcept>

#include "winograd/winograd.h"

namespace {

using Pointer = uintptr_t;
using Size = int64_t;

void check_channels(Size inputs, Size outputs) {
  if (inputs < 1 || outputs < 1 || inputs % onp::kConvPanel || outputs % onp::kConvPanel)
    throw std::invalid_argument("channels must be a positive multiple of 16");
}

void conv_filters(Pointer from, Pointer to, Size inputs, Size outputs, int threads) {
  check_channels(inputs, outputs);
  pybind11::gil_scoped_release release;
  onp::run_cpu(onp::ConvFilters{reinterpret_cast<const float*>(from), reinterpret_cast<float*>(to), inputs, outputs},
               threads);
}

void conv(Pointer x, Pointer filters, Pointer scale, Pointer shift, Pointer added, Pointer out, Size images,
          Size height, Size width, Size inputs, Size outputs, Size padding, bool relu, int threads) {
  check_channels(inputs, outputs);
  if (images < 0 || padding < 0 || height + 2 * padding < 3 || width + 2 * padding < 3)
    throw std::invalid_argument("padded images must have at least 3 x 3 pixels, and no size may be negative");
  const auto at = [](Pointer pointer) { return reinterpret_cast<const float*>(pointer); };
  pybind11::gil_scoped_release release;
  onp::run_cpu(onp::Conv{at(x), at(filters), at(scale), at(shift), at(added), reinterpret_cast<float*>(out), images,
                         height, width, inputs, outputs, padding, relu},
               threads);
}

}  // namespace

void bind_winograd(pybind11::module_& m) {
  m.def("conv_filters", &conv_filters, "csrc/winograd/winograd.h: from, to, C, K, threads");
  m.def("conv", &conv,
        "csrc/winograd/winograd.h: x, filters, scale, shift, added, out, N, H, W, C, K, padding, relu, threads");
}
