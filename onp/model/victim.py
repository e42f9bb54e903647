"""The suspicious model: untrusted bytes in, a checked network with its captured graph and prunable units out."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from onp.data.normalisation import Normalisation
from onp.errors import InputError, device_error, first_few, first_line
from onp.model import pt2
from onp.model.arch_spec import PlainClassifier, likely, network_for
from onp.model.capture import capture
from onp.model.checkpoint import Checkpoint, load_into, read_checkpoint, renamed
from onp.model.hub_config import SPEC, HubModel, hub_model
from onp.model.layers import Layer, find_layers
from onp.model.logits_alone import returning_logits
from onp.numerics import strict_float32

COMMON_SIZES = (28, 32, 64, 96, 128, 224)  #: H and W of the images that most classifiers are trained on
ROUNDING = 5e-3  # of the spread of logits; a random ResNet-50 of 224x224 reaches 6e-4, dropout of one pixel in fifty 0.1


@dataclass(frozen=True)
class Victim:
    """A classifier with everything the defence needs to know about its structure.

    `program` computes the same logits as `model` from a normalised batch [N, C, H, W] of any N, and shares its tensors.
    Its graph holds, in execution order:
    - `get_attr`: parameters, buffers (the target is the state-dict key) and constants of the network;
    - one `placeholder`: the normalised images;
    - `call_function` with an `aten` overload as target, all functional (nothing is written in place); in particular
      aten.conv2d.default or .padding(x, weight, bias, stride, padding, dilation, groups), aten.linear.default,
      aten.batch_norm.default(x, scale, shift, mean, var, training=False, momentum, eps, cudnn), aten.relu.default,
      aten.add.Tensor, aten.cat.default; trailing arguments that equal the schema's default may be absent;
    - `call_function` with `operator.getitem` after an op with several results, and, in networks that use their batch
      size for more than a reshape (class tokens), `aten.sym_size.int` and integer arithmetic on it: those depend on N;
    - `output` with one argument, the logits node [N, classes].
    Dropout, guards and assertions are gone. `node.meta["val"]` is a fake tensor with the shape (dimension 0 symbolic).
    """

    model: nn.Module  #: the unmodified network code, eval mode, float32, no gradients to parameters
    program: fx.GraphModule
    layers: tuple[Layer, ...]  #: in execution order
    skipped: tuple[tuple[str, str], ...]  #: (layer, reason) for layers that cannot be pruned by editing weights
    input_shape: tuple[int, int, int]  #: C, H, W
    classes: int
    normalisation: Normalisation
    checkpoint: Checkpoint | None = None  #: the file it came from; None for a module given directly
    arch: str = "module"

    @property
    def units(self) -> int:
        """U, the length of the flat mask."""
        return sum(layer.units for layer in self.layers)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def logits(self, images01: Tensor) -> Tensor:
        """Logits, float32 [N, classes], of images [N, C, H, W] in [0, 1]; differentiable in the images."""
        return self.model(self.normalisation(images01.to(self.device)))


@strict_float32()
def victim_from_module(
    model: nn.Module,
    normalisation: Normalisation,
    input_shape: Sequence[int],
    classes: int | None = None,
    *,
    device: str | torch.device = "cpu",
) -> Victim:
    """Capture a copy of a network.

    Args:
        model: takes normalised images and returns logits, alone or in a dict, tuple or ModelOutput.
        normalisation: of the images.
        input_shape: C, H, W of an image.
        classes: the width of the logits, which is checked where it is given.
        device: where the copy computes, in float32.

    Raises:
        InputError: the network cannot be copied, does not take images of `input_shape`, does not give [N, classes] logits, is
            not deterministic per image, cannot be captured, or has no prunable unit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch's copy of exported graphs
            network = copy.deepcopy(model)
        network = network.to(device=device, dtype=torch.float32).eval()
    except (Exception, SystemExit) as error:
        if isinstance(error, RuntimeError) and device_error(error) is not None:
            raise
        raise InputError(f"The network cannot be copied or moved to {device} ({first_line(error)}).") from error
    channels, height, width = input_shape
    generator = torch.Generator().manual_seed(0)
    # An odd size for the graph, so that a batch size written into it does not look like a number of channels.
    x = torch.randn(7, channels, height, width, generator=generator).to(device)
    network = returning_logits(network, x[:2].clone())
    logits = _dry_run(network, x, normalisation)
    if classes is not None and logits.shape[1] != classes:
        raise InputError(f"The network gives {logits.shape[1]} logits, not {classes}; check the number of classes.")
    # While parameters want gradients, attention layers are captured as plain operations, not as one fused kernel.
    program = capture(network.requires_grad_(True), x)
    network.requires_grad_(False)
    program.requires_grad_(False)
    with torch.no_grad():
        try:
            agrees = _same(program(x[:3]), logits)
        except RuntimeError:
            agrees = False
    if not agrees:
        raise InputError("The captured graph only holds for one batch size; make forward() independent of it.")
    layers, skipped = find_layers(network, program)
    if not layers:
        reasons = "; ".join(f"{name} {reason}" for name, reason in skipped[:3])
        raise InputError(f"The network has no prunable unit ({reasons or 'no conv or linear layer'}).")
    shape = (int(channels), int(height), int(width))
    return Victim(network, program, layers, skipped, shape, logits.shape[1], normalisation)


def _dry_run(network: nn.Module, x: Tensor, normalisation: Normalisation) -> Tensor:
    """Logits of the batch, after checking that each image's logits depend on nothing but that image."""
    shape, before = tuple(x.shape[1:]), x.clone()
    normalisation(x)
    with torch.no_grad():
        try:
            logits, again, pair = network(x), network(x), network(x[:2])
        except (Exception, SystemExit) as error:
            wanted = _sizes_taken(network, x)
            advice = f"; it takes {first_few(wanted)} pixels: give --image-size." if wanted else "."
            raise InputError(f"The network does not take images of shape {shape} ({first_line(error)}){advice}") from error
    if not torch.equal(x, before):
        raise InputError("The network changes its input in place; write x = x - mean in place of x -= mean.")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != len(x) or logits.shape[1] < 2:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"The network must return logits [N, classes], alone, as 'logits' or first of a tuple, but for {len(x)} images it "
            f"returned {found}."
        )
    if not logits.is_floating_point():
        raise InputError(f"The network's logits are {logits.dtype}; make them floating-point numbers.")
    if not torch.isfinite(logits).all():
        raise InputError("The network's logits are not finite numbers, even on random images.")
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(len(logits), device=logits.device), atol=1e-3):
        raise InputError("The network returns probabilities, not logits; leave the softmax at its end out.")
    for other in (again, pair):
        if not _same(other, logits):
            raise InputError(
                "The network's prediction for one image changes from run to run or with the other images of its batch "
                "(dropout or a norm in training mode?); make forward() deterministic in eval mode."
            )
    return logits


def _sizes_taken(network: nn.Module, x: Tensor) -> list[str]:
    """The common sizes of square images, such as "32x32", that the network takes in place of those of `x`."""
    taken = []
    for size in COMMON_SIZES:
        try:
            network(x.new_zeros((1, x.shape[1], size, size)))
        except (Exception, SystemExit):  # whatever the user's code raises
            continue
        taken.append(f"{size}x{size}")
    return taken


def _same(some: Tensor, logits: Tensor) -> bool:
    """Whether `some` are the first of `logits`, up to rounding.

    Libraries sum in another order for another number of images, and a deep network makes more of it.
    """
    return torch.allclose(some, logits[: len(some)], rtol=1e-3, atol=max(1e-4, ROUNDING * float(logits.std())))


def _channels(network: nn.Module, input_shape: Sequence[int], normalisation: Normalisation, device: str | torch.device) -> int:
    """1 for 3 or 3 for 1 channels of the images, where the network refuses them and takes the other; else what is given."""
    given, height, width = (int(size) for size in input_shape)

    def takes(channels: int) -> bool:
        if len(normalisation.mean) not in (1, channels):
            return False
        try:
            with torch.no_grad():
                network.to(device=device, dtype=torch.float32).eval()(torch.zeros(2, channels, height, width, device=device))
        except (Exception, SystemExit):  # whatever the user's code raises; `_dry_run` says what it was
            return False
        return True

    other = {1: 3, 3: 1}.get(given)
    return other if other is not None and not takes(given) and takes(other) else given


def load_victim(
    path: Path | str,
    arch: str | HubModel | None,
    normalisation: Normalisation,
    input_shape: Sequence[int],
    device: str | torch.device = "cpu",
) -> Victim:
    """Read an untrusted checkpoint into its network and capture it.

    Args:
        path: of the checkpoint, or PATH::KEY.
        arch: see `onp.model.arch_spec.network_for`; not needed for an exported program (.pt2), which brings its own.
        normalisation: of the images.
        input_shape: C, H, W of the images; the victim's has 1 channel in place of 3, or 3 in place of 1, where the network
            takes only those.
        device: where the network computes, in float32 whatever the checkpoint's dtype.

    Raises:
        InputError: the checkpoint, the architecture or the shape of the images cannot be used.
    """
    checkpoint = read_checkpoint(path)
    network: nn.Module
    if checkpoint.kind == "pt2":
        network, name = pt2.module(checkpoint.container), "exported program"
    elif arch is None:
        fits = likely(checkpoint.state)
        advice = f"they fit --arch {fits}" if fits else "say which network they belong to with --arch"
        raise InputError(f"{path} holds weights only; {advice}.")
    else:
        hub = arch if isinstance(arch, HubModel) else hub_model(arch)
        spec = str(arch) if hub is None else f"{SPEC}{hub.path}"
        network, name = network_for(hub or spec, checkpoint.state), spec if hub is None else str(hub)
        names = network.names_in_files() if isinstance(network, PlainClassifier) else {}
        stored, checkpoint = checkpoint.state, renamed(checkpoint, network, names)
        load_into(network, checkpoint, spec, lambda: likely(stored))
    input_shape = (_channels(network, input_shape, normalisation, device), *input_shape[1:])
    victim = victim_from_module(network, normalisation, input_shape, device=device)
    return dataclasses.replace(victim, checkpoint=checkpoint, arch=name)
