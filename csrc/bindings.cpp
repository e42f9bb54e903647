// The Python face of the native module: checks, then the CPU or the CUDA function. No loops here.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "spmm.h"

namespace {

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

template <typename Index>
void run(const onp::Spmm<Index>& problem, bool cuda, int threads, uintptr_t stream) {
  pybind11::gil_scoped_release release;
  if (cuda) {
#ifdef ONP_WITH_CUDA
    if (const char* error = onp::spmm_cuda(problem, reinterpret_cast<void*>(stream))) throw std::runtime_error(error);
#else
    (void)stream;
    throw std::runtime_error("onp_native was built without CUDA");
#endif
  } else {
    if (const char* fault = onp::csr_fault(problem.csr)) throw std::invalid_argument(fault);
    onp::spmm_cpu(problem, threads);
  }
}

template <typename Index>
const Index* in(uintptr_t pointer) {
  return reinterpret_cast<const Index*>(pointer);
}

void spmm(uintptr_t indptr, uintptr_t indices, int index_bytes, uintptr_t weight, uintptr_t x, uintptr_t out,
          int64_t rows, int64_t columns, int64_t edges, int64_t features, int64_t x_stride, int64_t out_stride,
          bool mean, bool cuda, int threads, uintptr_t stream) {
  require(rows >= 0 && columns >= 0 && edges >= 0 && features >= 0, "sizes must not be negative");
  require(x_stride >= 0 && out_stride >= 0, "strides must not be negative");
  require(rows < 2 || out_stride >= features, "rows of out must not overlap");
  require(indptr != 0, "indptr must not be null");
  require(indices != 0 || edges == 0, "indices must not be null");
  require(x != 0 || columns == 0 || features == 0, "x must not be null");
  require(out != 0 || rows == 0 || features == 0, "out must not be null");
  require(index_bytes == 4 || index_bytes == 8, "indptr and indices must be int32 or int64");
  const auto problem = [&](auto index) {
    using Index = decltype(index);
    return onp::Spmm<Index>{{in<Index>(indptr), in<Index>(indices), rows, columns, edges},
                            in<float>(weight),
                            in<float>(x),
                            reinterpret_cast<float*>(out),
                            features,
                            x_stride,
                            out_stride,
                            mean};
  };
  if (index_bytes == 4) {
    run(problem(int32_t{}), cuda, threads, stream);
  } else {
    run(problem(int64_t{}), cuda, threads, stream);
  }
}

}  // namespace

PYBIND11_MODULE(onp_native, m) {
  m.doc() =
      "Compiled half of onp: raw pointers in, nothing allocated. Call it through onp.ops, which owns the checks of "
      "tensors.";
#ifdef ONP_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  namespace py = pybind11;
  m.def("spmm", &spmm,
        "CSR rows times a dense float32 matrix, written to out (see csrc/spmm.h). Pointers are integers and must fit\n"
        "the sizes; weight 0 means all ones. Raises ValueError for sizes, strides, index width, or (on the CPU) an\n"
        "indptr or indices that do not describe edges between existing rows; RuntimeError for a failed CUDA launch.",
        py::arg("indptr"), py::arg("indices"), py::arg("index_bytes"), py::arg("weight"), py::arg("x"), py::arg("out"),
        py::arg("rows"), py::arg("columns"), py::arg("edges"), py::arg("features"), py::arg("x_stride"),
        py::arg("out_stride"), py::arg("mean"), py::arg("cuda"), py::arg("threads"), py::arg("stream"));
}
