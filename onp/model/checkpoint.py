"""Reading an untrusted checkpoint without running anything in it, and writing it back in the same layout."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from onp.errors import InputError, UnsafeCheckpointError, first_few, first_line
from onp.files import file_kind
from onp.model import pt2
from onp.model.numpy_values import STAND_INS, settled
from onp.model.pickle_scan import scan
from onp.model.state_dicts import USUAL_KEYS, Copy, Place, choose_weights, copies, file_and_key, prefixes, states, with_tensors

FOREIGN = frozenset({".onnx", ".h5", ".hdf5", ".keras", ".pb", ".tflite", ".mlmodel", ".engine"})  #: others' formats
SHARED = 16  # how often the bytes of a file may be part of tensors; with tied weights some are twice
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CONVERT = "where you trust the file, load it and re-save only its weights: torch.save(model.state_dict(), 'weights.pt')"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint file and what is needed to write them back in the same layout.

    `container` is the object that torch.load gave ("torch": the state dict itself or a dict that holds it at `place`), the
    tensors by name ("safetensors") or the verified archive members ("pt2").
    """

    path: Path
    kind: str  #: "safetensors", "torch" or "pt2"
    state: dict[str, Tensor]  #: original dtypes, on the CPU; under the network's names
    stored_as: Mapping[str, str] = field(default_factory=dict)  #: those names in the file that are others, by the network's
    place: Place = ()
    container: Any = field(default=None, repr=False)
    copies: tuple[Copy, ...] = ()  #: further copies of the weights in the file, which are written like `state`
    metadata: dict[str, str] | None = None  #: of a safetensors file
    edited: frozenset[str] = frozenset()  #: names of the tensors that differ from the file

    def with_edits(self, edits: Mapping[str, Tensor]) -> Checkpoint:
        """A checkpoint with some tensors replaced by others of the same shape and dtype."""
        return replace(self, state={**self.state, **edits}, edited=self.edited | edits.keys())

    def to_bytes(self) -> bytes:
        """The file's content: format, names, dtypes, metadata and unedited tensors as they were read.

        Copies of edited weights are replaced by them, so that whichever is loaded is what was edited.
        """
        if self.kind == "pt2":
            return pt2.pack(pt2.patch(self.container, {name: self.state[name] for name in self.edited}))
        changed = {self.stored_as.get(name, name): self.state[name] for name in self.edited}
        content = with_tensors(self.container, self.place, changed)
        for each in self.copies if self.edited else ():
            content = with_tensors(content, each.place, {key: self.state[name].clone() for name, key in each.stored_as.items()})
        if self.kind == "safetensors":
            return safetensors_bytes({name: tensor.contiguous() for name, tensor in content.items()}, self.metadata)
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()


def read_checkpoint(location: Path | str) -> Checkpoint:
    """Read safetensors, torch weights (a state dict, or dicts that hold one) or an exported program (.pt2).

    Args:
        location: PATH, or PATH::KEY for the weights under a key of the dict in the file, PATH::KEY/KEY for deeper ones.

    Raises:
        InputError: the file is missing or damaged, holds pickled objects, or has NaN or infinite weights.
    """
    path, wanted = file_and_key(location)
    check_file(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        raise InputError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    if (foreign := _foreign(path, head)) is not None:
        raise InputError(f"{path} is {foreign}.")
    members = _members(path) if head.startswith(b"PK\x03\x04") else []
    names = [member.filename for member in members]
    # The content decides, not the suffix: a pickle may be called model.safetensors.
    if pt2.is_archive(names):
        content = pt2.read_members(path)
        checkpoint = Checkpoint(path, "pt2", pt2.state_dict(content), container=content)
    elif path.suffix == ".safetensors" or head[8:9] == b"{":
        checkpoint = _read_safetensors(path)
    else:
        checkpoint = _read_torch(path, head, names, wanted)
    if wanted and checkpoint.kind != "torch":
        raise InputError(f"{path} holds one set of weights, and none under {wanted}; leave out ::{wanted}.")
    _check_values(path, checkpoint.state)
    return checkpoint


def check_file(path: Path) -> None:
    """Raise InputError where there is no checkpoint file at `path`."""
    kind = file_kind(path)
    if kind == "folder":
        raise InputError(f"{path} is a folder without a config.json; give the checkpoint file in it.")
    if kind == "other":
        raise InputError(f"{path} is a device or pipe; give a checkpoint file.")
    if kind is None:
        raise InputError(f"There is no checkpoint {path}; nothing is downloaded, give a file or folder of this machine.")


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
        states(state)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}); download or copy it again.") from error
    if not state:
        raise InputError(f"{path} holds no tensors.")
    return Checkpoint(path, "safetensors", state, container=state, metadata=metadata)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    """What a zip file says it holds; torch writes nothing compressed, so nothing may become larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile raises many kinds on damaged bytes
        raise InputError(f"{path} is cut off or damaged ({first_line(error)}); download or copy it again.") from error
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise InputError(f"{path} is a compressed zip file, which torch does not write; save the weights with torch.save.")
    return members


def _read_torch(path: Path, head: bytes, names: list[str], wanted: str) -> Checkpoint:
    if not names and not head.startswith(b"\x80"):
        raise InputError(f"{path} is not a checkpoint: neither safetensors, torch weights nor an exported program.")
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise UnsafeCheckpointError(f"{path} is a TorchScript program, which holds code; {_CONVERT}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of old storage types inside torch
            scan(path)
            with torch.serialization.safe_globals(STAND_INS):
                content = settled(torch.load(path, map_location="cpu", weights_only=True))
        found = states(content)
    except pickle.UnpicklingError as error:
        # Everything but tensors and plain containers ends here, before any of it is built.
        message = f"{path} holds pickled Python objects, which can run code when opened; {_CONVERT}."
        raise UnsafeCheckpointError(message) from error
    except Exception as error:
        raise InputError(f"{path} is a damaged torch file ({first_line(error)}); download or copy it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict.")
    if not found:
        raise InputError(
            f"{path} holds no state dict: its entries are {first_few(content) or 'none'}, weights are tensors by name, "
            f"at the top or in a dict under {', '.join(USUAL_KEYS)} or another key."
        )
    place = choose_weights(path, found, wanted)
    return Checkpoint(path, "torch", found[place], place=place, container=content)


def _check_values(path: Path, state: Mapping[str, Tensor]) -> None:
    odd = [name for name, t in state.items() if t.layout != torch.strided or t.is_quantized or t.is_meta]
    if odd:
        raise InputError(f"{path} holds sparse, quantised or empty tensors ({first_few(odd)}); save plain float weights.")
    odd = [f"{name} is {t.dtype}" for name, t in state.items() if t.is_floating_point() and t.dtype not in _DTYPES]
    if odd:
        raise InputError(f"{path} holds weights of a type that cannot be repaired ({first_few(odd)}); save float32 weights.")
    _check_storage(path, state)
    bad = [name for name, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise InputError(f"{path} has NaN or infinite values in {first_few(bad)}; the checkpoint is broken.")


def _check_storage(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that repeat a few stored numbers: each takes the memory of all its entries once it is read or copied."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    odd = [name for name, tensor in state.items() if sizes[name] > tensor.untyped_storage().nbytes()]
    if odd:
        raise InputError(f"{path} holds tensors larger than what is stored of them ({first_few(odd)}); save plain weights.")
    if sum(sizes.values()) > SHARED * path.stat().st_size:
        raise InputError(f"{path} holds the same numbers under many names; save plain weights.")


def renamed(checkpoint: Checkpoint, network: nn.Module, names: Mapping[str, str]) -> Checkpoint:
    """The checkpoint under the names of `network`: without the prefix that most of those have in the file.

    Tensors with another prefix are left out.

    Args:
        checkpoint: under the names in the file.
        network: the one that the weights belong to.
        names: the network's name of a tensor by its name in files, where they differ.

    Raises:
        InputError: two tensors would have one name.
    """
    prefix = next((each for each, _ in prefixes(checkpoint.state, {*network.state_dict(), *names})), "")
    stored = [name for name in checkpoint.state if name.startswith(prefix)]
    bare = {name.removeprefix(prefix): name for name in stored}
    stored_as = {names.get(name, name): stored for name, stored in bare.items()}
    if len(stored_as) < len(bare):
        raise InputError(f"{checkpoint.path} holds a tensor under two names; save the model again.")
    state = {name: checkpoint.state[stored] for name, stored in stored_as.items()}
    shown = {name: names.get(name, name) for name in bare}
    further = copies(states(checkpoint.container), checkpoint.place, prefix, shown, state)
    return replace(checkpoint, state=state, stored_as=stored_as, copies=further)


def load_into(network: nn.Module, checkpoint: Checkpoint, arch: str, better: Callable[[], str | None] = lambda: None) -> None:
    """Copy the checkpoint's tensors into a network, converted to its dtypes.

    Args:
        network: gets the tensors.
        checkpoint: under the network's names.
        arch: what a message calls the network.
        better: where they do not fit, the architecture that they do fit, if it is known.

    Raises:
        InputError: they do not fit; the message names the first few missing, extra and mis-shaped tensors.
    """
    wanted = network.state_dict()
    if lazy := [name for name, tensor in wanted.items() if nn.parameter.is_lazy(tensor)]:
        raise InputError(f"{arch} has layers whose sizes are not known yet ({first_few(lazy)}); give them their sizes.")
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
    mistyped = [
        name
        for name, tensor in wanted.items()
        if name in checkpoint.state and _describe(checkpoint.state[name]) != _describe(tensor)
    ]
    misfit = [
        f"{name} is {_describe(checkpoint.state[name])} in the file and {_describe(tensor)} in the network"
        for name, tensor in wanted.items()
        if name in mistyped
    ]
    found = {"missing": missing, "unknown to the network": extra, "of another shape or type": misfit}
    problems = [f"{text}: {len(names)} ({first_few(names, 2)})" for text, names in found.items() if names]
    if problems:
        summary = "; ".join(problems)
        if not missing and not extra and all(checkpoint.state[name].shape == wanted[name].shape for name in mistyped):
            advice = "save them in the network's types"
        else:
            advice = f"they fit --arch {fits}" if (fits := better()) else "check the architecture"
        raise InputError(f"{checkpoint.path} does not fit {arch}: tensors {summary}; {advice}.")
    network.load_state_dict(checkpoint.state, strict=False)


def _describe(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}"
