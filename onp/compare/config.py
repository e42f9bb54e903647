"""The options of `onp compare`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from onp.attack.triggers import TRIGGERS
from onp.compare.defences import PRUNERS, SEARCHES, TUNERS, defence, defence_names
from onp.data.normalisation import Normalisation
from onp.defend.demos import DEMOS
from onp.defend.presets import PRESETS
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.tuning import TUNERS as TUNING_METHODS
from onp.numerics import check_max_acc_drop, check_seed
from onp.options import option

BUNDLED = "bundled"
MOST_THREADS = 1024  # more than any machine has; torch would start them all
DEFENCES = ("onp", *PRUNERS, *SEARCHES, "fp+ft", *TUNERS)
# Options that every cell of one table must share; attacks, defences, networks, data and seeds may grow.
SHARED = ("preset", "max_acc_drop", "passes", "clean", "evaluation", "epochs", "victim_seed", "threads")


@dataclass(frozen=True)
class CompareConfig:
    """Which victims, which defences, and how they are measured."""

    out: str = option(
        "",
        "folder of the table; the same command continues a killed run, more names add cells",
        metavar="DIR",
        required=True,
        group="output",
    )
    victims: tuple[str, ...] = option(
        (),
        f"ready victims: embedded ones by name ({', '.join(DEMOS)}; 'bundled' for all, the default without --attacks), or "
        "folders written by onp attack (with --test-data)",
        metavar="NAME|DIR",
        group="the victims",
    )
    attacks: tuple[str, ...] = option(
        (),
        "attacks to train victims with; 'none' trains a clean network, whose repairs are false ones",
        metavar="NAME",
        group="the victims",
    )
    defences: tuple[str, ...] = option(
        DEFENCES,
        "onp, a baseline defence, package.module:callable for one of your own, or a pruning followed by a tuning, such as "
        "clp+ft-sam",
        metavar="NAME",
        group="the defences",
    )
    archs: tuple[str, ...] = option(
        ("preact_resnet18:width=16",),
        "built-in networks; classes= and channels= follow the data",
        metavar="SPEC",
        group="the victims",
    )
    data: tuple[str, ...] = option(
        (), "training images of the victims, one or several sets", metavar="PATH", group="the victims"
    )
    test_data: tuple[str, ...] = option(
        (),
        "images the victims were not trained on, for each --data: some for the defences, the rest for measuring",
        metavar="PATH",
        group="the victims",
    )
    norm: tuple[str, ...] = option(
        ("cifar10",), "normalisation for each --data, or one for all", metavar="NAME", group="the victims"
    )
    seeds: tuple[int, ...] = option(
        (0,), "seeds of the defences: split, initial values, order", metavar="N", type=int, group="the defences"
    )
    victim_seed: int = option(0, "seed of the victims' training", metavar="N", group="the victims")
    epochs: int = option(20, "epochs of the victims' training", metavar="N", group="the victims")
    clean: int = option(
        500, "clean images a defence gets (bundled victims bring their own)", metavar="N", group="the measurement"
    )
    evaluation: int = option(2000, "other images to measure on, at most", metavar="N", group="the measurement")
    preset: str = option("default", "of onp and of the search baselines", choices=tuple(PRESETS), group="the defences")
    max_acc_drop: float = option(
        0.01, "accuracy that a repair may cost, as a share of the images", metavar="SHARE", group="the defences"
    )
    passes: int = option(
        200_000,
        "images each stage of a baseline defence may send forward and backward; longer recipes are cut short",
        metavar="N",
        group="the defences",
    )
    threads: int = option(
        0, "threads of a cell (0: as many as torch takes); part of what a result depends on", metavar="N", group="the machine"
    )
    ray: str | None = option(
        None, "run cells through Ray: auto, or the address of a cluster that sees --out", metavar="ADDRESS", group="the machine"
    )
    gpu_share: float = option(
        1.0,
        "with --ray and GPUs: what a cell takes of one, 0.25 for four cells on each; 0 computes without",
        metavar="SHARE",
        group="the machine",
    )
    quiet: bool = option(False, "no progress", group="output")

    def settings(self) -> dict[str, object]:
        """What all cells of one table share."""
        return {name: getattr(self, name) for name in SHARED}

    def check(self) -> None:
        """Raises InputError for a combination that cannot run."""
        if not self.out:
            raise InputError("Say with --out where the table goes: a new folder, or that of a run to continue.")
        for name in self.defences:
            check_defence(name)
        for name in ("defences", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"--{name} needs at least one value, each once.")
        for name in ("clean", "evaluation", "epochs", "passes"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, not {getattr(self, name)}.")
        for seed in self.seeds:
            check_seed(seed, "--seeds")
        check_seed(self.victim_seed, "--victim-seed")
        if not 0 <= self.threads <= MOST_THREADS:
            raise InputError(f"--threads is a number up to {MOST_THREADS}, 0 for as many as torch takes, not {self.threads}.")
        for attack in self.attacks:
            if attack != "none" and attack not in TRIGGERS:
                raise InputError(f"There is no attack '{attack}'; choose one of none, {', '.join(TRIGGERS)}.")
        for arch in self.archs:
            with torch.device("meta"):  # says what is wrong with the spec, without making the weights
                build_network(arch)
        for norm in self.norm:
            Normalisation.parse(norm)
        check_max_acc_drop(self.max_acc_drop)
        if not 0 <= self.gpu_share <= 1:
            raise InputError(f"--gpu-share is a share of one GPU, 0.25 for a quarter, not {self.gpu_share}.")
        if self.preset not in PRESETS:
            raise InputError(f"There is no preset '{self.preset}'; choose one of {', '.join(PRESETS)}.")
        if self.attacks and not self.data:
            raise InputError("--attacks needs --data and --test-data, the images to train the victims on and to measure with.")
        if self.data and not self.attacks:
            raise InputError("--data is what --attacks trains victims on; name attacks, or leave --data out.")
        if self.data and len(self.test_data) != len(self.data):
            raise InputError(f"There are {len(self.data)} --data and {len(self.test_data)} --test-data; give one for each.")
        if len(self.norm) not in (1, max(1, len(self.data))):
            raise InputError(
                f"There are {len(self.data)} --data and {len(self.norm)} --norm; give one for each, or one for all."
            )


def check_defence(name: str) -> None:
    """Raises InputError unless `name` is a defence, or a pruning and a tuning joined by +."""
    first, plus, second = name.partition("+")
    prunes = first == "onp" or first in PRUNERS or first in SEARCHES or ":" in first
    if not (prunes and (not plus or second in TUNING_METHODS)) and not (first in TUNERS and not plus):
        raise InputError(
            f"There is no defence '{name}'; choose from onp, {', '.join(defence_names())}, package.module:callable, or "
            f"PRUNING+TUNING with one of {', '.join(TUNING_METHODS)}."
        )
    if ":" in first:
        defence(first)
