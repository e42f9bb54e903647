"""A network with some of its tensors changed, and its checkpoint edited alongside."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from onp.model.victim import Victim


def edited(victim: Victim, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Victim:
    """A new victim with tensors changed; its checkpoint is edited in its own dtypes.

    What is measured is what is stored: tensors of a checkpoint in half precision are rounded to it. Tensors that an edit does
    not change stay as they are in the checkpoint.

    Args:
        victim: is not changed.
        edits: by state-dict key: from the tensor to a new one of its shape. Tensors of the checkpoint are on the CPU, and may
            have another dtype than those of the network.

    Example:
        >>> halved = edited(victim, {"fc.bias": lambda bias: bias / 2})  # doctest: +SKIP
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's copy of graphs
        # One copy for both, so that the new program still shares the tensors of the new model.
        network, program = copy.deepcopy((victim.model, victim.program))
    state = network.state_dict(keep_vars=True)
    # One tensor may be stored under several names; whichever is loaded last would win.
    names: dict[int, list[str]] = {}
    for key, tensor in state.items():
        names.setdefault(tensor.data_ptr(), []).append(key)
    checkpoint, stored = victim.checkpoint, dict[str, Tensor]()
    with torch.no_grad():
        for key, edit in edits.items():
            own = state[key]
            new = edit(own.detach())
            if torch.equal(own, new.to(own)):
                continue
            for name in names[own.data_ptr()]:
                if checkpoint is not None and name in checkpoint.state:
                    before = stored.get(name, checkpoint.state[name])
                    stored[name] = new = edit(before).detach().cpu().to(before.dtype)
            own.copy_(new)
    if checkpoint is not None:
        checkpoint = checkpoint.with_edits(stored)
    return replace(victim, model=network, program=program, checkpoint=checkpoint)


def with_tensors(victim: Victim, tensors: Mapping[str, Tensor]) -> Victim:
    """A new victim with tensors replaced, see `edited`.

    Args:
        victim: is not changed.
        tensors: by state-dict key, with the shapes of those that they replace.
    """
    return edited(victim, {key: partial(_replaced, new=new) for key, new in tensors.items()})


def _replaced(_: Tensor, new: Tensor) -> Tensor:
    return new
