"""A network with some of its tensors replaced, and its checkpoint edited alongside."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from onp.model.victim import Victim


def with_tensors(victim: Victim, tensors: Mapping[str, Tensor]) -> Victim:
    """A new victim with these tensors; its checkpoint is edited in its own dtypes.

    What is measured is what is stored: tensors of a checkpoint in half precision are rounded to it. Tensors that are equal to
    those of the network stay as they are in the checkpoint.

    Args:
        victim: is not changed.
        tensors: by state-dict key, with the shapes of those that they replace.
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
    checkpoint, edits = victim.checkpoint, dict[str, Tensor]()
    with torch.no_grad():
        for key, new in tensors.items():
            own = state[key]
            if torch.equal(own, new.to(own)):
                continue
            stored = [] if checkpoint is None else [name for name in names[own.data_ptr()] if name in checkpoint.state]
            for name in stored:
                assert checkpoint is not None
                edits[name] = new.detach().cpu().to(checkpoint.state[name].dtype)
            own.copy_(edits[stored[0]] if stored else new)
    if checkpoint is not None:
        checkpoint = checkpoint.with_edits(edits)
    return replace(victim, model=network, program=program, checkpoint=checkpoint)
