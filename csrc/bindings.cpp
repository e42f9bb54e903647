// The Python face of the native module: checks of sizes, then the CPU or the CUDA function. No loops here.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "ops.h"

namespace {

using Pointer = uintptr_t;
using Size = int64_t;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

template <typename T>
T* at(Pointer pointer) {
  return reinterpret_cast<T*>(pointer);
}

onp::Rows rows_at(Pointer data, Size row, Size copy) {
  require(row >= 0 && copy >= 0, "strides must not be negative");
  return {at<const void>(data), row, copy};
}
onp::Values values_at(Pointer data, Size copy) {
  return {at<const float>(data), copy};
}
onp::Keep keep_at(Pointer data, Size copy) {
  return {at<const uint8_t>(data), copy};
}

// A graph whose arrays were looked at once; whoever made it keeps them alive and unchanged.
struct Graph {
  onp::Csr csr;
  bool cuda;

  Graph(Pointer indptr, Pointer indices, Pointer edge, Size rows, Size columns, Size edges, int index_bytes,
        bool on_cuda, Pointer segment_row, Pointer segment_begin, Pointer row_segment, Size segments)
      : csr{at<const void>(indptr),
            at<const void>(indices),
            at<const void>(edge),
            rows,
            columns,
            edges,
            index_bytes,
            at<const int32_t>(segment_row),
            at<const int64_t>(segment_begin),
            at<const int32_t>(row_segment),
            segments},
        cuda(on_cuda) {
    require(rows >= 0 && columns >= 0 && edges >= 0 && segments >= 0, "sizes must not be negative");
    require(index_bytes == 4 || index_bytes == 8, "indptr and indices must be int32 or int64");
    require(indptr != 0, "indptr must not be null");
    require(indices != 0 || edges == 0, "indices must not be null");
    if (cuda) return;
    if (const char* fault = onp::csr_fault(csr)) throw std::invalid_argument(fault);
  }
};

template <typename Op>
void run(const Graph& graph, const Op& op, int threads, Pointer stream) {
  pybind11::gil_scoped_release release;
  if (!graph.cuda) return onp::run_cpu(op, threads);
#ifdef ONP_WITH_CUDA
  if (const char* error = onp::run_cuda(op, at<void>(stream))) throw std::runtime_error(error);
#else
  (void)stream;
  throw std::runtime_error("onp_native was built without CUDA");
#endif
}

void check_sizes(Size copies, Size heads, Size channels) {
  require(copies >= 0 && heads >= 1 && channels >= 0, "there must be at least one head, and no negative size");
}

// A call of spmm with everything but the pointers, and what keeps its graph alive.
struct SpmmCall {
  onp::Spmm op;
  Graph graph;
  pybind11::object owner;
};

constexpr Py_ssize_t kSpmmPointers = 8;

// Taken apart by hand: converting ten arguments by pybind11 takes about as long as a small graph.
PyObject* run_spmm(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const auto& call = *static_cast<SpmmCall*>(PyCapsule_GetPointer(self, nullptr));
  if (count != kSpmmPointers + 2) {
    PyErr_SetString(PyExc_TypeError, "x, weight, keep, scale, out, mean, arg, partial, threads and stream are wanted");
    return nullptr;
  }
  Pointer value[kSpmmPointers + 2];
  for (Py_ssize_t i = 0; i < count; ++i) value[i] = PyLong_AsSize_t(arguments[i]);
  if (PyErr_Occurred()) return nullptr;
  try {
    onp::Spmm op = call.op;
    const auto [x, weight, keep, scale, out, mean, arg, partial, threads, stream] = value;
    require(x != 0 || op.csr.columns * op.copies * op.channels == 0, "x must not be null");
    require(out != 0 || op.csr.rows * op.copies * op.channels == 0, "out must not be null");
    require(op.reduce != onp::Reduce::max || scale == 0, "max takes no factor per source");
    op.x.data = at<const void>(x), op.weight.data = at<const float>(weight), op.keep.data = at<const uint8_t>(keep);
    op.scale.data = at<const float>(scale), op.out = at<void>(out), op.mean = at<float>(mean);
    op.arg = at<int32_t>(arg), op.partial = at<float>(partial);
    run(call.graph, op, static_cast<int>(threads), stream);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

pybind11::object spmm(const pybind11::object& graph, Size x_row, Size x_copy, Size weight_copy, Size keep_copy,
                      Size scale_copy, Size copies, Size features, int reduce, bool bf16) {
  const auto& known = graph.cast<const Graph&>();
  check_sizes(copies, 1, features);
  require(reduce >= 0 && reduce <= 2, "reduce must be 0 (sum), 1 (mean) or 2 (max)");
  require(reduce != 2 || !known.csr.edge, "max takes the edges in their own order");
  onp::Spmm op = {};
  op.csr = known.csr, op.x = rows_at(0, x_row, x_copy);
  op.weight.copy = weight_copy, op.keep.copy = keep_copy, op.scale.copy = scale_copy;
  op.copies = copies, op.heads = 1, op.channels = features;
  op.reduce = static_cast<onp::Reduce>(reduce), op.bf16 = bf16;
  static PyMethodDef method = {
      "spmm", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&run_spmm)), METH_FASTCALL,
      "(x, weight, keep, scale, out, mean, arg, partial, threads, stream): pointers, 0 for null"};
  const pybind11::capsule self(new SpmmCall{op, known, graph}, [](void* call) { delete static_cast<SpmmCall*>(call); });
  return pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&method, self.ptr()));
}

void spmm_max_grad(const Graph& graph, const Graph& transposed, Pointer arg, Pointer grad, Size grad_row,
                   Size grad_copy, Pointer x, Size x_row, Size x_copy, Pointer weight, Size weight_copy, Pointer grad_x,
                   Pointer grad_weight, Size copies, Size features, bool bf16, int threads, Pointer stream) {
  check_sizes(copies, 1, features);
  const onp::SpmmMaxGrad op{graph.csr,
                            transposed.csr,
                            at<const int32_t>(arg),
                            rows_at(grad, grad_row, grad_copy),
                            rows_at(x, x_row, x_copy),
                            values_at(weight, weight_copy),
                            at<float>(grad_x),
                            at<float>(grad_weight),
                            copies,
                            features,
                            bf16};
  run(graph, op, threads, stream);
}

void edge_dot(const Graph& graph, Pointer keep, Size keep_copy, Pointer grad, Size grad_row, Size grad_copy, Pointer x,
              Size x_row, Size x_copy, Pointer scale, Size scale_copy, Pointer out, Size copies, Size heads,
              Size channels, bool bf16, int threads, Pointer stream) {
  check_sizes(copies, heads, channels);
  const onp::EdgeDot op{graph.csr,
                        keep_at(keep, keep_copy),
                        rows_at(grad, grad_row, grad_copy),
                        rows_at(x, x_row, x_copy),
                        values_at(scale, scale_copy),
                        at<float>(out),
                        copies,
                        heads,
                        channels,
                        bf16};
  run(graph, op, threads, stream);
}

void edge_softmax(const Graph& graph, Pointer keep, Size keep_copy, Pointer score, Size score_copy, Pointer out,
                  Size copies, Size heads, int threads, Pointer stream) {
  check_sizes(copies, heads, 0);
  const onp::EdgeSoftmax op{graph.csr, keep_at(keep, keep_copy), values_at(score, score_copy), at<float>(out), copies,
                            heads};
  run(graph, op, threads, stream);
}

void edge_softmax_grad(const Graph& graph, Pointer alpha, Size alpha_copy, Pointer grad, Size grad_copy, Pointer out,
                       Size copies, Size heads, int threads, Pointer stream) {
  check_sizes(copies, heads, 0);
  const onp::EdgeSoftmaxGrad op{
      graph.csr, values_at(alpha, alpha_copy), values_at(grad, grad_copy), at<float>(out), copies, heads};
  run(graph, op, threads, stream);
}

onp::Attention attention_of(const Graph& graph, Pointer keep, Size keep_copy, Pointer source, Size source_row,
                            Size source_copy, Pointer target, Size target_row, Size target_copy, Pointer att,
                            float slope, Pointer alpha, Pointer out, Pointer partial, Size copies, Size heads,
                            Size channels, bool bf16) {
  check_sizes(copies, heads, channels);
  return {graph.csr,
          keep_at(keep, keep_copy),
          rows_at(source, source_row, source_copy),
          rows_at(target, target_row, target_copy),
          at<const float>(att),
          slope,
          at<float>(alpha),
          at<void>(out),
          at<float>(partial),
          copies,
          heads,
          channels,
          bf16};
}

void attention(const Graph& graph, Pointer keep, Size keep_copy, Pointer source, Size source_row, Size source_copy,
               Pointer target, Size target_row, Size target_copy, Pointer att, float slope, Pointer alpha, Pointer out,
               Pointer partial, Size copies, Size heads, Size channels, bool bf16, int threads, Pointer stream) {
  const auto op = attention_of(graph, keep, keep_copy, source, source_row, source_copy, target, target_row, target_copy,
                               att, slope, alpha, out, partial, copies, heads, channels, bf16);
  run(graph, op, threads, stream);
}

void attention_grad(const Graph& graph, const Graph& transposed, Pointer keep, Size keep_copy, Pointer source,
                    Size source_row, Size source_copy, Pointer target, Size target_row, Size target_copy, Pointer att,
                    float slope, Pointer alpha, Pointer partial, Pointer partial_transposed, Size copies, Size heads,
                    Size channels, bool bf16, Pointer grad, Size grad_row, Size grad_copy, Pointer grad_score,
                    Pointer grad_source, Pointer grad_target, Pointer grad_att, int threads, Pointer stream) {
  auto forward = attention_of(graph, keep, keep_copy, source, source_row, source_copy, target, target_row, target_copy,
                              att, slope, alpha, 0, partial, copies, heads, channels, bf16);
  const auto upstream = rows_at(grad, grad_row, grad_copy);
  const onp::AttentionGradTarget by_target{forward, upstream, at<float>(grad_score), at<void>(grad_target),
                                           at<float>(grad_att)};
  run(graph, by_target, threads, stream);
  forward.csr = transposed.csr;
  forward.partial = at<float>(partial_transposed);
  run(graph, onp::AttentionGradSource{forward, upstream, at<const float>(grad_score), at<void>(grad_source)}, threads,
      stream);
}

}  // namespace

PYBIND11_MODULE(onp_native, m) {
  m.doc() =
      "Compiled half of onp, see csrc/ops.h: pointers (as integers; 0 for null) and sizes in, nothing returned.\n"
      "The pointers must fit the sizes. Call it through onp.ops, which owns the checks of tensors.";
#ifdef ONP_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  m.attr("att_parts") = onp::kAttParts;
  m.def("cpu_isa", &onp::cpu_isa, "The instruction set that the CPU half uses here: avx512, avx2 or generic.");
  namespace py = pybind11;
  py::class_<Graph>(m, "Graph",
                    "Rows of edges. On the CPU the arrays are checked here: ValueError if they describe no edges\n"
                    "between existing rows. They must stay as they are while the graph is in use.")
      .def(py::init<Pointer, Pointer, Pointer, Size, Size, Size, int, bool, Pointer, Pointer, Pointer, Size>(),
           py::arg("indptr"), py::arg("indices"), py::arg("edge"), py::arg("rows"), py::arg("columns"),
           py::arg("edges"), py::arg("index_bytes"), py::arg("cuda"), py::arg("segment_row"), py::arg("segment_begin"),
           py::arg("row_segment"), py::arg("segments"));
  m.def("spmm", &spmm, "A function that makes this call of spmm when it is given the pointers.");
  m.def("spmm_max_grad", &spmm_max_grad);
  m.def("edge_dot", &edge_dot);
  m.def("edge_softmax", &edge_softmax);
  m.def("edge_softmax_grad", &edge_softmax_grad);
  m.def("attention", &attention);
  m.def("attention_grad", &attention_grad);
}
