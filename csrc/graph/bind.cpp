// The Python face of message passing: checks of sizes, then the CPU or the CUDA function. No loops here.
#include "graph/bind.h"

#include <functional>
#include <stdexcept>
#include <utility>

#include "graph/ops.h"

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
        bool on_cuda, Pointer segment_row, Pointer segment_begin, Pointer row_segment, Size segments, Pointer row)
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
            segments,
            at<const void>(row)},
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

// A call of an op with everything but the pointers, and what keeps its graphs alive.
struct Call {
  std::function<void(const Pointer* at, int threads, Pointer stream)> run;
  Py_ssize_t pointers;
  pybind11::tuple owners;
};

constexpr Py_ssize_t kMostPointers = 12;

// Taken apart by hand: converting ten arguments by pybind11 takes about as long as a small graph.
PyObject* run_call(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const auto& call = *static_cast<Call*>(PyCapsule_GetPointer(self, nullptr));
  if (count != call.pointers + 2) {
    PyErr_Format(PyExc_TypeError, "%zd pointers, threads and stream are wanted", call.pointers);
    return nullptr;
  }
  Pointer value[kMostPointers + 2];
  for (Py_ssize_t i = 0; i < count; ++i) value[i] = PyLong_AsSize_t(arguments[i]);
  if (PyErr_Occurred()) return nullptr;
  try {
    call.run(value, static_cast<int>(value[count - 2]), value[count - 1]);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

// A Python function of `pointers` pointers (0 for null), a number of threads and a stream, which makes this call.
template <typename Run>
pybind11::object call_of(Py_ssize_t pointers, pybind11::tuple owners, Run run) {
  static PyMethodDef method = {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&run_call)), METH_FASTCALL,
                               "(pointers..., threads, stream)"};
  const pybind11::capsule self(new Call{std::move(run), pointers, std::move(owners)},
                               [](void* call) { delete static_cast<Call*>(call); });
  return pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&method, self.ptr()));
}

// Pointers: x, weight, keep, scale, out, mean, arg, partial.
pybind11::object spmm(const pybind11::object& graph, Size x_row, Size x_copy, Size weight_copy, Size keep_copy,
                      Size scale_copy, Size copies, Size features, int reduce, bool bf16) {
  const auto& known = graph.cast<const Graph&>();
  check_sizes(copies, 1, features);
  require(reduce >= 0 && reduce <= 2, "reduce must be 0 (sum), 1 (mean) or 2 (max)");
  require(reduce != 2 || !known.csr.edge, "max takes the edges in their own order");
  onp::Spmm made = {};
  made.csr = known.csr, made.x = rows_at(0, x_row, x_copy);
  made.weight.copy = weight_copy, made.keep.copy = keep_copy, made.scale.copy = scale_copy;
  made.copies = copies, made.heads = 1, made.channels = features;
  made.reduce = static_cast<onp::Reduce>(reduce), made.bf16 = bf16;
  return call_of(8, pybind11::make_tuple(graph), [made, &known](const Pointer* p, int threads, Pointer stream) {
    onp::Spmm op = made;
    require(p[0] != 0 || op.csr.columns * op.copies * op.channels == 0, "x must not be null");
    require(p[4] != 0 || op.csr.rows * op.copies * op.channels == 0, "out must not be null");
    require(op.reduce != onp::Reduce::max || p[3] == 0, "max takes no factor per source");
    op.x.data = at<const void>(p[0]), op.weight.data = at<const float>(p[1]), op.keep.data = at<const uint8_t>(p[2]);
    op.scale.data = at<const float>(p[3]), op.out = at<void>(p[4]), op.mean = at<float>(p[5]);
    op.arg = at<int32_t>(p[6]), op.partial = at<float>(p[7]);
    run(known, op, threads, stream);
  });
}

// Pointers: arg, grad, x, weight, grad_x, grad_weight.
pybind11::object spmm_max_grad(const pybind11::object& graph, const pybind11::object& transposed, Size grad_row,
                               Size grad_copy, Size x_row, Size x_copy, Size weight_copy, Size copies, Size features,
                               bool bf16) {
  const auto& known = graph.cast<const Graph&>();
  check_sizes(copies, 1, features);
  onp::SpmmMaxGrad made = {};
  made.csr = known.csr, made.transposed = transposed.cast<const Graph&>().csr;
  made.grad = rows_at(0, grad_row, grad_copy), made.x = rows_at(0, x_row, x_copy), made.weight.copy = weight_copy;
  made.copies = copies, made.features = features, made.bf16 = bf16;
  return call_of(
      6, pybind11::make_tuple(graph, transposed), [made, &known](const Pointer* p, int threads, Pointer stream) {
        onp::SpmmMaxGrad op = made;
        op.arg = at<const int32_t>(p[0]), op.grad.data = at<const void>(p[1]), op.x.data = at<const void>(p[2]);
        op.weight.data = at<const float>(p[3]), op.grad_x = at<float>(p[4]), op.grad_weight = at<float>(p[5]);
        run(known, op, threads, stream);
      });
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

onp::Attention attention_of(const Graph& graph, Size keep_copy, Size source_row, Size source_copy, Size target_row,
                            Size target_copy, float slope, Size copies, Size heads, Size channels, bool bf16) {
  check_sizes(copies, heads, channels);
  onp::Attention op = {};
  op.csr = graph.csr, op.keep.copy = keep_copy, op.slope = slope;
  op.source = rows_at(0, source_row, source_copy), op.target = rows_at(0, target_row, target_copy);
  op.copies = copies, op.heads = heads, op.channels = channels, op.bf16 = bf16;
  return op;
}

// The pointers that the op and its gradient have in common: source, target, att, keep, alpha.
void point(onp::Attention& op, const Pointer* p) {
  op.source.data = at<const void>(p[0]), op.target.data = at<const void>(p[1]), op.att = at<const float>(p[2]);
  op.keep.data = at<const uint8_t>(p[3]), op.alpha = at<float>(p[4]);
}

// Pointers: source, target, att, keep, alpha, out, partial.
pybind11::object attention(const pybind11::object& graph, Size source_row, Size source_copy, Size target_row,
                           Size target_copy, Size keep_copy, float slope, Size copies, Size heads, Size channels,
                           bool bf16) {
  const auto& known = graph.cast<const Graph&>();
  const auto made = attention_of(known, keep_copy, source_row, source_copy, target_row, target_copy, slope, copies,
                                 heads, channels, bf16);
  return call_of(7, pybind11::make_tuple(graph), [made, &known](const Pointer* p, int threads, Pointer stream) {
    onp::Attention op = made;
    point(op, p);
    op.out = at<void>(p[5]), op.partial = at<float>(p[6]);
    run(known, op, threads, stream);
  });
}

// Pointers: source, target, att, keep, alpha, grad, grad_score, grad_source, grad_target, grad_att, partial,
// partial_transposed.
pybind11::object attention_grad(const pybind11::object& graph, const pybind11::object& transposed, Size source_row,
                                Size source_copy, Size target_row, Size target_copy, Size keep_copy, float slope,
                                Size copies, Size heads, Size channels, bool bf16, Size grad_row, Size grad_copy) {
  const auto& known = graph.cast<const Graph&>();
  const auto& back = transposed.cast<const Graph&>();
  const auto made = attention_of(known, keep_copy, source_row, source_copy, target_row, target_copy, slope, copies,
                                 heads, channels, bf16);
  const auto upstream = rows_at(0, grad_row, grad_copy);
  return call_of(12, pybind11::make_tuple(graph, transposed),
                 [made, upstream, &known, &back](const Pointer* p, int threads, Pointer stream) {
                   onp::AttentionGradTarget first{made, upstream, at<float>(p[6]), at<void>(p[8]), at<float>(p[9])};
                   point(first.forward, p);
                   first.forward.partial = at<float>(p[10]), first.grad.data = at<const void>(p[5]);
                   run(known, first, threads, stream);
                   onp::AttentionGradSource second{first.forward, first.grad, first.grad_score, at<void>(p[7])};
                   second.forward.csr = back.csr, second.forward.partial = at<float>(p[11]);
                   run(known, second, threads, stream);
                 });
}

}  // namespace

void bind_graph(pybind11::module_& m) {
  m.attr("att_parts") = onp::kAttParts;
  namespace py = pybind11;
  py::class_<Graph>(m, "Graph",
                    "Rows of edges. On the CPU the arrays are checked here: ValueError if they describe no edges\n"
                    "between existing rows. They must stay as they are while the graph is in use.")
      .def(py::init<Pointer, Pointer, Pointer, Size, Size, Size, int, bool, Pointer, Pointer, Pointer, Size, Pointer>(),
           py::arg("indptr"), py::arg("indices"), py::arg("edge"), py::arg("rows"), py::arg("columns"),
           py::arg("edges"), py::arg("index_bytes"), py::arg("cuda"), py::arg("segment_row"), py::arg("segment_begin"),
           py::arg("row_segment"), py::arg("segments"), py::arg("row"));
  const char* doc = "A function that makes this call when it is given the pointers, a number of threads and a stream.";
  m.def("spmm", &spmm, doc);
  m.def("spmm_max_grad", &spmm_max_grad, doc);
  m.def("attention", &attention, doc);
  m.def("attention_grad", &attention_grad, doc);
  m.def("edge_dot", &edge_dot);
  m.def("edge_softmax", &edge_softmax);
  m.def("edge_softmax_grad", &edge_softmax_grad);
}
