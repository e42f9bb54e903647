"""The table of scored masks, keyed by their packed bits: no mask is scored twice."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")


def mask_keys(masks: Tensor | NDArray[np.bool_]) -> list[bytes]:
    """The key of each mask, bool `[B, U]`: its bits, eight to a byte."""
    rows = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else masks
    return [row.tobytes() for row in np.packbits(rows, axis=1)]


class MaskTable(dict[bytes, T]):
    """What is stored for each mask, by its key."""

    def missing(self, masks: Tensor | NDArray[np.bool_]) -> tuple[list[bytes], list[int]]:
        """What has to be scored before all of `masks` are in the table.

        Args:
            masks: bool `[B, U]`.

        Returns:
            The keys of all B masks, and of each mask that is not in the table the first row it stands in.
        """
        keys = mask_keys(masks)
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in self:
                first.setdefault(key, row)
        return keys, list(first.values())
