"""Reading an untrusted checkpoint without running anything in it, and writing it back in the same layout."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from onp import pt2
from onp.capture import first_line
from onp.errors import InputError

# What training code wraps the state dict in; what DataParallel, torch.compile and Lightning put before names.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "model_state", "network", "weights")
PREFIXES = ("", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "timm_model.")
FOREIGN = frozenset({".onnx", ".h5", ".hdf5", ".keras", ".pb", ".tflite", ".mlmodel", ".engine"})  #: others' formats
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CONVERT = (
    "where you trust the file, load it and re-save only its weights: torch.save(model.state_dict(), 'weights.pt')"
)
# Arrays and scalars of numbers and text, which training code keeps beside the weights (BackdoorBench's attack_result.pt does);
# under the names of numpy 1 and 2. Not arrays of objects.
_multiarray = np._core.multiarray  # type: ignore[attr-defined]
_NUMPY: list[Any] = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"},
    *(
        (getattr(_multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for core in ("core", "_core")
    ),
]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint file and what is needed to write them back in the same layout.

    `container` is the object that torch.load gave ("torch": the state dict itself or a dict that holds it under `key`)
    or the verified archive members ("pt2").
    """

    path: Path
    kind: str  #: "safetensors", "torch" or "pt2"
    state: dict[str, Tensor]  #: original dtypes, on the CPU; under the network's names
    stored_as: Mapping[str, str] = field(default_factory=dict)  #: those names in the file that are others, by the network's
    key: str | None = None
    container: Any = field(default=None, repr=False)
    metadata: dict[str, str] | None = None  #: of a safetensors file
    edited: frozenset[str] = frozenset()  #: names of the tensors that differ from the file

    def with_edits(self, edits: Mapping[str, Tensor]) -> Checkpoint:
        """A checkpoint with some tensors replaced by others of the same shape and dtype."""
        return replace(self, state={**self.state, **edits}, edited=self.edited | edits.keys())

    def to_bytes(self) -> bytes:
        """The file's content: format, names, dtypes, metadata and unedited tensors as they were read."""
        stored = {self.stored_as.get(name, name): tensor for name, tensor in self.state.items()}
        if self.kind == "safetensors":
            return safetensors_bytes({name: tensor.contiguous() for name, tensor in stored.items()}, self.metadata)
        if self.kind == "pt2":
            return pt2.pack(pt2.patch(self.container, {name: self.state[name] for name in self.edited}))
        # A shallow copy keeps the type of an OrderedDict and the `_metadata` that state_dict() puts on it.
        container = copy.copy(self.container)
        inner = copy.copy(container[self.key]) if self.key is not None else container
        for name in self.edited:
            key, new = self.stored_as.get(name, name), self.state[name]
            old = inner[key]
            inner[key] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        if self.key is not None:
            container[self.key] = inner
        buffer = io.BytesIO()
        torch.save(container, buffer)
        return buffer.getvalue()


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Reads safetensors, torch weights (a state dict, or a dict that holds one) or an exported program (.pt2).

    Raises InputError for a missing or damaged file, one that holds pickled objects, and NaN or infinite weights.
    """
    path = Path(path)
    check_file(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        raise InputError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    if (foreign := _foreign(path, head)) is not None:
        raise InputError(f"{path} is {foreign}.")
    names = _members(path) if head.startswith(b"PK\x03\x04") else []
    # The content decides, not the suffix: a pickle may be called model.safetensors.
    if pt2.is_archive(names):
        members = pt2.read_members(path)
        checkpoint = Checkpoint(path, "pt2", pt2.state_dict(members), container=members)
    elif path.suffix == ".safetensors" or head[8:9] == b"{":
        checkpoint = _read_safetensors(path)
    else:
        checkpoint = _read_torch(path, head, names)
    _check_values(path, checkpoint.state)
    return checkpoint


def check_file(path: Path) -> None:
    """Raises InputError for a checkpoint that is not there, and for a folder without what says what it holds."""
    if path.is_dir():
        raise InputError(f"{path} is a folder without a config.json; give the checkpoint file in it.")
    if not path.exists():
        where = "nothing is downloaded, give a file or folder of this machine"
        raise InputError(f"There is no checkpoint {path}; {where}.")


def _foreign(path: Path, head: bytes) -> str | None:
    """What a file is that people take for a checkpoint, and what to do; None for all others."""
    if head.startswith(b"version https://git-lfs"):
        return "only a pointer of Git LFS; fetch the file itself with: git lfs pull"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "a web page, not a checkpoint; download the file itself"
    if path.suffix.lower() in FOREIGN:
        return f"a {path.suffix} file, which is not torch's; give the torch checkpoint that it was made from"
    return None


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata()
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}); download or copy it again.") from error
    if not state:
        raise InputError(f"{path} holds no tensors.")
    return Checkpoint(path, "safetensors", state, metadata=metadata)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is cut off or damaged ({first_line(error)}); download or copy it again.") from error


def _read_torch(path: Path, head: bytes, names: list[str]) -> Checkpoint:
    if not names and not head.startswith(b"\x80"):
        raise InputError(f"{path} is not a checkpoint: neither safetensors, torch weights nor an exported program.")
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise InputError(f"{path} is a TorchScript program, which holds code; {_CONVERT}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of old storage types inside torch
            with torch.serialization.safe_globals(_NUMPY):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Everything but tensors and plain containers ends here, before any of it is built.
        raise InputError(f"{path} holds pickled Python objects, which can run code when opened; {_CONVERT}.") from error
    except Exception as error:
        raise InputError(f"{path} is a damaged torch file ({first_line(error)}); download or copy it again.") from error
    key, state = _find_state(path, content)
    return Checkpoint(path, "torch", state, key=key, container=content)


def _find_state(path: Path, content: Any) -> tuple[str | None, dict[str, Tensor]]:
    """The state dict in what torch.load gave, and the key it is under."""
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict.")
    for key in (None, *_CONTAINERS):
        state = content if key is None else content.get(key)
        if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
            continue
        if all(isinstance(tensor, Tensor) for tensor in state.values()):
            return key, {name: tensor.detach() for name, tensor in state.items()}
    raise InputError(
        f"{path} holds no state dict: its entries are {some(map(str, content))}, and weights are looked for at the top "
        f"and under {', '.join(_CONTAINERS)}."
    )


def _check_values(path: Path, state: Mapping[str, Tensor]) -> None:
    odd = [name for name, t in state.items() if t.layout != torch.strided or t.is_quantized or t.is_meta]
    if odd:
        raise InputError(f"{path} holds sparse, quantised or empty tensors ({some(odd)}); save plain float weights.")
    odd = [f"{name} is {t.dtype}" for name, t in state.items() if t.is_floating_point() and t.dtype not in _DTYPES]
    if odd:
        raise InputError(f"{path} holds weights of a type that cannot be repaired ({some(odd)}); save float32 weights.")
    bad = [name for name, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise InputError(f"{path} has NaN or infinite values in {some(bad)}; the checkpoint is broken.")


def some(names: Iterable[str], count: int = 3) -> str:
    """The first few names and how many more there are, for a message."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def renamed(checkpoint: Checkpoint, network: nn.Module, names: Mapping[str, str]) -> Checkpoint:
    """The checkpoint under the names of `network`: without a prefix that all share, and with `names`, which gives the
    network's name of a tensor by its name in files, where they differ.

    Raises InputError when two tensors would have one name.
    """
    wanted = {*network.state_dict(), *names}

    def matches(prefix: str) -> int:
        if not all(name.startswith(prefix) for name in checkpoint.state):
            return -1
        return sum(name.removeprefix(prefix) in wanted for name in checkpoint.state)

    prefix = max(PREFIXES, key=matches)
    bare = {stored: stored.removeprefix(prefix) for stored in checkpoint.state}
    stored_as = {names.get(name, name): stored for stored, name in bare.items()}
    if len(stored_as) < len(bare):
        raise InputError(f"{checkpoint.path} holds a tensor under two names; save the model again.")
    state = {name: checkpoint.state[stored] for name, stored in stored_as.items()}
    return replace(checkpoint, state=state, stored_as=stored_as)


def load_into(
    network: nn.Module, checkpoint: Checkpoint, arch: str, better: Callable[[], str | None] = lambda: None
) -> None:
    """Copies the checkpoint's tensors into `network`, converted to the network's dtypes.

    better: where they do not fit, the architecture that they do fit, if it is known.
    Raises InputError that names the first few missing, extra and mis-shaped tensors.
    """
    wanted = network.state_dict()
    present = {tensor.data_ptr() for name, tensor in wanted.items() if name in checkpoint.state and tensor.numel()}
    # Files from before torch 0.4.1 lack num_batches_tracked, and savers keep one name of a tensor that has several.
    missing = [
        name
        for name, tensor in wanted.items()
        if name not in checkpoint.state
        and not name.endswith("num_batches_tracked")
        and not (tensor.numel() and tensor.data_ptr() in present)
    ]
    extra = [name for name in checkpoint.state if name not in wanted]
    misfit = [
        f"{name} is {_describe(checkpoint.state[name])} in the file and {_describe(tensor)} in the network"
        for name, tensor in wanted.items()
        if name in checkpoint.state and _describe(checkpoint.state[name]) != _describe(tensor)
    ]
    found = {"missing": missing, "unknown to the network": extra, "of another shape or type": misfit}
    problems = [f"{text}: {len(names)} ({some(names, 2)})" for text, names in found.items() if names]
    if problems:
        summary = "; ".join(problems)
        fits = better()
        advice = f"they fit --arch {fits}" if fits else "check the architecture"
        raise InputError(f"{checkpoint.path} does not fit {arch}: tensors {summary}; {advice}.")
    network.load_state_dict(checkpoint.state, strict=False)


def _describe(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}"
