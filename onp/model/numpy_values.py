"""numpy's numbers in a torch file, which training code keeps beside the weights, built without numpy's own unpickling.

`numpy.dtype.__setstate__` believes the sizes and flags of a file and then reads memory by them. So a file that names numpy
gets the classes of this module: they keep kind, byte order and item size of plain numbers, check that the bytes are as many
as the shape asks for, and read nothing else of what the file says.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import nn

DEEPEST = 64  #: containers within containers; a file that training code wrote has a few
_NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_VALUES = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype, torch.device, torch.layout)


class _Dtype:
    """Stands for `numpy.dtype`."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, code: object, *_ignored: object) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise pickle.UnpicklingError("numpy values that are no numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise ValueError("a numpy type of unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for `numpy.ndarray`, and for what `_reconstruct` gives: filled by the state that follows."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *_ignored: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, columns_first, content = state[-4:]
        if not isinstance(dtype, _Dtype) or type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("a numpy array without shape or type")
        self.value = _numbers(dtype, content, math.prod(shape)).reshape(shape, order="F" if columns_first is True else "C")


def _scalar(dtype: object, content: object) -> np.generic:
    if not isinstance(dtype, _Dtype):
        raise ValueError("a numpy scalar without type")
    scalar: np.generic = _numbers(dtype, content, 1)[0]
    return scalar


def _numbers(dtype: _Dtype, content: object, count: int) -> np.ndarray:
    if not isinstance(content, bytes) or len(content) != count * dtype.dtype.itemsize:
        raise ValueError("a numpy value with too few or too many bytes")
    return np.frombuffer(content, dtype.dtype).copy()


def _reconstruct(*_ignored: object) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    """What pickles of the older protocols call for the content of an empty array."""
    return b""


#: for `torch.serialization.safe_globals`: what a file gets for the names of numpy 1 and 2
STAND_INS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_no_bytes, "builtins.bytes"),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
        for core in ("core", "_core")
    ),
]


def settled(content: Any) -> Any:
    """What torch.load gave with `STAND_INS`, with numpy's arrays and types in their places.

    Dicts and lists are changed in place. Raises pickle.UnpicklingError for anything but tensors, numbers, text and plain
    containers of them, such as a class, and ValueError for containers that lie too deep within each other.
    """
    return _settled(content, {}, 0)


def _settled(value: Any, known: dict[int, Any], depth: int) -> Any:
    kind = type(value)
    if kind in _VALUES or isinstance(value, np.generic):
        return value
    if id(value) in known:
        return known[id(value)]
    if depth > DEEPEST:
        raise ValueError("containers too deep within each other")
    if kind is not tuple:
        known[id(value)] = value
    if isinstance(value, _Array | _Dtype):
        known[id(value)] = value.value if isinstance(value, _Array) else value.dtype
        if known[id(value)] is None:
            raise ValueError("a numpy array without values")
    elif kind in (dict, OrderedDict, Counter):
        for key, item in value.items():
            _settled(key, known, depth + 1)
            value[key] = _settled(item, known, depth + 1)
        _settle_attributes(value, known, depth)
    elif kind is list:
        value[:] = [_settled(item, known, depth + 1) for item in value]
    elif kind is tuple:
        known[id(value)] = tuple(_settled(item, known, depth + 1) for item in value)
    elif kind is set:
        for item in value:
            _settled(item, known, depth + 1)
    elif kind in (torch.Tensor, nn.Parameter):
        _settle_attributes(value, known, depth)
    else:
        raise pickle.UnpicklingError(f"an object of type {kind.__name__}")
    return known[id(value)]


def _settle_attributes(value: Any, known: dict[int, Any], depth: int) -> None:
    """Those that a state dict has (`_metadata`), and that people set on parameters."""
    for name, item in getattr(value, "__dict__", {}).items():
        value.__dict__[name] = _settled(item, known, depth + 1)
