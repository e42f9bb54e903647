"""From an architecture SPEC on the command line to a network with the right number of classes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from onp.errors import InputError, first_line
from onp.model.archs import NETWORKS, build_network
from onp.model.hub_config import HubModel, hub_model
from onp.model.state_dicts import prefixes
from onp.plugins import load_callable


def network_for(spec: str | HubModel, state: Mapping[str, Tensor]) -> nn.Module:
    """Builds the network that `spec` names, with fresh weights.

    spec: a built-in name with options ("preact_resnet18:width=32,classes=10"), "timm:NAME", "torchvision:NAME",
    "config:PATH" (a config.json of timm or transformers) or "package.module:callable" (imported from the current folder
    too, and called without arguments); or a config.json that was read before.
    state: the checkpoint's tensors; the number of classes of timm and torchvision networks is read off them, and that of
    channels of timm networks.

    Raises InputError when the spec is malformed, names nothing, or its package is missing.
    """
    if isinstance(spec, HubModel):
        return _described(spec)
    source, _, name = spec.partition(":")
    if source in NETWORKS or not name:
        return build_network(spec)
    if (hub := hub_model(spec)) is not None:
        return _described(hub)
    if source == "timm":
        create = functools.partial(_package("timm").create_model, name, pretrained=False)
        return _with_sizes(spec, create, state, "in_chans")
    if source == "torchvision":
        create = functools.partial(_package("torchvision.models").get_model, name, weights=None)
        return _with_sizes(spec, create, state)
    if "=" in name:
        return build_network(spec)
    choices = f"a built-in name ({', '.join(NETWORKS)}), package.module:callable, timm:NAME or torchvision:NAME"
    found: Any = load_callable(spec, "architecture", choices)
    network = found if isinstance(found, nn.Module) else _call(spec, found)
    if not isinstance(network, nn.Module):
        raise InputError(f"'{spec}' returned an object of type {type(network).__name__}, not a torch.nn.Module.")
    return network


def _described(hub: HubModel) -> nn.Module:
    if hub.package == "timm":
        create = functools.partial(_package("timm").create_model, hub.name, pretrained=False)
        return _call(str(hub), create, **hub.options)
    return _call(str(hub), _image_classifier, package=_package("transformers"), model_type=hub.name, options=hub.options)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise InputError(f"{package} cannot be imported ({first_line(error)}).") from error
        # timm brings torchvision, and pip's choice is a build for CUDA, which no other torch loads.
        before = f", after the torchvision of this torch: {torchvision_command(torch.__version__)}"
        before = before if package == "timm" and importlib.util.find_spec("torchvision") is None else ""
        command = torchvision_command(torch.__version__) if package == "torchvision" else f"pip install {package}{before}"
        raise InputError(f"This architecture needs {package}; install it with: {command}.") from error
    except Exception as error:  # of a package that does not go with the installed torch
        matching = f"install it and what it needs in the versions that go with torch {torch.__version__}"
        if "torchvision" in f"{name} {error}":
            matching = f"install the torchvision of torch {torch.__version__}: {torchvision_command(torch.__version__)}"
        raise InputError(
            f"{name.partition('.')[0]} is installed but cannot be imported ({first_line(error)}); {matching}."
        ) from error


def torchvision_command(version: str) -> str:
    """What installs the torchvision that goes with a version of torch, such as "2.13.0+cpu"; torch itself is left alone.

    The numbers of both rise together: torchvision 0.15 was made for torch 2.0, 0.26 for torch 2.11
    (https://github.com/pytorch/vision#installation). It finds its operators only in a torch of the same build.
    """
    release, _, build = version.partition("+")
    numbers = [int(part) for part in re.findall(r"\d+", release)[:3]]
    if len(numbers) < 3 or numbers[0] != 2:
        return "pip install --no-deps --force-reinstall torchvision"
    command = f"pip install --no-deps --force-reinstall torchvision==0.{numbers[1] + 15}.{numbers[2]}"
    return f"{command}+{build} --index-url INDEX, where INDEX is PyTorch's package index for '{build}'" if build else command


def _call(spec: str, build: Callable[..., Any], **options: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the user's or the package's own making
            return build(**options)
    except (Exception, SystemExit) as raised:
        error: BaseException = raised
        reasons = [first_line(error)]
        while error.__cause__ is not None:
            error = error.__cause__
        reasons += [first_line(error)] if first_line(error) not in reasons else []
        raise InputError(f"Building '{spec}' failed ({'; '.join(reasons)}).") from error


def _with_sizes(spec: str, build: Callable[..., Any], state: Mapping[str, Tensor], channels: str | None = None) -> nn.Module:
    """Builds with the package's defaults, then once more if the checkpoint's head has another number of rows, or its first
    conv another number of channels and the package an option for that, called `channels`."""
    network: nn.Module = _call(spec, build)
    names = network.state_dict()
    prefix = next((each for each, _ in prefixes(state, names)), "")
    pairs = [(tensor.shape, fresh.shape) for name, fresh in names.items()
             if (tensor := state.get(prefix + name)) is not None and tensor.dim() == fresh.dim() > 0]  # fmt: skip
    rows = {stored[0] for stored, fresh in pairs if stored[0] != fresh[0] and stored[1:] == fresh[1:]}
    read = {stored[1] for stored, fresh in pairs if len(fresh) == 4 and stored[:1] + stored[2:] == fresh[:1] + fresh[2:]
            and stored[1] != fresh[1]}  # fmt: skip
    options = {"num_classes": rows.pop()} if len(rows) == 1 else {}
    if channels is not None and len(read) == 1:
        options[channels] = read.pop()
    return _call(spec, build, **options) if options else network


def likely(state: Mapping[str, Tensor]) -> str | None:
    """The built-in network whose tensors have the names and shapes of these, such as "vgg11_bn:width=16,channels=1"."""
    for name, build in NETWORKS.items():
        with torch.device("meta"):
            modules = list(build().named_modules())
            stem = next(f"{at}.weight" for at, module in modules if isinstance(module, nn.Conv2d))
            head = next(f"{at}.weight" for at, module in reversed(modules) if isinstance(module, nn.Linear))
            prefix = next((each for each, _ in prefixes(state, {stem, head})), "")
            shapes = {key.removeprefix(prefix): tensor.shape for key, tensor in state.items() if key.startswith(prefix)}
            if len(shapes.get(stem, ())) != 4 or len(shapes.get(head, ())) != 2:
                continue
            sizes = {"width": shapes[stem][0], "classes": shapes[head][0], "channels": shapes[stem][1]}
            if sizes["width"] % 4:
                continue
            network = build(**sizes)
        if {key: tensor.shape for key, tensor in network.state_dict().items()} == shapes:
            usual = inspect.signature(build).parameters
            options = ",".join(f"{key}={size}" for key, size in sizes.items() if size != usual[key].default)
            return f"{name}:{options}" if options else name
    return None


class PlainClassifier(nn.Module):
    """The forward of one batch of images to logits, put in front of a class of transformers."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(pixel_values=images).logits

    def names_in_files(self) -> dict[str, str]:
        """The network's name of each tensor by its name in files; from version 5 of transformers on they may differ.

        Saves the number of each tensor in its place and reads under which names they are stored.

        Raises:
            InputError: a file holds other tensors than the network, not just other names.
        """
        names = list(self.state_dict())
        numbers = {name: torch.tensor([index]) for index, name in enumerate(names)}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            self.save_pretrained(folder, state_dict=numbers)  # type: ignore[operator]
            with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
                stored = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118 - not a mapping
        if sorted(stored.values()) != [[index] for index in range(len(names))]:
            raise InputError("The files of this network hold other tensors than the network itself; give a .pt2 instead.")
        return {name: names[index] for name, (index,) in stored.items()}


def _image_classifier(package: Any, model_type: str, options: dict[str, Any]) -> nn.Module:
    """The classifier that `package` (transformers) builds from a config, with fresh float32 weights; fetches nothing."""
    config = package.AutoConfig.for_model(model_type, **options)
    # Eager attention is ordinary operations; other kinds may be kernels that are downloaded.
    network: nn.Module = package.AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    # A subclass instead of a module around it, so that every tensor keeps its name.
    network.__class__ = type("PlainClassifier", (PlainClassifier, type(network)), {})
    return network.float()
