"""Whether network and images belong together: accuracy well above chance, and classes counted alike."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onp.data.images import ImageSet
from onp.engine.metrics import accuracy, predictions
from onp.errors import InputError, first_few
from onp.model.victim import Victim

USELESS = 0.2  # of the way from chance to certainty: an accuracy below that means another network or other images
REORDERED = 0.7  # accuracy with the classes in another order from which that order is the mistake
REORDERED_GAIN = 0.1  # accuracy to be gained by another order from which it is the mistake, where classes are missing
MINIMUM_IMAGES = 3  # of a class, to tell which class of the network it is


def check_useful(victim: Victim, clean: ImageSet) -> None:
    """Check that the network knows the images.

    Raises:
        InputError: its accuracy is hardly above chance, or it counts their classes in another order.
    """
    predicted = predicted_classes(victim, clean)
    acc, chance = accuracy(clean.labels, predicted).value, 1 / victim.classes
    useless, missing = acc < chance + USELESS * (1 - chance), len(clean.class_names) < victim.classes
    if not useless and not missing:
        return
    other_order = _other_order(victim, clean, predicted, REORDERED if useless else acc + REORDERED_GAIN)
    if useless or other_order:
        raise InputError(
            f"The model is right on only {100 * acc:.0f} % of the clean images"
            + (other_order or "; check --norm, --image-size and the order of the classes.")
        )


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
    return predictions(victim.model, victim.normalisation(images.pixels().to(victim.device))).cpu()


def _other_order(victim: Victim, clean: ImageSet, predicted: Tensor, least: float) -> str | None:
    """The rest of the sentence where another order of the classes gives an accuracy of `least` or more."""
    counts = torch.zeros(len(clean.class_names), victim.classes, dtype=torch.long)
    counts.index_put_((clean.labels, predicted), torch.ones_like(predicted), accumulate=True)
    counts[counts.sum(1) < MINIMUM_IMAGES] = 0
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    right = int(counts[rows, columns].sum()) / len(clean)
    if right < least:
        return None
    pairs = [(row, column) for row, column in zip(rows, columns, strict=True) if row != column and counts[row, column]]
    moved = [f"{clean.name(row)} is its class {column}" for row, column in pairs]
    missing = victim.classes - len(clean.class_names)
    gap = f"; {missing} of its {victim.classes} classes have no folder, so that later ones count wrong" if missing else ""
    return (
        f", but would be on {100 * right:.0f} % with the classes in another order ({first_few(moved)}){gap}; "
        "count the labels, or name the folders, by its class numbers."
    )
