"""CIFAR-10 and CIFAR-100 as distributed (https://www.cs.toronto.edu/~kriz/cifar.html), python or binary version.

The python version consists of pickles, and unpickling runs whatever the file says. So they are not unpickled: their
opcodes are walked as plain data. Only opcodes that build numbers, strings and containers are known; a global is kept
as its two words and is never imported, a call is never made. The three calls numpy's arrays consist of are recognised
by name and carried out by this file's own code on bytes; anything else is an InputError.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from onp.errors import InputError

SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class _Global:
    module: str
    name: str


@dataclass
class _Array:
    """An array announced by a call and filled by the state that follows; `value` is None in between."""

    value: np.ndarray | None = None


@dataclass(frozen=True)
class _ByteType:
    """numpy.dtype('u1'), the only element type of the batches."""


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"})
_STRINGS = frozenset({"BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"})
_LITERALS = _INTEGERS | _STRINGS | {"BINBYTES", "SHORT_BINBYTES"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def parse_pickle(content: bytes) -> Any:
    """The value of a pickle of plain containers and uint8 arrays, without unpickling; raises ValueError for others.

    Strings of Python 2 come as str with one character a byte (latin-1).
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        position = len(stack) - 1 - next(i for i, value in enumerate(reversed(stack)) if value is _MARK)
        items = stack[position + 1 :]
        del stack[position:]
        return items

    try:
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            elif name == "MARK":
                stack.append(_MARK)
            elif name in ("EMPTY_LIST", "EMPTY_DICT"):
                stack.append([] if name == "EMPTY_LIST" else {})
            elif name in ("LIST", "TUPLE"):
                items = since_mark()
                stack.append(items if name == "LIST" else tuple(items))
            elif name in _TUPLES:
                first = len(stack) - _TUPLES[name]
                stack[first:] = [tuple(stack[first:])]
            elif name in ("APPEND", "APPENDS"):
                items = since_mark() if name == "APPENDS" else [stack.pop()]
                stack[-1] += items
            elif name in ("DICT", "SETITEM", "SETITEMS"):
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
                if name == "DICT":
                    stack.append({})
                # Only strings: the hash of tuples nested without end would overflow the interpreter's stack.
                if not all(isinstance(key, str | bytes) for key in items[::2]):
                    raise ValueError("a dictionary has other keys than strings")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            elif name == "GLOBAL":
                stack.append(_Global(*str(argument).split(" ")))
            elif name == "STACK_GLOBAL":
                stack.append(_Global(stack.pop(-2), stack.pop()))
            elif name == "REDUCE":
                stack.append(_call(stack.pop(-2), stack.pop()))
            elif name == "BUILD":
                _fill(stack[-2], stack.pop())
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"the opcode {name} is not plain data")
    except (IndexError, KeyError, TypeError, AttributeError, StopIteration, OverflowError) as error:
        raise ValueError("the pickle is damaged") from error
    if len(stack) != 1:
        raise ValueError("the pickle is damaged")
    return stack[0]


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    if function in (_Global(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")):
        return _Array()
    if function == _Global("numpy", "dtype") and arguments[0] == "u1":
        return _ByteType()
    # How Python 3 writes bytes in the older protocols.
    if function == _Global("_codecs", "encode") and arguments[1] == "latin1":
        return arguments[0].encode("latin-1")
    raise ValueError("a call in it is not plain data")


def _fill(target: Any, state: tuple[Any, ...]) -> None:
    if isinstance(target, _ByteType):
        return
    if not isinstance(target, _Array):
        raise ValueError("the pickle sets the state of something other than an array")
    _, shape, element, columns_first, content = state
    if not isinstance(element, _ByteType):
        raise ValueError("an array of other than bytes")
    raw = content.encode("latin-1") if isinstance(content, str) else content
    target.value = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if columns_first else "C")


def read_cifar(where: str, batches: dict[str, bytes], part: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Join batch files (name -> content) to images uint8 `[N, 3, 32, 32]`, labels int64 `[N]` and class names.

    `part` is `train`, `test` or, for the training batches where there are any, empty.
    """
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for name in sorted(batches):
        stem = name.removesuffix(".bin")
        if stem in ("train", "test"):
            parts[stem].append(name)
        elif stem == "test_batch" or stem.startswith("data_batch_"):
            parts["test" if stem == "test_batch" else "train"].append(name)
    if part not in ("", "train", "test"):
        raise InputError(f"{where} holds CIFAR batches; choose ::train or ::test, not ::{part}.")
    chosen = parts[part] if part else parts["train"] or parts["test"]
    if not chosen:
        raise InputError(f"{where} holds no {part or 'data'} batch.")
    read = [_read_batch(f"{name} of {where}", name, batches[name]) for name in chosen]
    images, labels = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    return images, labels, _class_names(where, batches)


def _read_batch(where: str, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    size = int(np.prod(SHAPE))
    if name.endswith(".bin"):
        # CIFAR-100 has a coarse label before the fine one.
        labels = 2 if name in ("train.bin", "test.bin") else 1
        if not content or len(content) % (labels + size):
            raise InputError(f"The batch {where} is truncated or damaged; its records have {labels + size} bytes.")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, labels + size)
        return records[:, labels:].reshape(-1, *SHAPE), records[:, labels - 1].astype(np.int64)
    record = _read_record(where, content)
    data, listed = record.get("data"), record.get("fine_labels", record.get("labels"))
    pixels = data.value if isinstance(data, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != size or not isinstance(listed, list):
        raise InputError(f"The batch {where} has no 'data' of {size} bytes an image with 'labels' beside it.")
    if len(listed) != len(pixels) or not all(type(label) is int and 0 <= label < 256 for label in listed):
        raise InputError(f"The batch {where} needs one label from 0 to 255 for each of its {len(pixels)} images.")
    return pixels.reshape(-1, *SHAPE), np.array(listed, dtype=np.int64)


def _class_names(where: str, batches: dict[str, bytes]) -> tuple[str, ...]:
    text = batches.get("batches.meta.txt", batches.get("fine_label_names.txt"))
    if text is not None:
        return tuple(text.decode("utf-8", "replace").split())
    content = batches.get("batches.meta", batches.get("meta"))
    if content is None:
        return ()
    record = _read_record(f"meta of {where}", content)
    names = record.get("fine_label_names", record.get("label_names", []))
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f"The class names of {where} are no strings; use the original files.")
    return tuple(_text(name) for name in names)


def _read_record(where: str, content: bytes) -> dict[str, Any]:
    try:
        record = parse_pickle(content)
    except ValueError as error:
        raise InputError(
            f"The batch {where} is damaged or not plain data ({error}); it was not opened, use the original files."
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"The batch {where} is no dictionary; use the original files.")
    return {_text(key): value for key, value in record.items()}


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
