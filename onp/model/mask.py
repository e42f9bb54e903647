"""Mask: which units are kept, as one flat vector over all prunable units; JSON and npz in and out."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onp.errors import InputError
from onp.files import write_atomically

if TYPE_CHECKING:
    from onp.model.victim import Victim

FORMAT = "onp-mask"
VERSION = 1


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

        Raises InputError for an unknown layer or an index outside the layer.
        """
        unknown = pruned.keys() - {name for name, _ in layers}
        if unknown:
            raise InputError(f"The mask names the layer {sorted(unknown)[0]}, which it does not list.")
        views = []
        for name, units in layers:
            view = torch.ones(units, dtype=torch.bool)
            for unit in pruned.get(name, ()):
                if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < units:
                    raise InputError(f"The mask prunes unit {unit!r} of {name}, which has units 0 to {units - 1}.")
                view[unit] = False
            views.append(view)
        return Mask(torch.cat(views) if views else torch.ones(0, dtype=torch.bool), tuple(layers))

    def views(self) -> dict[str, Tensor]:
        """Per layer name, the bool [K] part of `keep` that belongs to it."""
        parts = self.keep.split([units for _, units in self.layers])
        return {name: part for (name, _), part in zip(self.layers, parts, strict=True)}

    def pruned(self) -> dict[str, list[int]]:
        """Per layer name, the indices of its pruned units; layers that lose none are absent."""
        return {name: (~view).nonzero().flatten().tolist() for name, view in self.views().items() if not view.all()}

    def check(self, victim: Victim) -> None:
        """Raises InputError when this mask is not one of `victim`."""
        expected = tuple((layer.name, layer.units) for layer in victim.layers)
        if self.layers == expected:
            return
        for ours, theirs in zip(self.layers, expected, strict=False):
            if ours != theirs:
                raise InputError(
                    f"The mask is for another model: it has layer {ours[0]} with {ours[1]} units where the model has "
                    f"{theirs[0]} with {theirs[1]}."
                )
        raise InputError(f"The mask is for another model: it has {len(self.layers)} layers, the model {len(expected)}.")

    def save(self, path: Path | str) -> None:
        """Writes `.json` (readable: pruned unit indices per layer) or `.npz` (arrays keep, names, units)."""
        path = Path(path)
        if path.suffix == ".npz":
            buffer = io.BytesIO()
            names, units = [name for name, _ in self.layers], [units for _, units in self.layers]
            np.savez_compressed(
                buffer,
                keep=self.keep.numpy(),
                names=np.array(names, dtype=np.str_),
                units=np.array(units, dtype=np.int64),
            )
            write_atomically(path, buffer.getvalue())
        else:
            write_atomically(path, self.to_json())

    def to_json(self) -> str:
        """One line per layer: {"name", "units", "pruned": [indices]}; U and the number of pruned units beside them."""
        pruned = self.pruned()
        rows = [json.dumps({"name": name, "units": units, "pruned": pruned.get(name, [])}) for name, units in self.layers]
        head = json.dumps(
            {"format": FORMAT, "version": VERSION, "units": len(self.keep), "pruned_units": int((~self.keep).sum())}
        )
        return head[:-1] + ', "layers": [\n  ' + ",\n  ".join(rows) + "\n]}\n"


def load_mask(path: Path | str, victim: Victim | None = None) -> Mask:
    """Reads a mask written by `Mask.save` and, when `victim` is given, checks that it is a mask of that victim.

    Raises InputError when the file is missing or not such a mask, or does not fit the victim.
    """
    path = Path(path)
    try:
        mask = _from_npz(path) if path.suffix == ".npz" else _from_json(json.loads(path.read_text(encoding="utf-8")))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"The mask {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        raise InputError(f"{path} is not a mask written by onp ({type(error).__name__}).") from error
    if victim is not None:
        mask.check(victim)
    return mask


def _from_json(document: Any) -> Mask:
    if document["format"] != FORMAT or document["version"] != VERSION:
        raise InputError(f"The file is {document['format']!r} {document['version']!r}, not {FORMAT!r} {VERSION}.")
    layers = [(str(row["name"]), int(row["units"])) for row in document["layers"]]
    mask = Mask.from_pruned(layers, {row["name"]: row["pruned"] for row in document["layers"]})
    if len(mask.keep) != document["units"] or int((~mask.keep).sum()) != document["pruned_units"]:
        raise InputError("The mask's layers do not add up to its unit counts; the file was changed.")
    return mask


def _from_npz(path: Path) -> Mask:
    with np.load(path, allow_pickle=False) as arrays:
        layers = zip(arrays["names"].tolist(), arrays["units"].tolist(), strict=True)
        return Mask(torch.from_numpy(arrays["keep"]), tuple((str(name), int(units)) for name, units in layers))
