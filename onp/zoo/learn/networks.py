"""The networks that the verdict is learned from: detection dossiers with what the zoo knows of each network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from onp.attack.triggers import TRIGGERS
from onp.detect.anomaly import DetectionScores
from onp.detect.classes_to_invert import classes_to_invert
from onp.detect.probability import KINDS, Context
from onp.detect.small_patch import SMALL_PATCH
from onp.errors import InputError
from onp.zoo.detection import read_dossiers
from onp.zoo.entry import is_classifier


@dataclass(frozen=True, eq=False)
class Measured:
    """What detection measured of a network with one split of clean images."""

    split: int
    images: int
    log_costs: dict[str, tuple[float, ...]]  #: per detector and class; nan where it was not measured
    batch_norms: bool  #: statistics of batch norms have a say
    pruned: bool


@dataclass(frozen=True, eq=False)
class Network:
    """One network of the zoo: its truth, and what detection measured."""

    index: int
    card: dict[str, Any]
    measured: list[Measured] = field(default_factory=list)

    @cached_property
    def arch(self) -> str:
        """Name of the built-in network."""
        return str(self.card["training"]["arch"])

    @cached_property
    def classes(self) -> int:
        return len(self.card["training"]["labels"])

    @property
    def clean(self) -> bool:
        """Whether it was trained without a backdoor, or was repaired.

        A network that was trained with a backdoor that does not work is not: detectors may well see what was tried.
        """
        return bool(self.card["clean"]) and (not self.card["backdoors"] or self.card["after"] == "repaired")

    @property
    def known(self) -> bool:
        """Whether it is a classifier that is clean or has a backdoor that works; the others are neither."""
        return is_classifier(self.card) and (self.clean or bool(self.targets))

    @cached_property
    def working(self) -> list[dict[str, Any]]:
        """Its backdoors that work."""
        return [] if self.clean else [each for each in self.card["backdoors"] if each["works"]]

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """Classes that a working backdoor leads to: every class for all-to-all attacks."""
        if any(TRIGGERS[each["attack"]].all_to_all for each in self.working):
            return tuple(range(self.classes))
        return tuple(sorted({int(each["target"]) for each in self.working}))

    @cached_property
    def families(self) -> frozenset[str]:
        """Attack families of its backdoors, whether they work or not."""
        return frozenset(str(each["family"]) for each in self.card["backdoors"])

    def context(self, measured: Measured) -> Context:
        return Context(self.classes, measured.images, measured.batch_norms, measured.pruned)


def read_networks(path: str | Path) -> list[Network]:
    """Read the dossiers of a zoo, see `onp.zoo.detection.pack`.

    Raises:
        InputError: the file is missing, damaged or empty.
    """
    try:
        networks = networks_of(read_dossiers(path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} holds other lines than dossiers of a zoo ({error!r}); give its detection.jsonl.gz.") from None
    if not networks:
        raise InputError(f"{path} is empty; make dossiers with onp zoo dossiers.")
    return networks


def networks_of(documents: Iterable[dict[str, Any]]) -> list[Network]:
    """Networks by index, each with its splits in order, of the lines of a file."""
    found: dict[int, Network] = {}
    for line in documents:
        network = found.setdefault(int(line["index"]), Network(int(line["index"]), line["card"]))
        costs = {str(name): tuple(map(_number, values)) for name, values in line["detectors"].items()}
        if any(len(values) != network.classes for values in costs.values()):
            raise ValueError(f"network {network.index} has {network.classes} classes, its detectors measured others")
        split, images, norms, pruned = (int(line[name]) for name in ("split", "images", "batch_norms", "pruned"))
        network.measured.append(Measured(split, images, as_scanned(costs), norms > 0, pruned > 0))
    for network in found.values():
        network.measured.sort(key=lambda each: each.split)
    return [found[index] for index in sorted(found)]


def as_scanned(costs: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """The log costs as a scan has them, which inverts triggers for fewer classes than some dossiers hold."""
    chosen = (*KINDS["inversion"], SMALL_PATCH)
    inverted = [costs[name] for name in chosen if name in costs]
    without = DetectionScores.of({name: values for name, values in costs.items() if name not in chosen})
    measured = [k for k, values in enumerate(zip(*inverted, strict=True)) if not all(map(math.isnan, values))]
    kept = set(classes_to_invert(without, measured))
    return {
        name: tuple(value if k in kept or name not in chosen else math.nan for k, value in enumerate(values))
        for name, values in costs.items()
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
