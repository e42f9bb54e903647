"""What torch's own reader of pickles would let a file do, found in the opcodes before it reads them."""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

DEEPEST = 100  #: tuples within each other: the hash of a deeper one, as a key of a dict, can overflow the stack
LEGACY_PICKLES = 5  #: at the start of a file that is no zip archive
# Called with a size, these give as much memory as a file asks for, that of tensors with what was in it before.
_REFUSED = re.compile(r"torch(\.cuda|\.sparse)? \w*Tensor|(__builtin__|builtins) bytearray")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = -1


def scan(path: Path) -> None:
    """Read the opcodes of every pickle in a torch file.

    Raises:
        pickle.UnpicklingError: one would build tensors or arrays of bytes from a size alone.
        ValueError: one is damaged, or has tuples too deep within each other.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                if not file.read(1):
                    return
                file.seek(-1, 1)
                _scan(file)
            return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                with archive.open(name) as member:
                    _scan(member)


def _scan(file: IO[bytes]) -> None:
    """One pickle: of each value on its stack only the depth of tuples within each other is kept."""
    stack: list[int] = []
    memo: dict[Any, int] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name == "GLOBAL" and _REFUSED.fullmatch(str(argument)):
                raise pickle.UnpicklingError(argument)
            if name == "MARK":
                stack.append(_MARK)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            elif name in _TUPLES:
                stack[-_TUPLES[name] :] = [1 + max(stack[-_TUPLES[name] :])]
            elif pickletools.markobject in opcode.stack_before:
                mark = len(stack) - 1 - stack[::-1].index(_MARK)
                inside = stack[mark + 1 :]
                del stack[mark:]
                if name == "TUPLE":
                    stack.append(1 + max(inside, default=0))
                elif opcode.stack_before[0] is pickletools.markobject:
                    stack += [0] * len(opcode.stack_after)
            else:
                taken = len(opcode.stack_before)
                if taken:
                    del stack[-taken:]
                stack += [0] * len(opcode.stack_after)
            if stack and stack[-1] > DEEPEST:
                raise ValueError("tuples too deep within each other")
    except pickle.UnpicklingError:
        raise
    except Exception as error:
        raise ValueError("a damaged pickle") from error
