"""Exported programs (.pt2) from strangers: what may be in the archive, checked before torch sees it.

torch.export.load must not be given an untrusted file. Found in torch 2.13 (torch/export/pt2_archive/_package.py,
torch/_export/serde/serialize.py, torch/export/_unlift.py):
- weights and constants marked `use_pickle`, custom and opaque constants, legacy .pt members and the sample inputs are
  unpickled without `weights_only`;
- shared libraries under data/aotinductor are loaded into the process;
- strings of model.json are evaluated as Python: symbolic sizes (sympy.sympify), guards (exec), names of nodes and
  parameters (they become the source of forward()); an operator may be any attribute that can be reached from `torch`.
So only raw tensor bytes and a model.json that passes an allow-list are kept; guards, sample inputs, extra files and
debugging metadata are dropped, and everything else is refused. A repaired program has the same verified members.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from onp.errors import InputError, UnsafeCheckpointError, first_line, printable
from onp.model.capture import plain, silenced

Members = dict[str, bytes]

_KEPT = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|"
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)|"
    r"models/model\.json"
)
_DROPPED = re.compile(r"data/sample_inputs/model\.pt|extra/.*")
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_WORD = re.compile(r"[\w.]*", re.ASCII)
_NAME = re.compile(r"([A-Za-z_]\w*)?", re.ASCII)
_STRING_ARGUMENT = re.compile(r"[\w, >.-]*", re.ASCII)  # "same", "tanh", an einsum equation
_TARGET = re.compile(
    r"torch\.ops\.aten\.(__)?[a-zA-Z]\w*\.[a-zA-Z]\w*|torch\.sym_(int|max|min|not)|"
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge)",
    re.ASCII,
)
_FILE_OPS = re.compile(r"torch\.ops\.aten\.(from_file|save|load)\b")
# Sizes are sympy's srepr, "Add(Symbol('s77', positive=True, integer=True), Integer(1))"; powers are left out, because
# they can be made to take forever.
_SIZE_FUNCTIONS = (
    "Symbol|Integer|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|Identity|And|Or|Not|"
    "Equality|Unequality|GreaterThan|StrictGreaterThan|LessThan|StrictLessThan|Eq|Ne|Ge|Gt|Le|Lt"
)
_SIZE = re.compile(
    rf"(?:'?[su]\d{{1,9}}\b'?|\d{{1,12}}\b|(?:{_SIZE_FUNCTIONS})(?=\()|[a-z]+=(?:True|False)\b|"
    r"\*(?!\*)|[-+(), <>=])*",
    re.ASCII,
)
_PATTERNS = {"expr_str": _SIZE, "name": _NAME, "forward_arg_names": _NAME, "as_string": _STRING_ARGUMENT}
_CALLABLE = frozenset({"_operator", "torch"})  # getitem and integer arithmetic; torch.sym_max and its kind
_FORBIDDEN = frozenset({"as_custom_obj", "as_operator", "as_graph", "as_string_to_argument", "custom_obj"})


def is_archive(names: Sequence[str]) -> bool:
    """Whether a zip file with these members is an exported program, of any version."""
    return any(n.endswith(("/archive_format", "/models/model.json", "serialized_exported_program.json")) for n in names)


def read_members(path: Path) -> Members:
    """The verified members of the archive, by name (with the archive's root folder).

    Raises InputError when the archive holds anything but one program made of aten operators, and raw tensors.
    """
    members: Members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
                    raise InputError(f"{path} is a compressed zip file, which torch does not write; re-export the program.")
                inner = name.partition("/")[2]
                if _DROPPED.fullmatch(inner):
                    # The loader asks for this member and skips it when it is empty.
                    members |= {name: b""} if inner.startswith("data/sample_inputs/") else {}
                elif not _KEPT.fullmatch(inner) or name in members:
                    raise UnsafeCheckpointError(
                        f"{path} holds '{printable(name)}', which may run code when opened; re-export the program with "
                        "a current torch: torch.export.save(torch.export.export(model, inputs), 'model.pt2')."
                    )
                else:
                    members[name] = archive.read(name)
        root = next(name for name in members if name.endswith("/models/model.json")).partition("/")[0]
        for config in _CONFIGS:
            _check_config(json.loads(members[f"{root}/{config}"]))
        program = _clean_program(json.loads(members[f"{root}/models/model.json"]))
        members[f"{root}/models/model.json"] = json.dumps(program).encode()
    except InputError as error:
        raise type(error)(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:
        raise InputError(f"{path} is a damaged or unknown kind of exported program ({first_line(error)}).") from error
    return members


def _check_config(document: Any) -> None:
    for name, entry in document["config"].items():
        pickled = entry["use_pickle"] is not False or entry["tensor_meta"] is None
        if pickled or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise UnsafeCheckpointError(f"tensor {name} is a pickle, which can run code; re-export it from plain tensors.")
        _check_name("parameter_name", name)
        _check(entry["tensor_meta"])
        size, stride = ([number["as_int"] for number in entry["tensor_meta"][field]] for field in ("sizes", "strides"))
        if any(count > 1 and step < 1 for count, step in zip(size, stride, strict=True)):
            raise InputError(f"tensor {printable(name)} repeats a few stored numbers; re-export it from plain tensors.")


def _clean_program(document: Any) -> dict[str, Any]:
    """model.json with nothing in it that its loader evaluates, beyond what the patterns above let through."""
    module = document["graph_module"]
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}
    calls = [call for call in module["module_call_graph"] if call["fqn"] == ""]
    module = {**module, "metadata": {}, "treespec_namedtuple_fields": {}, "module_call_graph": calls}
    document = {**document, "graph_module": module, "guards_code": [], "torch_version": torch.__version__.split("+")[0]}
    _check(document)
    return document


def _check(value: Any, key: str = "") -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _FORBIDDEN and item is not None:
                raise InputError(f"the program uses {name}, which is not supported; re-export it from plain layers.")
            _check_name("parameter_name", name)
            _check(item, name)
    elif isinstance(value, list):
        for item in value:
            _check(item, key)
    elif isinstance(value, str):
        _check_name(key, value)


def _check_name(key: str, text: str) -> None:
    if key == "target":
        fine = bool(_TARGET.fullmatch(text)) and not _FILE_OPS.match(text)
    elif key in ("in_spec", "out_spec"):
        fine = _is_plain_tree(json.loads(text)[1])
    else:
        fine = _PATTERNS.get(key, _WORD).fullmatch(text) is not None
    if not fine:
        raise UnsafeCheckpointError(f"the program has {text[:60]!r} as {key or 'a value'}, which could run code.")


def _is_plain_tree(spec: Any) -> bool:
    """Whether a serialised pytree is made of tuples, lists and dicts; other kinds import modules when they are read."""
    context = spec["context"]
    keys = json.loads(context) if isinstance(context, str) else context
    return (
        spec["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
        and (keys is None or (isinstance(keys, list) and all(isinstance(k, str) and _NAME.fullmatch(k) for k in keys)))
        and all(map(_is_plain_tree, spec["children_spec"]))
    )


def pack(members: Mapping[str, bytes]) -> bytes:
    """The archive file of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _load(members: Mapping[str, bytes]) -> torch.export.ExportedProgram:
    """Deserialises members that `read_members` has verified."""
    try:
        with silenced():
            exported = torch.export.load(io.BytesIO(pack(members)))
    except Exception as error:
        raise InputError(f"The exported program cannot be read ({first_line(error)}); re-export it.") from error
    for node in exported.graph.nodes:
        # A second check: whatever a name resolved to, only registered operators and arithmetic are ever called.
        known = isinstance(node.target, torch._ops.OpOverload) or getattr(node.target, "__module__", "") in _CALLABLE
        if node.op == "call_function" and not known:
            raise InputError(f"The exported program calls {node.target}, which is not an operator of torch.")
    return exported


def state_dict(members: Mapping[str, bytes]) -> dict[str, Tensor]:
    """The parameters and buffers of the program, in their own dtypes."""
    return {name: tensor.detach() for name, tensor in _load(members).state_dict.items()}


def module(members: Mapping[str, bytes]) -> fx.GraphModule:
    """The program as a module whose state-dict keys are those of `state_dict`.

    Raises:
        InputError: it is not one from a batch of images to logits.
    """
    exported = _load(members)
    try:
        return plain(exported)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The exported program is damaged ({first_line(error)}); re-export it.") from error


def patch(members: Mapping[str, bytes], edits: Mapping[str, Tensor]) -> Members:
    """The members with some tensors overwritten in place; all other bytes stay as they are."""
    root = next(iter(members)).partition("/")[0]
    config = json.loads(members[f"{root}/{_CONFIGS[0]}"])["config"]
    patched = {name: bytearray(content) for name, content in members.items()}
    for name, tensor in edits.items():
        entry = config[name]
        meta = entry["tensor_meta"]
        raw = torch.frombuffer(patched[f"{root}/data/weights/{entry['path_name']}"], dtype=tensor.dtype)
        size, stride = ([number["as_int"] for number in meta[field]] for field in ("sizes", "strides"))
        raw.as_strided(size, stride, meta["storage_offset"]["as_int"]).copy_(tensor)
    return {name: bytes(content) for name, content in patched.items()}
