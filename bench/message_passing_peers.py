"""Who takes part in bench/message_passing.py: the implementations of an op on the same data, and the op in float64."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onp.errors import InputError
from onp.search.message_passing.backend import choose
from onp.search.message_passing.csr import Csr
from onp.search.message_passing.layers import GATv2Conv
from onp.search.message_passing.ops import attention, spmm
from onp_kernels import reference_graph as reference

Op = Callable[[Tensor], Tensor]
CHECKED = 6e7  # numbers per edge that a float64 check may hold


@functools.lru_cache(maxsize=1)
def random_graph(nodes: int, degree: int, device: str) -> Csr:
    """Distinct edges with rising columns, which torch's CSR wants."""
    number = torch.randint(nodes * nodes, (nodes * degree,), generator=torch.Generator().manual_seed(0)).unique()
    graph = Csr.from_edges(number % nodes, number // nodes, nodes)
    return Csr(graph.indptr.to(device), graph.indices.to(device), nodes)


def peers(graph: Csr, weight: Tensor, reduce: str) -> dict[str, Op]:
    """Everything that can do this reduction; what may be prepared once is."""
    ops: dict[str, Op] = {"onp": lambda x: spmm(graph, weight, x, reduce, backend="native")}
    for backend in ("torch-sparse", "torch-scatter"):
        with contextlib.suppress(InputError):  # not installed, or not for this device
            choose(backend, weight.device.type)
            ops[backend] = lambda x, backend=backend: spmm(graph, weight, x, reduce, backend=backend)
    ops["torch (index_add)"] = lambda x: reference.spmm(graph.indptr, graph.indices, weight, x, reduce)
    if reduce == "sum":
        matrix = torch.sparse_csr_tensor(graph.indptr, graph.indices, weight, (graph.rows, graph.columns))
        ops["torch.sparse CSR"] = lambda x: matrix @ x
    theirs = _pyg("SimpleConv")
    if theirs is None:
        return ops
    layer, edges = theirs(reduce), torch.stack((graph.indices, graph.targets()))
    return ops | {"PyG SimpleConv": lambda x: layer(x, edges, weight)}


def _pyg(name: str) -> Any:
    """A layer's class, or None where PyG is not installed or does not fit this torch."""
    try:
        return getattr(importlib.import_module("torch_geometric.nn"), name)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None


def looped(op: Op) -> Op:
    """What a peer without copies has to do for K of them."""
    return lambda x: torch.stack([op(part) for part in x])


def gradient(op: Op, x: Tensor, upstream: Tensor) -> Tensor:
    """Of x, given the gradient of what `op` makes of it."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(op(leaf), leaf, upstream)[0]


def gatv2(graph: Csr, features: int, device: str) -> tuple[dict[str, Op], Op]:
    """The whole layer, linear maps included: ours and PyG's with the same weights, and the reference in float64."""
    ours = GATv2Conv(features, features).to(device)
    double = copy.deepcopy(ours).double()

    def exact(x: Tensor) -> Tensor:
        source, target = (lin(x).unsqueeze(-2) for lin in (double.lin_l, double.lin_r))
        attended = reference.attention(graph.indptr, graph.indices, source, target, double.att[0], ours.negative_slope)
        return attended.squeeze(-2) + double.bias

    ops: dict[str, Op] = {"onp": lambda x: ours(graph, x)}
    layer = _pyg("GATv2Conv")
    if layer is None:
        return ops, exact
    theirs = layer(features, features, add_self_loops=False).to(device)
    theirs.load_state_dict(ours.state_dict())
    edges = torch.stack((graph.indices, graph.targets()))
    return ops | {"PyG GATv2Conv": lambda x: theirs(x, edges)}, exact


def fused_attention(graph: Csr, features: int, device: str) -> tuple[dict[str, Op], Op]:
    """The same without the linear maps, which both sides leave to torch: x is source and target."""
    att = torch.randn(1, features).to(device) / features**0.5

    def exact(x: Tensor) -> Tensor:
        return reference.attention(graph.indptr, graph.indices, x.unsqueeze(-2), x.unsqueeze(-2), att.double()).squeeze(-2)

    def ours(x: Tensor) -> Tensor:
        one_head = x.unsqueeze(-2)
        return attention(graph, one_head, one_head, att, backend="native").squeeze(-2)

    layer = _pyg("GATv2Conv")
    if layer is None:
        return {"onp": ours}, exact
    theirs = layer(features, features, add_self_loops=False, bias=False).to(device)
    theirs.lin_l = theirs.lin_r = torch.nn.Identity()
    theirs.att = torch.nn.Parameter(att[None])
    edges = torch.stack((graph.indices, graph.targets()))
    return {"onp": ours, "PyG GATv2Conv": lambda x: theirs(x, edges)}, exact


LAYERS = {"gatv2": gatv2, "attention": fused_attention}


def workload(job: str, graph: Csr, weight: Tensor, x: Tensor) -> tuple[dict[str, tuple[Op, Tensor]], Op]:
    """The implementations with their inputs, and the op on float64."""
    if job in LAYERS:
        ops, exact = LAYERS[job](graph, x.shape[-1], x.device.type)
    else:
        reduce = job.split()[0]
        ops = peers(graph, weight, reduce)

        def exact(x: Tensor) -> Tensor:
            return reference.spmm(graph.indptr, graph.indices, weight.double(), x, reduce)

    if job == "sum bfloat16":
        return {"onp": (ops["onp"], x.bfloat16()), "onp, float32": (ops["onp"], x.bfloat16().float())}, exact
    alone = {name: op for name, op in ops.items() if name == "onp" or x.dim() == 2}
    loops = {f"{name}, a loop": looped(op) for name, op in ops.items() if name not in alone}
    return {name: (op, x) for name, op in (alone | loops).items()}, exact


def checked_part(job: str, edges: int, x: Tensor) -> tuple[Any, ...]:
    """What of a tensor like x is compared with float64: all of it, or as much as memory holds."""
    copies: Any = [0, -1] if x.dim() == 3 and edges * x[:, 0].numel() > CHECKED else slice(None)
    large = edges * x.shape[-1] * (1 if x.dim() == 2 else len(x[copies])) > CHECKED
    features = slice(16) if large and job not in LAYERS else slice(None)  # the features of attention depend on each other
    return (copies, slice(None), features) if x.dim() == 3 else (slice(None), features)
