"""A mask applied to the weights: the pruned model, and its checkpoint in the layout of the original."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from onp.errors import InputError
from onp.files import write_atomically
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
    rows = pruned_rows(victim, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's copy of graphs
        # One copy for both, so that the new program still shares the tensors of the new model.
        model, program = copy.deepcopy((victim.model, victim.program))
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, pruned in rows.items():
            state[key][pruned.to(state[key].device)] = 0
    checkpoint = victim.checkpoint
    if checkpoint is not None:
        names: dict[int, list[str]] = {}
        for key, tensor in state.items():
            names.setdefault(tensor.data_ptr(), []).append(key)
        edits: dict[str, Tensor] = {}
        for key, pruned in rows.items():
            # One tensor may be stored under several names; whichever is loaded last would win.
            for name in names[state[key].data_ptr()]:
                if name in checkpoint.state:
                    edits[name] = _without(checkpoint.state[name], pruned)
        checkpoint = checkpoint.with_edits(edits)
    return replace(victim, model=model, program=program, checkpoint=checkpoint)


def pruned_rows(victim: Victim, mask: Mask) -> Mapping[str, Tensor]:
    """Per state-dict key, bool [K], True = zero this row; keys of layers that lose nothing are absent."""
    rows = {}
    for layer, keep in zip(victim.layers, mask.by_layer().values(), strict=True):
        if not keep.all():
            rows.update(dict.fromkeys(layer.keys, ~keep))
    return rows


def _without(tensor: Tensor, pruned: Tensor) -> Tensor:
    edited = tensor.clone()
    edited[pruned] = 0
    return edited


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
