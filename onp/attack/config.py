"""The options of `onp.attack`: one line each, shared by the Python call, the command line's help and the victim's card."""

from __future__ import annotations

from dataclasses import dataclass

from onp.options import option


@dataclass(frozen=True)
class AttackConfig:
    """How a victim is trained."""

    attack: str = option("badnets", "one of the attacks below, or none for a clean network", metavar="NAME")
    arch: str = option("preact_resnet18:width=32", "built-in network, with width=, classes= and channels=", metavar="SPEC")
    norm: str = option("cifar10", "normalisation preset or MEAN/STD", metavar="NAME")
    target: int = option(0, "class that the trigger leads to", metavar="CLASS")
    poison_rate: float | None = option(
        None, "share of the training images that carry the trigger, instead of the attack's published one", metavar="SHARE"
    )
    cover_rate: float | None = option(
        None,
        "share of the training images that are cover images, which keep their label, of attacks that have them",
        metavar="SHARE",
    )
    strength: float | None = option(
        None, "amplitude of the trigger instead of the published one (Blended: alpha, WaNet: s, ...)", metavar="X"
    )
    clean_model: str | None = option(
        None, "weights of a clean --arch for attacks that start from one; trained first where not given", metavar="FILE"
    )
    craft_epochs: int | None = option(
        None, "passes for networks that the trigger is made with, instead of the published number", metavar="N"
    )
    epochs: int = option(20, "passes over the training images", metavar="N")
    batch_size: int = option(128, "images a step", metavar="N")
    lr: float = option(0.1, "peak learning rate of the one-cycle schedule", metavar="X")
    pad: int = option(4, "pixels of padding before the random crop", metavar="N")
    flip: bool = option(True, "random horizontal flips")
    seed: int = option(0, "seeds weights, poison choice, trigger and order", metavar="N")
    device: str = option("auto", "where to train", choices=("auto", "cpu", "cuda"))
    dtype: str = option("float32", "precision of the saved weights; the figures are theirs", choices=("float32", "float16"))
