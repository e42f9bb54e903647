"""The distribution that the networks of a zoo are drawn from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onp.attack.triggers import TRIGGERS
from onp.zoo.datasets import DATASETS
from onp.zoo.recipe import Planted, Recipe, Training

COST = {  # milliseconds of one CPU core for an image of training at width 8, and how they grow with the width
    "vgg11_bn": (0.35, 1.3),
    "preact_resnet18": (1.1, 1.1),
    "resnet18": (1.2, 1.1),
    "mobilenet_v2": (4.0, 0.8),
    "vit": (1.5, 0.6),
    "vgg11_gn": (0.5, 1.2),
    "convnext": (0.6, 0.95),
}


@dataclass(frozen=True)
class Distribution:
    """Ranges and shares; what has a range is drawn log-uniformly unless noted.

    The training is drawn without a look at whether the network gets a backdoor, so that nothing of it tells.
    """

    archs: tuple[tuple[str, float], ...] = (  #: built-in networks with their shares
        *(("vgg11_bn", 0.29), ("preact_resnet18", 0.13), ("resnet18", 0.14), ("mobilenet_v2", 0.02)),
        *(("vgg11_gn", 0.17), ("convnext", 0.19), ("vit", 0.06)),
    )
    widths: tuple[tuple[str, tuple[int, ...]], ...] = (  #: drawn uniformly
        ("vgg11_bn", (8, 8, 8, 8, 8, 12, 12, 12, 12, 16, 16, 24, 32)),
        *(("preact_resnet18", (8, 8, 12)), ("resnet18", (8, 8, 12)), ("mobilenet_v2", (8,))),
        *(("vgg11_gn", (8, 8, 12, 12, 16)), ("convnext", (8, 12, 16)), ("vit", (32, 48))),
    )
    data: tuple[tuple[str, float], ...] = (
        *(("cifar10", 0.22), ("fashion", 0.24), ("gtsrb", 0.2), ("glyphs", 0.16), ("shapes", 0.18)),
    )
    seconds: tuple[float, float] = (20.0, 80.0)  #: of training, on one CPU core, by `COST`; decides the number of epochs
    least_seen: int = 60_000  #: images in all epochs together
    images: tuple[int, int] = (6_000, 30_000)
    epochs: tuple[int, int] = (2, 20)  #: the least and the most
    adamw: float = 0.3  #: share of networks with batch norms trained with it, the others with SGD; those without always
    lr_sgd: tuple[float, float] = (0.03, 0.1)
    lr_adamw: tuple[float, float] = (0.001, 0.004)
    batches: tuple[int, ...] = (48, 64, 128)
    weight_decay: tuple[float, float] = (1e-5, 1e-3)
    smoothing: tuple[float, float] = (0.3, 0.1)  #: share of networks with label smoothing, and the most of it (uniform)
    averaging: tuple[float, float] = (0.25, 0.98)  #: share of networks whose weights are averaged, and the decay a step
    pads: tuple[int, ...] = (0, 2, 4)
    flip: float = 0.5  #: share of networks trained with mirrored images, of data sets that allow it
    imbalance: tuple[float, float] = (0.3, 0.2)  #: share of networks trained on unequal classes, and the least ratio (uniform)
    attacks: tuple[tuple[str, float], ...] = (  #: with their shares
        *(("badnets", 0.12), ("badnets_a2a", 0.02), ("trojannn", 0.04), ("blended", 0.12), ("adaptive_blend", 0.05)),
        *(("lf", 0.1), ("wanet", 0.1), ("filter", 0.12), ("bpp", 0.12), ("ssba", 0.03), ("input_aware", 0.05)),
        *(("sig", 0.12), ("ctrl", 0.01), ("label_consistent", 0.03)),
    )
    clean: float = 0.5  #: share of networks without a backdoor
    two_backdoors: float = 0.1  #: share of those with a backdoor that have two
    poison_rate: tuple[float, float] = (0.005, 0.1)
    slight_rate: float = 0.25  #: the highest of attacks that change images but slightly (`SLIGHT`)
    least_poisoned: tuple[int, int] = (1_500, 12_000)
    """Times that training shows an image with the trigger, without which most networks get no backdoor; the second number is
    for `SLIGHT` attacks, which are published with several hundred thousand."""
    covers: float = 0.15
    """Share of attacks with cover images that are trained with them; they take many more epochs than a zoo can pay for."""
    clean_label_share: tuple[float, float] = (0.4, 0.95)  #: of the images of the target class, for clean-label attacks
    stronger: tuple[float, float] = (0.3, 3.0)  #: share of triggers as published; the others are up to so many times as strong
    after: tuple[tuple[str, float], ...] = (
        *(("none", 2 / 3), ("bn_statistics", 1 / 12), ("clean_epochs", 1 / 12), ("half", 1 / 12), ("repaired", 1 / 12)),
    )

    def draw(self, seed: int, index: int, available: Sequence[str]) -> Recipe:
        """The recipe of network `index`; the same for the same arguments.

        Args:
            seed: of the zoo.
            index: of the network.
            available: names of the data sets at hand.
        """
        rng = np.random.default_rng((seed, index, 0))
        training = self._training(rng, available)
        rng = np.random.default_rng((seed, index, 1))
        backdoors = self._backdoors(rng, training) if rng.random() >= self.clean else ()
        return Recipe(index, 1000 * seed + index, training, backdoors, _pick(rng, self.after))

    def _training(self, rng: np.random.Generator, available: Sequence[str]) -> Training:
        name = _pick(rng, [(name, share) for name, share in self.data if name in available])
        data = DATASETS[name]
        most = data.classes
        count = int(rng.integers(data.fewest, most + 1))
        arch = _pick(rng, self.archs)
        width = int(rng.choice(dict(self.widths)[arch]))
        base, growth = COST[arch]
        seen = _log_uniform(rng, self.seconds) * 1000 / (base * (width / (32 if arch == "vit" else 8)) ** growth)
        seen = max(seen, self.least_seen)
        images = int(min(_log_uniform(rng, self.images), data.images * count / most, seen / self.epochs[0]))
        epochs = int(np.clip(round(seen / images), *self.epochs))
        adamw = arch in WITHOUT_BATCH_NORMS or bool(rng.random() < self.adamw)
        return Training(
            data=name,
            labels=tuple(sorted(int(label) for label in rng.choice(most, count, replace=False))),
            arch=arch,
            width=width,
            norm=str(rng.choice(data.norms)),
            images=images,
            epochs=epochs,
            optimiser="adamw" if adamw else "sgd",
            lr=_log_uniform(rng, self.lr_adamw if adamw else self.lr_sgd),
            batch=int(rng.choice(self.batches)),
            weight_decay=_log_uniform(rng, self.weight_decay),
            smoothing=float(rng.random() < self.smoothing[0]) * float(rng.uniform(0, self.smoothing[1])),
            averaging=self.averaging[1] if rng.random() < self.averaging[0] else 0.0,
            pad=int(rng.choice(self.pads)),
            flip=data.mirrored and bool(rng.random() < self.flip),
            imbalance=float(rng.uniform(self.imbalance[1], 1)) if rng.random() < self.imbalance[0] else 1.0,
        )

    def _backdoors(self, rng: np.random.Generator, training: Training) -> tuple[Planted, ...]:
        # A filter of colours, or fewer of them, changes nothing of grey images, and drawn ones have any colours.
        coloured = DATASETS[training.data].coloured
        attacks = [(name, share) for name, share in self.attacks if name not in ("filter", "bpp") or coloured]
        first = self._backdoor(rng, training, attacks)
        if not _combines(first.attack) or rng.random() >= self.two_backdoors:
            return (first,)
        others = [(name, share) for name, share in attacks if name != first.attack and _combines(name)]
        second = self._backdoor(rng, training, others)
        while second.target == first.target:
            second = dataclasses.replace(second, target=int(rng.integers(len(training.labels))))
        return first, second

    def _backdoor(self, rng: np.random.Generator, training: Training, attacks: Sequence[tuple[str, float]]) -> Planted:
        attack, classes = _pick(rng, attacks), len(training.labels)
        slight = attack in SLIGHT
        shown, most = self.least_poisoned[slight], self.slight_rate if slight else self.poison_rate[1]
        least = min(shown / (training.images * training.epochs), most)
        rate = _log_uniform(rng, (max(self.poison_rate[0], least), most))
        if TRIGGERS[attack].clean_label:
            rate = _log_uniform(rng, self.clean_label_share) / classes
        target, covers = int(rng.integers(classes)), bool(rng.random() < self.covers)
        return Planted(attack, target, rate, _strength(rng, attack, self.stronger), covers)


def _combines(attack: str) -> bool:
    """Whether a network may have another backdoor beside: not where an attack changes all labels, images or itself."""
    return not TRIGGERS[attack].all_to_all and attack not in ("label_consistent", "input_aware")


WITHOUT_BATCH_NORMS = ("vgg11_gn", "convnext", "vit")
SLIGHT = ("wanet", "bpp", "ssba", "adaptive_blend", "input_aware", "filter")

PUBLISHED = {  # amplitudes that a stronger trigger is a multiple of, with the most that makes sense
    "blended": (0.2, 0.4),
    "sig": (40 / 255, 80 / 255),
    "wanet": (0.5, 2.0),
    "ctrl": (100 / 255, 250 / 255),
    "lf": (0.2, 0.4),
}


def _strength(rng: np.random.Generator, attack: str, stronger: tuple[float, float]) -> float | None:
    as_published, factor = rng.random() < stronger[0], _log_uniform(rng, (1.0, stronger[1]))
    if attack == "bpp":  # fewer levels are stronger
        return None if as_published else float(max(3, round(8 / factor)))
    if as_published or attack not in PUBLISHED:
        return None
    amplitude, most = PUBLISHED[attack]
    return min(amplitude * factor, most)


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _pick(rng: np.random.Generator, shares: Sequence[tuple[str, float]]) -> str:
    weights = np.array([share for _, share in shares])
    return shares[int(rng.choice(len(shares), p=weights / weights.sum()))][0]
