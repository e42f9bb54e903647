"""The repaired network without its pruned channels: fewer weights, the same answers.

Zeroed channels are cut out with torch-pruning (Fang et al. 2023, https://arxiv.org/abs/2301.12900), which follows a channel
through all layers that read it. A channel of a residual sum goes only where every layer that is added to it lost it. After each
layer the outputs are compared, and a layer whose removal changes them stays as it is: a norm behind a sum may give a
zero channel other values.
"""

from __future__ import annotations

import copy
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onp.errors import InputError
from onp.files import write_atomically
from onp.model.capture import silenced
from onp.model.layers import Layer
from onp.model.mask import Mask
from onp.model.victim import Victim

IMAGES = 4  # random ones, on which outputs are compared
TOLERANCE = 1e-4  # of the largest logit: removing zeros only changes the order of sums
PROGRAM, ONNX = "shrunk.pt2", "shrunk.onnx"


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A network of another shape, so its weights fit no checkpoint of the original's architecture."""

    network: nn.Module  #: takes normalised images [N, C, H, W], in eval mode
    removed: dict[str, int]  #: layer -> channels taken out
    kept: dict[str, str]  #: layer -> why its zeroed channels are still there
    parameters: tuple[int, int]  #: before and after

    def to_text(self) -> str:
        """One sentence."""
        before, after = self.parameters
        left = f"; {', '.join(self.kept)} keep zeros" if self.kept else ""
        return (
            f"Shrunk: {before:,} parameters before, {after:,} after, in {len(self.removed)} layers{left}; "
            f"on {IMAGES} random images its logits are those of the repaired network to {TOLERANCE:g} of the largest."
        )


def check_shrinking() -> None:
    """Raises InputError where torch-pruning is not installed."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise InputError("--shrink needs torch-pruning; install it with: pip install '.[shrink]'")


def shrink(repaired: Victim, mask: Mask) -> Shrunk:
    """Take the pruned channels out of `repaired`, what `onp.model.prune.repair` made with `mask`.

    Raises InputError where torch-pruning is missing or the mask is one of another model.
    """
    check_shrinking()
    mask.check(repaired)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, *repaired.input_shape, generator=generator).to(repaired.device)
    images = repaired.normalisation(images)
    with torch.no_grad():
        expected = repaired.model(images)
    network = copy.deepcopy(repaired.model).eval()
    removed: dict[str, int] = {}
    kept: dict[str, str] = {}
    for group in _groups(repaired, mask):
        names = [layer.name for layer, _ in group]
        pruned = set.intersection(*(units for _, units in group))
        for layer, units in group:
            if len(units) > len(pruned):
                kept[layer.name] = f"{len(units) - len(pruned)} of its channels are added to channels of other layers"
        if not pruned:
            continue
        if len(pruned) == group[0][0].units:
            kept.update(dict.fromkeys(names, "all of its channels are pruned, and a layer needs one"))
            continue
        smaller = _without(network, group[0][0], sorted(pruned), images)
        if isinstance(smaller, str):
            kept.update(dict.fromkeys(names, smaller))
            continue
        with torch.no_grad():
            difference = float((smaller(images) - expected).abs().max())
        if difference > TOLERANCE * max(1.0, float(expected.abs().max())):
            kept.update(dict.fromkeys(names, "a norm behind them gives zero channels other values"))
            continue
        network = smaller
        removed.update(dict.fromkeys(names, len(pruned)))
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (repaired.model, network)]
    return Shrunk(network, removed, kept, (counts[0], counts[1]))


def _groups(victim: Victim, mask: Mask) -> list[list[tuple[Layer, set[int]]]]:
    """Layers tied channel by channel, each with its pruned channels; groups that lost nothing are left out."""
    groups: dict[int, list[tuple[Layer, set[int]]]] = {}
    for layer, keep in zip(victim.layers, mask.by_layer().values(), strict=True):
        groups.setdefault(layer.group, []).append((layer, set((~keep).nonzero()[:, 0].tolist())))
    return [group for group in groups.values() if any(units for _, units in group)]


def _without(network: nn.Module, layer: Layer, units: list[int], images: Tensor) -> nn.Module | str:
    """A copy of `network` without channels `units` of `layer` and of all that hang on them, or why there is none."""
    import torch_pruning

    smaller = copy.deepcopy(network)
    module = dict(smaller.named_modules()).get(layer.name)
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return "its weights belong to no Conv2d or Linear module"
    remove: Any = (
        torch_pruning.prune_conv_out_channels if isinstance(module, nn.Conv2d) else torch_pruning.prune_linear_out_channels
    )
    smaller.requires_grad_(True)  # torch-pruning follows autograd
    try:
        with silenced():
            graph = torch_pruning.DependencyGraph().build_dependency(smaller, example_inputs=images[:2])
            graph.get_pruning_group(module, remove, idxs=units).prune()
        smaller.requires_grad_(False)
        with torch.no_grad():
            smaller(images[:1])
    except Exception as error:
        # torch-pruning rewrites other people's modules: whatever it cannot follow, the zeros do no harm.
        return f"torch-pruning cannot follow them ({type(error).__name__})"
    return smaller


def write_shrunk(shrunk: Shrunk, input_shape: tuple[int, int, int], folder: Path) -> tuple[str, ...]:
    """Write the network as an exported program and, with the packages onnx and onnxscript, as ONNX; returns the names.

    Both take a batch of any size of normalised float32 images. Raises OSError where the disk refuses.
    """
    example = torch.zeros(2, *input_shape, device=next(shrunk.network.parameters()).device)
    batch = ({0: torch.export.Dim("N")},)
    buffer = io.BytesIO()
    with silenced():
        torch.export.save(torch.export.export(shrunk.network, (example,), dynamic_shapes=batch), buffer)
    files = {PROGRAM: buffer.getvalue()}
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        files[ONNX] = _onnx(shrunk.network, example)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return tuple(files)


def _onnx(network: nn.Module, example: Tensor) -> bytes:
    with silenced():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            input_names=["images"],
            output_names=["logits"],
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())
