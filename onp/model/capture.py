"""From an nn.Module to a clean, functional, batch-agnostic ATen graph, by torch.export."""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from onp.errors import InputError, first_line
from onp.model.logits_alone import logits_in

aten = torch.ops.aten

# torch.export prints the graph of what it cannot capture and logs stack traces; the ONNX exporter prints its steps.
_LOGGERS = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch.onnx", "onnxscript", "onnx_ir")

# In eval mode these return their first argument itself.
_SAME = frozenset({"dropout", "feature_dropout", "alpha_dropout", "alias", "detach", "lift_fresh_copy"})
# These may return a view of their first argument, so that writing to one of the two is seen through the other.
_VIEW = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "t",
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unbind",
        "select",
        "slice",
        "narrow",
        "squeeze",
        "unsqueeze",
        "expand",
        "expand_as",
        "view_as",
        "as_strided",
        "diagonal",
        "movedim",
        "numpy_T",
        "contiguous",
        "to",
    }
)


def op_name(node: fx.Node) -> str:
    """The ATen name without namespace and overload ("conv2d" for aten.conv2d.padding), "" for any other node."""
    target = node.target
    return target._schema.name.split("::")[1] if isinstance(target, torch._ops.OpOverload) else ""


def value(node: Any) -> Tensor | None:
    """The fake tensor that export recorded for a node's output (its shape and dtype), None for anything else."""
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def capture(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """Captures `model` (eval mode) as a straight list of functional ATen calls.

    example: a batch [N > 1, C, H, W] on the model's device; the graph takes any batch size. Where that fails, the size
    is fixed to N in places, which the caller finds out by trying another.

    The result shares its parameters and buffers with `model`. See `onp.model.victim.Victim.program` for the nodes that occur.
    Raises InputError when the network cannot be exported.
    """
    with silenced():
        exported = _export(model, example)
        graph_module = plain(exported)
        if not _make_functional(graph_module.graph):
            # A view of the written tensor is still in use: let export untangle that, and undo its lowering of norms.
            graph_module = plain(exported.run_decompositions({}))
            _restore_batch_norm(graph_module.graph)
            _restore_copies(graph_module.graph)
    _drop_identities(graph_module.graph)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    try:
        # Copies, because export changes attributes of the tensors it is given.
        return torch.export.export(model, (example.clone(),), dynamic_shapes=dynamic, strict=False)
    except OSError as error:
        raise InputError(f"torch.export cannot write what it needs to ({first_line(error)}); free some space.") from error
    except Exception as error:
        reason = first_line(error)
    # Code that branches on the batch size cannot be captured for every size, but the branch taken for an ordinary batch
    # often holds for all: the caller tries another batch size on the result, and refuses it if that fails.
    try:
        return torch.export.export(model, (example.clone(),), strict=False)
    except Exception as error:
        raise InputError(
            f"The network cannot be captured by torch.export ({reason}); remove data-dependent control flow from its forward()."
        ) from error


def plain(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    """The exported program as a module from one tensor to one, without guards, assertions and fixed batch sizes.

    Of several results the logits are taken, see `onp.model.logits_alone`. Raises InputError when it takes or returns anything
    else.
    """
    module = exported.module()
    assert isinstance(module, fx.GraphModule)
    graph = module.graph
    for node in reversed(graph.nodes):
        guard = node.op == "call_module" and "guard" in str(node.target)
        check = op_name(node).startswith(("_assert", "sym_constrain"))
        if (guard or check) and not node.users:
            graph.erase_node(node)
    output = next(node for node in graph.nodes if node.op == "output")
    results = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
    logits = results[0] if len(results) == 1 else _logits_among(results, exported)
    if value(logits) is None:
        raise InputError("The network does not return one tensor of logits; wrap it in a module that does.")
    output.args = (logits,)
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise InputError("The network takes more than one input; wrap it in a module that takes a batch of images.")
    _drop_batch_size(graph)
    graph.set_codegen(torch.fx.graph.CodeGen())
    # A fresh GraphModule: the exported one forbids eval() and keeps the guard module.
    return fx.GraphModule(module, graph)


def _logits_among(results: Sequence[Any], exported: torch.export.ExportedProgram) -> Any:
    """The result that is the logits by its name or its place; None where none is."""
    numbered = pytree.tree_unflatten(list(range(len(results))), exported.call_spec.out_spec)
    found = logits_in(numbered)
    return results[found] if isinstance(found, int) else None


def _make_functional(graph: fx.Graph) -> bool:
    """Replaces in-place ops by functional ones; False (graph half edited) where a live view makes that wrong."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
            continue
        functional = _functional_form(target)
        if functional is None:
            return False
        same = _aliases(node.args[0], _SAME)
        for alias in _aliases(node.args[0], _SAME | _VIEW):
            later = [user for user in alias.users if order[user] > order[node]]
            if later and (alias not in same or alias.op == "get_attr"):
                return False
            for user in later:
                user.replace_input_with(alias, node)
        node.target = functional
    return True


def _functional_form(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """add_.Tensor -> add.Tensor, where there is one with the same arguments."""
    name = target._schema.name.split("::")[1]
    packet = getattr(aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    overload = getattr(packet, target._overloadname, None)
    if overload is None or [a.name for a in overload._schema.arguments] != [a.name for a in target._schema.arguments]:
        return None
    return overload


def _aliases(node: Any, ops: frozenset[str]) -> list[fx.Node]:
    """`node` and every node tied to it by `ops` (or by taking an item of a tuple), upwards and downwards."""

    def tied(step: fx.Node) -> bool:
        return op_name(step) in ops or step.target is operator.getitem

    root = node
    while tied(root):
        root = root.args[0]
    found = [root]
    for candidate in found:
        found += [user for user in candidate.users if tied(user) and user.args[0] is candidate and user not in found]
    return found


def _restore_batch_norm(graph: fx.Graph) -> None:
    """Turns the lowered (norm, getitem 0) pairs back into one aten.batch_norm."""
    for node in graph.nodes:
        if op_name(node) == "_native_batch_norm_legit_no_training":
            x, weight, bias, mean, var, momentum, eps = node.args
            for user in list(node.users):
                if user.args[1] == 0:
                    user.target = aten.batch_norm.default
                    user.args = (x, weight, bias, mean, var, False, momentum, eps, False)


def _restore_copies(graph: fx.Graph) -> None:
    """Turns copy(to, x), which has no gradient, into x in the shape and dtype of `to`."""
    for node in list(graph.nodes):
        if op_name(node) == "copy":
            to, x = node.args[:2]
            wanted, given = node.meta["val"], value(x)
            forms = [(aten.to.dtype, wanted.dtype)] if given is None or given.dtype != wanted.dtype else []
            forms += [(aten.expand_as.default, to)] if given is None or given.shape != wanted.shape else []
            with graph.inserting_before(node):
                for target, form in forms:
                    x = graph.call_function(target, (x, form))
                    x.meta = dict(node.meta)
            node.replace_all_uses_with(x)
            graph.erase_node(node)


def _drop_identities(graph: fx.Graph) -> None:
    """Removes what returns its argument in eval mode; only right once no op writes in place."""
    for node in list(graph.nodes):
        active = "dropout" in op_name(node) and node.args[2]
        if (op_name(node) in _SAME and not active) or (op_name(node) == "clone" and not node.kwargs):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _drop_batch_size(graph: fx.Graph) -> None:
    """Writes view(x, [N, ...]) as view(x, [-1, ...]), so that a part of the graph can be run on another batch size."""
    batch = next(str(node.meta["val"].shape[0]) for node in graph.nodes if node.op == "placeholder")
    for node in graph.nodes:
        if op_name(node) not in ("view", "reshape", "_unsafe_view"):
            continue
        size, *static = value(node).shape  # type: ignore[union-attr]
        if str(size) == batch and all(isinstance(n, int) for n in static):
            node.args = (node.args[0], [-1, *static])


@contextmanager
def silenced() -> Iterator[None]:
    """Show nothing of what torch's exporters print, log and warn of; what they raise goes on to the caller."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
