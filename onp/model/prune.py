"""A mask applied to the weights: the pruned model, and its checkpoint in the layout of the original."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from safetensors.torch import save as serialise
from torch import Tensor

from onp.errors import InputError
from onp.files import write_atomically
from onp.model.edit import edited
from onp.model.mask import Mask
from onp.model.victim import Victim


def prune(victim: Victim, mask: Mask) -> Victim:
    """Zero the pruned units: their rows of weight and bias, and of the scale and shift of their norm.

    To undo it, take the rows that the mask names from the original checkpoint.

    Args:
        victim: is not changed.
        mask: False where a unit is pruned.

    Returns:
        A new victim, whose checkpoint is edited alongside in its own dtypes.

    Raises:
        InputError: the mask is one of another model.
    """
    mask.check(victim)
    return edited(victim, {key: partial(_without, pruned=pruned) for key, pruned in pruned_rows(victim, mask).items()})


def pruned_rows(victim: Victim, mask: Mask) -> Mapping[str, Tensor]:
    """Per state-dict key, bool [K], True = zero this row; keys of layers that lose nothing are absent."""
    rows = {}
    for layer, keep in zip(victim.layers, mask.by_layer().values(), strict=True):
        if not keep.all():
            rows.update(dict.fromkeys(layer.keys, ~keep))
    return rows


def _without(tensor: Tensor, pruned: Tensor) -> Tensor:
    left = tensor.clone()
    left[pruned.to(tensor.device)] = 0
    return left


def save_checkpoint(victim: Victim, path: Path | str) -> None:
    """Write the (pruned) checkpoint with the format, container, names, metadata and dtypes of the file it came from; the state
    dict of a live network as safetensors.

    The file appears whole or not at all.

    Raises:
        InputError: `path` is the original file.
        OSError: the disk refuses.
    """
    path = Path(path)
    if victim.checkpoint is None:
        # Copies, since safetensors refuses tensors that share memory.
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in victim.model.state_dict().items()}
        write_atomically(path, serialise(state, {"format": "pt"}))
        return
    if path.exists() and os.path.samefile(path, victim.checkpoint.path):
        raise InputError(f"{path} is the original checkpoint, which is never overwritten; choose another name.")
    write_atomically(path, victim.checkpoint.to_bytes())
