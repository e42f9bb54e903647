"""Everything a run is given, read and checked before any work: the victim, the clean images, what is for measuring only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onp.attack.triggers import Trigger, load_trigger
from onp.data.images import ImageSet, Normalisation, Splits, check_for, load_images, split
from onp.defend.config import DefendConfig
from onp.defend.demos import ARCH, DEFAULT, NORM, demo
from onp.defend.report.audit import TrueAttack, TrueImages, find_target
from onp.detect.bank import Bank
from onp.detect.known_trigger import KnownTrigger, known_triggered_images
from onp.engine.metrics import accuracy, predictions
from onp.errors import InputError
from onp.model.checkpoint import check_file
from onp.model.hub_config import hub_model
from onp.model.state_dicts import file_and_key, some
from onp.model.victim import Victim, load_victim
from onp.numerics import resolve_device

USELESS = 0.2  # of the way from chance to certainty: a model below that, or its data, is not what the user thinks

SHIFTED = 0.1  # accuracy to be gained by another order from which on that order is what is wrong, where classes are missing
FEW = 3  # images of a class from which on they tell which it is
REORDERED = 0.7  # accuracy under another order of the classes from which on that order is what is wrong


@dataclass(frozen=True, eq=False)
class Case:
    """What a run works on."""

    victim: Victim
    clean: ImageSet
    splits: Splits
    known: Bank | None  #: of the trigger that the user has; None when it must be found
    evaluation: ImageSet | None  #: other images, for measuring only
    attack: TrueAttack | TrueImages | None  #: for measuring only


def read_case(config: DefendConfig) -> Case:
    """Read and check what the options name.

    Raises:
        InputError: something given cannot be used.
    """
    victim, clean = _load(config)
    splits = split(clean, config.seed)
    known = _known_trigger(config, victim, clean, splits)
    return Case(victim, clean, splits, known, *_measurement(config, victim, clean))


def with_demo(config: DefendConfig) -> DefendConfig:
    """Fill in the embedded victim where no model was given."""
    if config.model is not None:
        if config.demo is not None:
            raise InputError("Give either --model or --demo, not both.")
        return config
    given = [name for name in ("arch", "data", "norm") if getattr(config, name)]
    if given and config.demo:
        raise InputError(f"--demo brings its own network and images; leave out --{given[0]}, or --demo.")
    if given:
        raise InputError("There is no --model; give the checkpoint to repair, or nothing at all for the embedded example.")
    chosen = demo(config.demo or DEFAULT)
    trigger = str(chosen.trigger) if chosen.trigger else None
    return dataclasses.replace(
        config,
        demo=chosen.name,
        model=str(chosen.model),
        arch=ARCH,
        norm=NORM,
        data=str(chosen.clean),
        eval_data=config.eval_data or str(chosen.evaluation),
        eval_trigger=config.eval_trigger or (None if config.eval_triggered_data else trigger),
    )


def _load(config: DefendConfig) -> tuple[Victim, ImageSet]:
    """The victim and the clean images, checked against each other."""
    check_file(file_and_key(str(config.model))[0])
    if config.data is None or config.norm is None:
        raise InputError(_missing(config))
    normalisation = Normalisation.parse(config.norm)
    hub = hub_model(config.arch)
    clean = load_images(config.data, size=config.image_size, channels=hub.channels if hub else None)
    clean = hub.in_order(clean) if hub else clean
    device = resolve_device(config.device)
    shape = (clean.images.shape[1], clean.images.shape[2], clean.images.shape[3])
    victim = load_victim(str(config.model), config.arch, normalisation, shape, device)
    if victim.input_shape[0] != shape[0]:
        clean = clean.with_channels(victim.input_shape[0])
    check_for(clean, victim.classes, victim.input_shape)
    clean = _numbered(victim, clean)
    check_useful(victim, clean)
    return victim, clean


def _numbered(victim: Victim, clean: ImageSet) -> ImageSet:
    """Images whose folders are named 0, 1, ... under those numbers: where some classes are missing, and where sorting the
    names puts 10 before 2, unless the network counts its classes that way too."""
    numbered = clean.by_number(victim.classes)
    if len(clean.class_names) < victim.classes or torch.equal(numbered.labels, clean.labels):
        return numbered
    guess = _guess(victim, clean)
    return max((clean, numbered), key=lambda images: accuracy(images.labels, guess).value)


def _guess(victim: Victim, images: ImageSet) -> Tensor:
    return predictions(victim.model, victim.normalisation(images.pixels().to(victim.device))).cpu()


def _missing(config: DefendConfig) -> str:
    """All that is still to be given, so that a newcomer is not told one thing a run."""
    wanted = []
    if config.data is None:
        wanted.append("a few hundred clean images with --data (a folder with one sub-folder per class, .npz, IDX or a tar)")
    if config.norm is None:
        wanted.append("how the model's images are normalised with --norm (a preset such as cifar10, or MEAN/STD)")
    if config.arch is None and not str(config.model).endswith(".pt2"):
        wanted.append("the network of the weights with --arch")
    *first, last = wanted
    return f"Give {', '.join(first)} and {last}." if first else f"Give {last}."


def check_useful(victim: Victim, clean: ImageSet) -> None:
    """Raise InputError where the model is hardly better than chance on the images, or knows their classes under other numbers:
    one of them is not what it seems."""
    guess = _guess(victim, clean)
    acc, chance = accuracy(clean.labels, guess).value, 1 / victim.classes
    useless, gapped = acc < chance + USELESS * (1 - chance), len(clean.class_names) < victim.classes
    reordered = _other_order(victim, clean, guess, REORDERED if useless else acc + SHIFTED) if useless or gapped else None
    if useless or reordered:
        raise InputError(
            f"The model is right on only {100 * acc:.0f} % of the clean images"
            + (reordered or "; check --norm, --image-size and the order of the classes.")
        )


def _other_order(victim: Victim, clean: ImageSet, guess: Tensor, least: float) -> str | None:
    """The rest of the sentence where the model knows the classes of the images, but under other numbers: where accuracy under
    those is `least` or more."""
    met = torch.zeros(len(clean.class_names), victim.classes, dtype=torch.long)
    met.index_put_((clean.labels, guess), torch.ones_like(guess), accumulate=True)
    # A class of one or two images may go to any other by mistake.
    met[met.sum(1) < FEW] = 0
    rows, columns = linear_sum_assignment(met.numpy(), maximize=True)
    right = int(met[rows, columns].sum()) / len(clean)
    if right < least:
        return None
    pairs = [(row, column) for row, column in zip(rows, columns, strict=True) if row != column and met[row, column]]
    moved = [f"{clean.name(row)} is its class {column}" for row, column in pairs]
    missing = victim.classes - len(clean.class_names)
    gap = f"; {missing} of its {victim.classes} classes have no folder, so that later ones count wrong" if missing else ""
    return (
        f", but would be on {100 * right:.0f} % with the classes in another order ({some(moved)}){gap}; "
        "count the labels, or name the folders, by its class numbers."
    )


def _images_like(path: str, victim: Victim, clean: ImageSet, config: DefendConfig, labelled: bool = True) -> ImageSet:
    images = load_images(path, size=config.image_size, channels=victim.input_shape[0], labelled=labelled)
    images = images.relabelled(clean.class_names)
    if tuple(images.images.shape[1:]) != victim.input_shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (images.images.shape[1:], victim.input_shape))
        raise InputError(f"The images in {path} are {found}, those of the model {wanted}; give images of that size.")
    return images


def _known_trigger(config: DefendConfig, victim: Victim, clean: ImageSet, splits: Splits) -> Bank | None:
    """The bank of a trigger that the user has, as a function or as images; None when it must be found."""
    if config.trigger and config.triggered_data:
        raise InputError("Give either --trigger or --triggered-data, not both.")
    if config.trigger:
        known = load_trigger(config.trigger)
        return KnownTrigger(known, find_target(victim, splits.score.labels, known(splits.score.pixels())))
    if config.triggered_data:
        return known_triggered_images(victim, _images_like(config.triggered_data, victim, clean, config, labelled=False), config.seed)
    return None


def _measurement(
    config: DefendConfig, victim: Victim, clean: ImageSet
) -> tuple[ImageSet | None, TrueAttack | TrueImages | None]:
    """What only the report may see."""
    if config.eval_trigger and config.eval_triggered_data:
        raise InputError("Give either --eval-trigger or --eval-triggered-data, not both.")
    if config.eval_trigger and not config.eval_data:
        raise InputError("--eval-trigger needs --eval-data, the images to put the trigger on.")
    evaluation = None if config.eval_data is None else _images_like(config.eval_data, victim, clean, config)
    if config.eval_triggered_data:
        triggered = _images_like(config.eval_triggered_data, victim, clean, config)
        return evaluation, TrueImages(triggered, find_target(victim, triggered.labels, triggered.pixels()))
    if config.eval_trigger is None or evaluation is None:
        return evaluation, None
    trigger: Trigger = load_trigger(config.eval_trigger)
    target = find_target(victim, evaluation.labels, trigger(evaluation.pixels()))
    return evaluation, TrueAttack(trigger, target)
