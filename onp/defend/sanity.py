"""Whether network and images belong together: accuracy well above chance, no better normalisation, classes counted alike."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.defend.class_order import ClassOrder, better_order
from onp.defend.other_normalisation import (
    SECOND_LOOK,
    better_normalisation,
    few_of,
    name_of,
    predicted_with,
    presets_for,
    spread,
)
from onp.engine.metrics import Share, accuracy, predictions
from onp.errors import InputError, first_few, printable
from onp.model.victim import COMMON_SIZES, Victim

USELESS = 0.2  # of the way from chance to certainty: an accuracy below that means another network or other images
NAMED = 0.05  # accuracy to be gained by another normalisation from which it is named as the cause
RESIZED, FEWEST_RESIZED = 48, 16  # images that other sizes are tried with; fewer of larger ones
RESIZED_GAIN = 0.3  # accuracy to be gained by another size from which it is named as the cause
LIKE_LABELS = 0.3  # total variation distance up to which predictions are spread over the classes as the labels are
LONGEST = 300  # characters of the names of the classes in a message


@dataclass(frozen=True)
class Stated:
    """What the user says of network and images, so that it is not questioned."""

    order: bool = False  #: that the labels are in the order of the network's classes
    expect_acc: float | None = None  #: accuracy that the network should reach, a share


@dataclass(frozen=True, eq=False)
class Fit:
    """How well the network does with a normalisation and an order of the classes."""

    acc: float
    preset: str | None  #: None for the normalisation that was given
    order: ClassOrder | None  #: None for the one that was given


def check_expect_acc(share: object) -> None:
    """Raise InputError unless `share` is None or one of the images, above 0."""
    if share is not None and (not isinstance(share, (int, float)) or not 0 < share <= 1):
        raise InputError(f"--expect-acc is a share of the images, 0.9 for 90 %, not {share}.")


def check_useful(victim: Victim, clean: ImageSet, stated: Stated = Stated()) -> tuple[str, ...]:
    """Check that the network knows the images.

    Args:
        victim: with the normalisation that was given.
        clean: labelled images.
        stated: what the user vouches for.

    Returns:
        Sentences on what looks like a mistake and was stated all the same.

    Raises:
        InputError: the accuracy is hardly above chance or below what was expected, or another normalisation or another order
            of the classes is clearly better.
    """
    predicted = predicted_classes(victim, clean)
    acc, expected = accuracy(clean.labels, predicted), stated.expect_acc
    useless = acc.value < _useless(victim)
    order = _useful_order(victim, clean.labels, predicted)
    norm = better_normalisation(victim, clean, predicted)
    reached = expected is not None and acc.value >= expected
    if useless or (order and not stated.order) or (norm and not reached):
        cause = _mistake(victim, clean, acc, _best_fit(victim, clean, predicted, useless or not stated.order))
        raise InputError(cause or _unknown(victim, clean, predicted))
    if expected is not None and not reached:
        raise InputError(_disappointing(victim, clean, acc, expected))
    doubts = [Fit(_right(clean.labels, predicted, order), None, order)] if order else []
    doubts += [Fit(norm.other, norm.preset, None)] if norm else []
    return tuple(filter(None, (_mistake(victim, clean, acc, doubt) for doubt in doubts)))


def with_numbered_classes(victim: Victim, clean: ImageSet) -> ImageSet:
    """Images whose classes are named 0, 1, ... with those numbers for labels.

    That matters where some classes are missing, and where sorting the names puts 10 before 2, unless the network counts its
    classes that way too.
    """
    numbered = clean.by_number(victim.classes)
    if len(clean.class_names) < victim.classes or torch.equal(numbered.labels, clean.labels):
        return numbered
    predicted = predicted_classes(victim, clean)
    return max((clean, numbered), key=lambda images: accuracy(images.labels, predicted).value)


def predicted_classes(victim: Victim, images: ImageSet) -> Tensor:
    """int64 `[N]` on the CPU."""
    return predicted_with(victim, images, victim.normalisation)


def _useless(victim: Victim) -> float:
    """The accuracy below which a network knows nothing of the images."""
    return 1 / victim.classes + USELESS * (1 - 1 / victim.classes)


def _right(labels: Tensor, predicted: Tensor, order: ClassOrder | None) -> float:
    """The accuracy with the classes in that order."""
    return accuracy(labels if order is None else order.relabelled(labels), predicted).value


def _useful_order(victim: Victim, labels: Tensor, predicted: Tensor) -> ClassOrder | None:
    """A better order, where the network is useful with it."""
    order = better_order(labels, predicted, victim.classes)
    return order if order and _right(labels, predicted, order) >= _useless(victim) else None


def _best_fit(victim: Victim, clean: ImageSet, predicted: Tensor, reorder: bool) -> Fit:
    """The normalisation, and where `reorder` the order of the classes, with which the network is right most often."""
    some = few_of(clean, *SECOND_LOOK)
    images = clean.subset(some)

    def fit(preset: str | None, found: Tensor) -> Fit:
        order = _useful_order(victim, images.labels, found) if reorder else None
        return Fit(_right(images.labels, found, order), preset, order)

    given = fit(None, predicted[some])
    others = [fit(name, predicted_with(victim, images, Normalisation.parse(name))) for name in presets_for(victim)]
    best = max(others, key=lambda each: each.acc, default=given)
    # Not for a little more: that would name a cause beside the right one.
    return best if best.acc >= max(given.acc + NAMED, _useless(victim)) else given


def _mistake(victim: Victim, clean: ImageSet, acc: Share, best: Fit) -> str | None:
    """The sentence that names another normalisation or order as the mistake; None where neither is one."""
    if best.preset is None and best.order is None:
        return None
    given = name_of(victim.normalisation)
    better = [] if best.preset is None else [f"with --norm {best.preset}"]
    vouch = f", or --expect-acc {int(100 * acc.value) / 100:g} where that is what it should reach"
    vouch = vouch if acc.value >= _useless(victim) else ""
    advice = [] if best.preset is None else [f"give --norm {best.preset}{vouch}"]
    if best.order is not None:
        named, order = [label for label in best.order.moved if label in clean.labels], _order_of(clean, best.order)
        moves = first_few([f"{clean.name(label)} is its class {best.order.outputs[label]}" for label in named])
        missing = victim.classes - len(clean.class_names)
        gap = f"; {missing} of its {victim.classes} classes have no folder, so that later ones count wrong"
        gap = gap if missing > 0 else ""
        better.append(f"with the classes in another order ({moves}{gap})")
        advice.append(f"give --class-order {order}, or name the folders, or count the labels, by its class numbers")
    return (
        f"The model is right on only {100 * acc.value:.0f} % of the clean images with --norm {given}, but would be on "
        f"{100 * best.acc:.0f} % {' and '.join(better)}; {', and '.join(advice)}."
    )


def _order_of(clean: ImageSet, order: ClassOrder) -> str:
    """What --class-order would be given: the names by class of the network, or FILE where that is too long to print."""
    names = {order.outputs[label]: clean.name(label) for label in clean.labels.unique().tolist()}
    text = ",".join(names.get(output, f"class{output}") for output in range(len(order.outputs)))
    fits = len(text) <= LONGEST and text.count(",") == len(order.outputs) - 1 and printable(text, LONGEST) == text
    return shlex.quote(text) if fits else "FILE, with the names of the classes in its order, one a line"


def _unknown(victim: Victim, clean: ImageSet, predicted: Tensor) -> str:
    """The sentence for an accuracy that no known normalisation and no other order explains."""
    acc = accuracy(clean.labels, predicted).value
    start = f"The model is right on only {100 * acc:.0f} % of the clean images"
    height, width = victim.input_shape[1:]
    resized = max(_resized(victim, clean), default=(0.0, 0))
    if resized[0] >= acc + RESIZED_GAIN:
        return (
            f"{start}, which are {height}x{width} pixels, but would be on {100 * resized[0]:.0f} % of them as "
            f"{resized[1]}x{resized[1]}; give --image-size {resized[1]}."
        )
    given, found = (torch.bincount(each, minlength=victim.classes) / len(clean) for each in (clean.labels, predicted))
    if float((given - found).abs().sum()) / 2 <= LIKE_LABELS:
        return (
            f"{start}, though it predicts each class about as often as there are labels of it: the labels are mixed up or "
            "belong to other images; check them, or give --class-order where the classes are only counted in another order."
        )
    common = int(found.argmax())
    return (
        f"{start} and takes {100 * float(found[common]):.0f} % of them for class {clean.name(common)}, and no other known "
        f"normalisation helps; check --norm (MEAN/STD of its training), --image-size (the images are {height}x{width} pixels) "
        "and that these are weights and images of one task."
    )


def _resized(victim: Victim, clean: ImageSet) -> Iterator[tuple[float, int]]:
    """The accuracy on a few images scaled to other sizes that the network takes, and the size."""
    order, (_, height, width) = spread(clean.labels), victim.input_shape
    for size in COMMON_SIZES:
        if (size, size) == (height, width):
            continue
        some = clean.subset(order[: min(RESIZED, max(FEWEST_RESIZED, RESIZED * height * width // size**2))])
        pixels = F.interpolate(some.pixels(), (size, size), mode="bilinear", antialias=True, align_corners=False)
        try:
            found = predictions(victim.model, victim.normalisation(pixels.to(victim.device))).cpu()
        except RuntimeError:  # a network of one size only
            continue
        yield accuracy(some.labels, found).value, size


def _disappointing(victim: Victim, clean: ImageSet, acc: Share, expected: float) -> str:
    """The sentence for an accuracy below --expect-acc."""
    low, high = acc.interval
    height, width = victim.input_shape[1:]
    resized = max(_resized(victim, clean), default=(0.0, 0))
    cause = f", {100 * resized[0]:.0f} % at {resized[1]}x{resized[1]}" if resized[0] >= acc.value + NAMED else ""
    return (
        f"The model is right on {100 * acc.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of the {acc.n} clean images, less "
        f"than the {100 * expected:g} % of --expect-acc; likely causes are another normalisation (--norm, now "
        f"{name_of(victim.normalisation)}), another size of the images (--image-size, now {height}x{width}{cause}), classes in "
        "another order (--class-order), or images unlike those of its training."
    )
