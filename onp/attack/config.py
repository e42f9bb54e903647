"""The options of `onp.attack`: one line each, shared by the Python call, the command line's help and the victim's card."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from onp.options import option

#: Options that say where images and files lie, not what the victim is: the card leaves them out.
PLACES = ("data", "test_data", "out", "init", "quiet")


@dataclass(frozen=True)
class AttackConfig:
    """What victim to train, and on which images."""

    data: str = option(
        "",
        "training images: a folder, archive, npz, IDX; FILE::train picks a sub-folder",
        group="the images",
        metavar="PATH",
        required=True,
    )
    test_data: str = option(
        "", "images on which ACC, ASR and RA are measured", group="the images", metavar="PATH", required=True
    )
    out: str = option("", "folder for the victim; a killed run continues from it", group="output", metavar="DIR", required=True)
    quiet: bool = option(False, "no progress", group="output")
    attack: str = option("badnets", "one of the attacks below, or none for a clean network", group="the attack", metavar="NAME")
    target: int = option(0, "class that the trigger leads to", group="the attack", metavar="CLASS")
    poison_rate: float | None = option(
        None,
        "share of the training images that carry the trigger, instead of the attack's published one",
        group="the attack",
        metavar="SHARE",
        type=float,
    )
    cover_rate: float | None = option(
        None,
        "share of the training images that are cover images, which keep their label, of attacks that have them",
        group="the attack",
        metavar="SHARE",
        type=float,
    )
    strength: float | None = option(
        None,
        "amplitude of the trigger instead of the published one (Blended: alpha, WaNet: s, ...)",
        group="the attack",
        metavar="X",
        type=float,
    )
    clean_model: str | None = option(
        None,
        "weights of a clean --arch for attacks that start from one; trained first where not given",
        group="the attack",
        metavar="FILE",
    )
    craft_epochs: int | None = option(
        None,
        "passes for networks that the trigger is made with, instead of the published number",
        group="the attack",
        metavar="N",
        type=int,
    )
    arch: str = option(
        "preact_resnet18:width=32",
        "built-in network, with width=, classes= and channels=",
        group="the network",
        metavar="SPEC",
    )
    norm: str = option("cifar10", "normalisation preset or MEAN/STD", group="the network", metavar="NAME")
    init: str | None = option(
        None, "safetensors weights to start from instead of random ones", group="the network", metavar="FILE"
    )
    dtype: str = option(
        "float32",
        "precision of the saved weights; the figures are theirs",
        group="the network",
        choices=("float32", "float16"),
    )
    epochs: int = option(20, "passes over the training images", group="the training", metavar="N")
    batch_size: int = option(128, "images a step", group="the training", metavar="N")
    lr: float = option(0.1, "peak learning rate of the one-cycle schedule", group="the training", metavar="X")
    optimiser: str = option("sgd", "sgd with Nesterov momentum 0.9, or adamw", choices=("sgd", "adamw"), group="the training")
    weight_decay: float = option(5e-4, "of the optimiser", group="the training", metavar="X")
    smoothing: float = option(0.0, "share of each label that is spread over all classes", group="the training", metavar="SHARE")
    averaging: float = option(
        0.0, "decay a step of the average of the weights that is kept in place of the last ones; 0: the last ones",
        group="the training", metavar="X",
    )  # fmt: skip
    pad: int = option(4, "pixels of padding before the random crop", group="the training", metavar="N")
    flip: bool = option(True, "random horizontal flips", group="the training")
    seed: int = option(0, "seeds weights, poison choice, trigger and order", group="the training", metavar="N")
    device: str = option("auto", "where to train", group="the training", choices=("auto", "cpu", "cuda"))

    def settings(self) -> dict[str, object]:
        """What the victim depends on, but for the images."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in PLACES}
