"""Mask: which units are kept, as one flat vector over all prunable units; read from and written to JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onp.errors import InputError, printable
from onp.files import file_kind, read_regular, write_atomically

if TYPE_CHECKING:
    from onp.model.victim import Victim

FORMAT = "onp-mask"
VERSION = 1
MAX_UNITS = 10**8  #: of all layers of a file; the largest classifiers have some 10^6
MAX_BYTES = 2**30


@dataclass(frozen=True)
class Mask:
    """A keep/prune decision for every unit of a victim.

    keep: bool [U] on the CPU, True = keep; layers: (name, units) of the victim's layers in order, sum of units = U.
    """

    keep: Tensor
    layers: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        total = sum(units for _, units in self.layers)
        if self.keep.dtype != torch.bool or tuple(self.keep.shape) != (total,):
            raise ValueError(f"keep must be bool [{total}], got {self.keep.dtype} {list(self.keep.shape)}")

    @staticmethod
    def of(victim: Victim, keep: Tensor | None = None) -> Mask:
        """The mask `keep` (bool [U], any device; default: everything) over the layers of `victim`."""
        keep = torch.ones(victim.units, dtype=torch.bool) if keep is None else keep.detach().cpu().clone()
        return Mask(keep, tuple((layer.name, layer.units) for layer in victim.layers))

    @staticmethod
    def from_pruned(layers: Sequence[tuple[str, int]], pruned: Mapping[str, Sequence[int]]) -> Mask:
        """The mask that prunes the unit indices `pruned` gives per layer name, and keeps the rest.

        Raises:
            InputError: an unknown layer, or an index outside its layer.
        """
        unknown = pruned.keys() - {name for name, _ in layers}
        if unknown:
            raise InputError(f"The mask names the layer {printable(sorted(unknown)[0])}, which it does not list.")
        parts = []
        for name, units in layers:
            part = torch.ones(units, dtype=torch.bool)
            for unit in pruned.get(name, ()):
                if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < units:
                    raise InputError(f"The mask prunes unit {unit!r} of {printable(name)}, which has units 0 to {units - 1}.")
                part[unit] = False
            parts.append(part)
        return Mask(torch.cat(parts) if parts else torch.ones(0, dtype=torch.bool), tuple(layers))

    @property
    def pruned_count(self) -> int:
        """How many units are pruned."""
        return int((~self.keep).sum())

    def by_layer(self) -> dict[str, Tensor]:
        """Per layer name, the bool [K] part of `keep` that belongs to it."""
        parts = self.keep.split([units for _, units in self.layers])
        return {name: part for (name, _), part in zip(self.layers, parts, strict=True)}

    def pruned(self) -> dict[str, list[int]]:
        """Per layer name, the indices of its pruned units; layers that lose none are absent."""
        return {name: (~keep).nonzero().flatten().tolist() for name, keep in self.by_layer().items() if not keep.all()}

    def check(self, victim: Victim) -> None:
        """Raise InputError where this mask is not one of `victim`."""
        expected = tuple((layer.name, layer.units) for layer in victim.layers)
        if self.layers == expected:
            return
        for ours, theirs in zip(self.layers, expected, strict=False):
            if ours != theirs:
                raise InputError(
                    f"The mask is for another model: it has layer {printable(ours[0])} with {ours[1]} units where the model "
                    f"has {theirs[0]} with {theirs[1]}."
                )
        raise InputError(f"The mask is for another model: it has {len(self.layers)} layers, the model {len(expected)}.")

    def save(self, path: Path | str) -> None:
        """Write it as readable JSON: the indices of the pruned units per layer."""
        write_atomically(Path(path), self.to_json())

    def to_json(self) -> str:
        """One line per layer: {"name", "units", "pruned": [indices]}; U and the number of pruned units beside them."""
        pruned = self.pruned()
        rows = [json.dumps({"name": name, "units": units, "pruned": pruned.get(name, [])}) for name, units in self.layers]
        head = json.dumps({"format": FORMAT, "version": VERSION, "units": len(self.keep), "pruned_units": self.pruned_count})
        return head[:-1] + ', "layers": [\n  ' + ",\n  ".join(rows) + "\n]}\n"


def load_mask(path: Path | str, victim: Victim | None = None) -> Mask:
    """Read a mask that `Mask.save` wrote.

    Args:
        path: of the file.
        victim: which the mask must fit, where it is given.

    Raises:
        InputError: the file is missing or not such a mask, or does not fit the victim.
    """
    path = Path(path)
    if file_kind(path) is None:
        raise InputError(f"There is no mask {path}.")
    content = read_regular(path, MAX_BYTES)
    try:
        mask = _from_json(json.loads(content))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is not a mask written by onp ({type(error).__name__}).") from error
    if victim is not None:
        mask.check(victim)
    return mask


def _from_json(document: Any) -> Mask:
    if document["format"] != FORMAT or document["version"] != VERSION:
        raise InputError(f"The file is not of the format {FORMAT} {VERSION}; give a mask.json of onp.")
    layers = [(str(row["name"]), int(row["units"])) for row in document["layers"]]
    if not all(0 < units <= MAX_UNITS for _, units in layers) or sum(units for _, units in layers) > MAX_UNITS:
        raise InputError(f"The mask has a layer without units, or more than {MAX_UNITS} units; the file was changed.")
    mask = Mask.from_pruned(layers, {row["name"]: row["pruned"] for row in document["layers"]})
    if len(mask.keep) != document["units"] or mask.pruned_count != document["pruned_units"]:
        raise InputError("The mask's layers do not add up to its unit counts; the file was changed.")
    return mask
