// The native module: its name, what it was built with, and the functions of graph/, image_gradient/ and winograd/.
#include "graph/bind.h"
#include "image_gradient/bind.h"
#include "isa.h"
#include "winograd/bind.h"

PYBIND11_MODULE(onp_native, m) {
  m.doc() =
      "Compiled half of onp, see ops.h, image_gradient.h and winograd.h in csrc: pointers (as integers; 0 for null) "
      "and\n"
      "sizes in, nothing returned. The pointers must fit the sizes. Call it through onp.search.message_passing.ops "
      "and\n"
      "onp.engine.torch_backend, which own the checks of tensors.";
#ifdef ONP_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  m.def("cpu_isa", &onp::isa_name, "The instruction set that the CPU half uses here: avx512, avx2 or generic.");
  bind_graph(m);
  bind_image_gradient(m);
  bind_winograd(m);
}
