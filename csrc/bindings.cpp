// The native module: its name, what it was built with, and the functions of graph/ and winograd/.
#include "graph/bind.h"
#include "isa.h"
#include "winograd/bind.h"

PYBIND11_MODULE(onp_native, m) {
  m.doc() =
      "Compiled half of onp, see csrc/graph/ops.h and csrc/winograd/winograd.h: pointers (as integers; 0 for null) "
      "and\n"
      "sizes in, nothing returned. The pointers must fit the sizes. Call it through onp.search.message_passing.ops "
      "and\n"
      "onp.engine.torch_backend.winograd, which own the checks of tensors.";
#ifdef ONP_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  m.def("cpu_isa", &onp::isa_name, "The instruction set that the CPU half uses here: avx512, avx2 or generic.");
  bind_graph(m);
  bind_winograd(m);
}
