"""From an architecture SPEC on the command line to a network with the right number of classes."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from onp.archs import NETWORKS, build_network
from onp.capture import first_line
from onp.checkpoint import PREFIXES
from onp.classifiers import image_classifier
from onp.errors import InputError
from onp.hub import HubModel, hub_model


def network_for(spec: str, state: Mapping[str, Tensor], channels: int) -> nn.Module:
    """Builds the network that `spec` names, with fresh weights.

    spec: a built-in name with options ("preact_resnet18:width=32,classes=10"), "timm:NAME", "torchvision:NAME",
    "config:PATH" (a config.json of timm or transformers) or "package.module:callable" (imported from the current folder
    too, and called without arguments).
    state: the checkpoint's tensors; the number of classes of timm and torchvision networks is read off them.
    channels: of the images, for timm networks.

    Raises InputError when the spec is malformed, names nothing, or its package is missing.
    """
    source, _, name = spec.partition(":")
    if source in NETWORKS or not name:
        return build_network(spec)
    if (hub := hub_model(spec)) is not None:
        return _described(hub)
    if source == "timm":
        create = functools.partial(_package("timm").create_model, name, pretrained=False, in_chans=channels)
        return _with_classes(spec, create, state)
    if source == "torchvision":
        create = functools.partial(_package("torchvision.models").get_model, name, weights=None)
        return _with_classes(spec, create, state)
    if "=" in name:
        return build_network(spec)
    network = _call(spec, _user_callable(spec, source, name))
    if not isinstance(network, nn.Module):
        raise InputError(f"'{spec}' returned a {type(network).__name__}, not a torch.nn.Module.")
    return network


def _described(hub: HubModel) -> nn.Module:
    if hub.package == "timm":
        create = functools.partial(_package("timm").create_model, hub.name, pretrained=False)
        return _call(str(hub), create, **hub.options)
    return _call(str(hub), image_classifier, package=_package("transformers"), model_type=hub.name, options=hub.options)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"This architecture needs {package}; install it with: pip install {package}.") from error


def _user_callable(spec: str, module_name: str, name: str) -> Callable[[], Any]:
    # An installed command does not have the current folder on its path, `python -m` does.
    sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise InputError(
            f"The architecture '{spec}' cannot be imported ({first_line(error)}); write a built-in name "
            f"({', '.join(NETWORKS)}), package.module:callable, timm:NAME or torchvision:NAME."
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise InputError(f"'{spec}' is a {type(found).__name__}, not a function or class that builds the network.")
    return found


def _call(spec: str, build: Callable[..., Any], **options: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the user's or the package's own making
            return build(**options)
    except Exception as error:
        raise InputError(f"Building '{spec}' failed ({first_line(error)}).") from error


def _with_classes(spec: str, build: Callable[..., Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Builds with the package's default head, then once more if the checkpoint's head has another number of rows."""
    network: nn.Module = _call(spec, build)
    rows = {
        tensor.shape[0]
        for name, fresh in network.state_dict().items()
        if (tensor := _stored(state, name)) is not None
        and tensor.dim() == fresh.dim() > 0
        and tensor.shape[0] != fresh.shape[0]
        and tensor.shape[1:] == fresh.shape[1:]
    }
    return _call(spec, build, num_classes=rows.pop()) if len(rows) == 1 else network


def _stored(state: Mapping[str, Tensor], name: str) -> Tensor | None:
    names = (prefix + name for prefix in PREFIXES)
    return next((state[key] for key in names if key in state), None)
