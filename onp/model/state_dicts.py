"""Where weights lie in what a file holds: in which dict, under which prefix, and in which further copies of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from onp.errors import InputError, first_few, printable
from onp.files import file_kind

Place = tuple[str, ...]  # the keys that lead to a dict

# What training code calls the weights that it goes on with, best known first.
USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "model_state", "network", "weights")
DEEPEST = 3  # dicts within dicts
LONGEST_NAME = 1000  # characters; that of a tensor in a network of ten modules within each other has some 100
ENTRIES = 1_000_000  # of all dicts; training code keeps tens of thousands


@dataclass(frozen=True)
class Copy:
    """A further copy of the weights, such as their moving average: the names of its tensors by the network's names."""

    place: Place
    prefix: str
    stored_as: Mapping[str, str]

    def __str__(self) -> str:
        return "/".join(self.place) or f"{self.prefix}*"


def file_and_key(location: Path | str) -> tuple[Path, str]:
    """PATH and KEY of `PATH::KEY`; the key is empty where none is given."""
    name, separator, key = str(location).rpartition("::")
    return (Path(name), key) if separator and file_kind(Path(location)) is None else (Path(location), "")


def states(content: object) -> dict[Place, dict[str, Tensor]]:
    """The tensors of every dict in `content` that has more of them than of other things, weights among them.

    Returns:
        By the at most `DEEPEST` keys that lead to the dict; a dict under several keys is found under each.

    Raises:
        ValueError: a tensor's name is longer than `LONGEST_NAME`, or there are more than `ENTRIES`.
    """
    found: dict[Place, dict[str, Tensor]] = {}
    waiting: list[tuple[Place, object]] = [((), content)]
    entries = 0
    while waiting:
        place, inner = waiting.pop()
        if not isinstance(inner, dict):
            continue
        entries += len(inner)
        if entries > ENTRIES:  # as when all entries of a dict are one other dict, whose entries are one other again
            raise ValueError(f"more than {ENTRIES} entries in dicts within each other")
        tensors = {key: each.detach() for key, each in inner.items() if isinstance(key, str) and isinstance(each, Tensor)}
        if max(map(len, tensors), default=0) > LONGEST_NAME:
            raise ValueError(f"a tensor has a name of more than {LONGEST_NAME} characters")
        if 2 * len(tensors) > len(inner) and any(each.dim() >= 2 for each in tensors.values()):
            found[place] = tensors
        if len(place) < DEEPEST:
            # Backwards, so that the first comes off the end first.
            waiting += [((*place, key), each) for key, each in reversed(inner.items()) if isinstance(key, str)]
    return found


def choose_weights(path: object, found: Collection[Place], wanted: str) -> Place:
    """The place to take the weights from: `wanted` ("KEY/KEY"), or where that is empty the usual one.

    Raises:
        InputError: there is none, or several and no usual one.
    """
    named = {"/".join(place): place for place in found}
    if wanted:
        if wanted not in named:
            raise InputError(
                f"{path} has no weights under {printable(wanted)}; "
                f"it has {first_few(filter(None, named)) or 'them at its top'}."
            )
        return named[wanted]
    usual: list[Place] = [place for place in ((), *((key,) for key in USUAL_KEYS)) if place in found]
    if not usual and len(named) > 1:
        raise InputError(
            f"{path} has weights under {first_few(named, 8)}; choose with --model {path}::{printable(next(iter(named)))}."
        )
    return (usual or list(found))[0]


def prefixes(names: Iterable[str], wanted: Collection[str]) -> list[tuple[str, int]]:
    """What stands before names in `wanted`, as whole parts, and how often: most often first, then shortest."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts["".join(part + "." for part in parts[:start])] += 1
    return sorted(counts.items(), key=lambda item: (-item[1], len(item[0])))


def copies(
    found: Mapping[Place, Mapping[str, Tensor]], place: Place, prefix: str, bare: Mapping[str, str], state: Mapping[str, Tensor]
) -> tuple[Copy, ...]:
    """The further copies of weights in a file, such as their moving average.

    Args:
        found: the state dicts of the file.
        place: of the weights.
        prefix: of the names of the weights there.
        bare: the network's names by those in the file without the prefix.
        state: the weights by the network's names.
    """
    complete = []
    for where, tensors in found.items():
        for before, count in prefixes(tensors, bare.keys()):
            same = count == len(bare) and all(tensors[before + name].shape == state[bare[name]].shape for name in bare)
            if same and (where, before) != (place, prefix):
                complete.append(Copy(where, before, {bare[name]: before + name for name in bare}))
    return tuple(complete)


def with_tensors(content: Any, place: Place, tensors: Mapping[str, Tensor]) -> Any:
    """A copy of `content` whose dict at `place` holds `tensors`, in the dtypes of those they replace.

    Shallow copies keep the type of an OrderedDict and the `_metadata` that state_dict() puts on it.
    """
    made = copy.copy(content)
    if place:
        made[place[0]] = with_tensors(content[place[0]], place[1:], tensors)
        return made
    for name, tensor in tensors.items():
        old = content[name]
        new = tensor.to(old.dtype)
        made[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return made
