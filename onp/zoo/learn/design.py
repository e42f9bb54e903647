"""Arrays to learn from: a row a network and split, its classes padded to the most that any network has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onp.detect.class_features import Array, Place
from onp.detect.probability import GROUPS
from onp.zoo.learn.hand_made import hand_made_scores
from onp.zoo.learn.networks import Measured, Network

Rows = NDArray[np.int64]
"""Indices of rows."""


@dataclass(frozen=True, eq=False)
class Design:
    """Rows of all networks; what is not measured is nan."""

    networks: tuple[Network, ...]
    measured: tuple[Measured, ...]  #: of each row
    owner: Rows  #: `[R]`, index into `networks`
    detectors: tuple[str, ...]
    costs: Array  #: log costs `[R, C, detectors]`

    @staticmethod
    def of(networks: Sequence[Network]) -> Design:
        """Of networks that are clean or have a working backdoor, and of all their splits."""
        kept = tuple(network for network in networks if network.known)
        rows = [(i, measured) for i, network in enumerate(kept) for measured in network.measured]
        detectors = tuple(sorted({name for _, measured in rows for name in measured.log_costs}))
        costs = np.full((len(rows), max(network.classes for network in kept), len(detectors)), np.nan)
        for row, (i, measured) in enumerate(rows):
            for name, values in measured.log_costs.items():
                costs[row, : kept[i].classes, detectors.index(name)] = values
        costs[~np.isfinite(costs)] = np.nan
        return Design(kept, tuple(each for _, each in rows), np.array([i for i, _ in rows]), detectors, costs)

    @cached_property
    def classes(self) -> Rows:
        """`[R]`."""
        return np.array([self.networks[i].classes for i in self.owner])

    @cached_property
    def exists(self) -> NDArray[np.bool_]:
        """`[R, C]`: the network has such a class."""
        return np.arange(self.costs.shape[1]) < self.classes[:, None]

    @cached_property
    def is_target(self) -> NDArray[np.bool_]:
        """`[R, C]`."""
        found = np.zeros(self.exists.shape, dtype=bool)
        for row, i in enumerate(self.owner):
            found[row, list(self.networks[i].targets)] = True
        return found

    @cached_property
    def clean(self) -> NDArray[np.bool_]:
        """`[R]`."""
        return np.array([self.networks[i].clean for i in self.owner])

    @cached_property
    def group(self) -> Rows:
        """`[R]`, index into `GROUPS`."""
        return np.array(
            [GROUPS.index(self.networks[i].context(m).group) for i, m in zip(self.owner, self.measured, strict=True)]
        )

    @cached_property
    def weight(self) -> Array:
        """`[R]`: every network counts once, whatever number of splits it has."""
        return 1 / np.bincount(self.owner)[self.owner]

    def balanced(self, rows: Rows) -> Array:
        """Weights of rows to learn from, clean and backdoored ones of the same total.

        Leaving the networks of a family out would otherwise make backdoors of that family, of all networks, less likely.
        """
        weight, clean = self.weight[rows], self.clean[rows]
        total = weight.sum()
        for kind in (clean, ~clean):
            weight[kind] *= total / 2 / max(weight[kind].sum(), 1e-9)
        return weight

    @cached_property
    def hand_made(self) -> Array:
        """`[R, C]`: the score of the hand-made rule; 0 for other classes."""
        found = np.zeros(self.exists.shape)
        for row, (i, measured) in enumerate(zip(self.owner, self.measured, strict=True)):
            found[row, : self.networks[i].classes] = hand_made_scores(measured.log_costs, measured.pruned)
        return found

    def rows_of(self, networks: Sequence[int] | Rows) -> Rows:
        """The rows of some networks."""
        return np.flatnonzero(np.isin(self.owner, networks))

    @cached_property
    def _places(self) -> Place:
        """Of all rows: `[R, C, detectors]`."""
        found = np.full((3, *self.costs.shape), np.nan)
        for row, classes in enumerate(self.classes):
            for d in range(len(self.detectors)):
                place = Place.of(self.costs[row, :classes, d])
                found[:, row, :classes, d] = place.below_median, place.spread, place.cheapness
        return Place(*found)

    def floors(self, rows: Rows) -> Array:
        """Per detector, the median of the spreads among classes on the clean networks of some rows, every class alike."""
        found = []
        for spreads in np.moveaxis(self._places.spread[rows[self.clean[rows]]], 2, 0):
            known = spreads[spreads > 0]
            found.append(float(np.median(known)) if len(known) else 1.0)
        return np.array(found)

    def features(self, floors: Array) -> Array:
        """`[R, C, detectors, features]` for floors of each detector, see `onp.detect.class_features`."""
        return self._places.features(floors)
