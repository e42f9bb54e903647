"""The order in which a network counts its classes: as it is stated, and whether labels seem to be in another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onp.data.images import ImageSet
from onp.engine.metrics import lower_bound
from onp.errors import InputError, first_few, printable
from onp.files import file_kind, read_regular

MAX_BYTES = 16 * 2**20  # of a file with the names of classes
LONGEST_PATH = 255  # characters; longer texts are lists of names
MOST_CLASSES = 5000  # among which another order is looked for
MINIMUM_IMAGES = 3  # of a class, to tell which class of the network it is
FOLDS = 5  # images are judged by an order that the other folds gave
CONFIDENCE = 0.995  # of each bound, so that a correct order is refused next to never
GAIN = 0.1  # least gain of accuracy, by its lower bound, on the classes that change their places
GAINING = (
    2 / 3
)  # of those classes that must gain, and two at least: one alone is taken for another that the network never names
LOSSES = 0.1  # most that some classes may lose, as a share of what the others gain: merged classes lose as much as they gain


@dataclass(frozen=True)
class ClassOrder:
    """Which class of the network each label stands for."""

    outputs: tuple[int, ...]  #: by label

    @property
    def moved(self) -> tuple[int, ...]:
        """The labels that stand for another class of the network."""
        return tuple(label for label, output in enumerate(self.outputs) if label != output)

    def relabelled(self, labels: Tensor) -> Tensor:
        """Labels int64 `[N]` as the network counts them."""
        return torch.tensor(self.outputs)[labels]


def read_class_order(text: str) -> tuple[str, ...]:
    """The names that --class-order gives.

    Args:
        text: a file with one name a line, or NAME,NAME,...

    Raises:
        InputError: there is no such file, it is no text, or a name is there twice or empty.
    """
    if len(text) <= LONGEST_PATH and file_kind(path := Path(text)) is not None:
        try:
            lines = read_regular(path, MAX_BYTES).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"The file {path} of --class-order is no text in UTF-8; write one name a line.") from error
        names = [line.strip() for line in lines if line.strip()]
    elif "," in text:
        names = [name.strip() for name in text.split(",")]
    else:
        raise InputError(f"There is no file {printable(text)} for --class-order; give one with a name a line, or NAME,NAME,...")
    check_names(names)
    return tuple(names)


def check_names(names: Sequence[str]) -> None:
    """Raise InputError unless the names of --class-order are different texts, and not empty."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice or not all(names):
        wrong = f"names {first_few(twice)} twice" if twice else "has an empty name"
        raise InputError(f"--class-order {wrong}; give each class of the network one name.")


def in_order(images: ImageSet, order: Sequence[str], classes: int) -> ImageSet:
    """The images with labels counted as `order` does, and its names.

    Args:
        images: labelled; where none of their classes is in `order` and all are numbers, those count the network's classes.
        order: the name of each class of the network.
        classes: of the network.

    Raises:
        InputError: the order has more or fewer names, or lacks a class of the images.
    """
    if len(order) != classes:
        raise InputError(f"--class-order has {len(order)} names, and the network {classes} classes; give one for each.")
    known = {name: label for label, name in enumerate(order)}
    if not known.keys() & set(images.class_names):
        known = {str(label): label for label in range(classes)}
    unknown = [images.name(label) for label in images.labels.unique().tolist() if images.name(label) not in known]
    if unknown:
        raise InputError(f"--class-order lacks {first_few(unknown)}, of which there are images; name the classes alike.")
    labels = torch.tensor([known.get(name, -1) for name in images.class_names])[images.labels]
    return ImageSet(images.images, labels, tuple(order))


def better_order(labels: Tensor, predicted: Tensor, classes: int) -> ClassOrder | None:
    """Another order of the classes, where the predictions fit it clearly better than the one that the labels are in.

    An assignment of labels to classes of the network is searched that makes most predictions right. Chance makes some other
    order a little better on few images, so the assignment is made of some images and judged by others, in cycles of classes
    that change places; the lower confidence bound of what they gain counts. The classes with too few images keep their places.

    Args:
        labels: int64 `[N]`, each below `classes`.
        predicted: int64 `[N]`.
        classes: of the network.

    Returns:
        None where no other order is clearly better.
    """
    # Among the classes that occur, since a table of all would not fit for tens of thousands.
    occurring, numbers = torch.unique(torch.cat((labels, predicted)), return_inverse=True)
    if len(occurring) > MOST_CLASSES:
        return None
    found = _better(numbers[: len(labels)], numbers[len(labels) :], len(occurring))
    if found is None:
        return None
    outputs = torch.arange(classes)
    outputs[occurring] = occurring[torch.tensor(found.outputs)]
    return ClassOrder(tuple(outputs.tolist()))


def _better(labels: Tensor, predicted: Tensor, classes: int) -> ClassOrder | None:
    """`better_order` among the classes that occur."""
    counts = _counts(labels, predicted, classes)
    found = ClassOrder(_assignment(counts, MINIMUM_IMAGES))
    if not found.moved:
        return None
    gains = _gains(labels, predicted, classes)
    return found if any(_clear(members, found, counts, gains[_among(labels, members)]) for members in _cycles(found)) else None


def _clear(members: list[int], order: ClassOrder, counts: Tensor, gains: Tensor) -> bool:
    """Whether classes that change places gain by it: most of them, and by images that had no say in the order.

    Args:
        members: labels of one cycle.
        order: that is judged.
        counts: float64 `[classes, classes]`, of predictions by label.
        gains: int64, of their images: 1 where the image becomes right, -1 where it becomes wrong.
    """
    rows = torch.tensor(members)
    rates = counts[rows] / counts[rows].sum(1, keepdim=True).clamp_min(1)
    change = rates.gather(1, torch.tensor(order.outputs)[rows][:, None])[:, 0] - rates.gather(1, rows[:, None])[:, 0]
    counted, gaining = int((counts[rows].sum(1) > 0).sum()), int((change >= GAIN).sum())
    losses = -float(change.clamp_max(0).sum()) / max(float(change.clamp_min(0).sum()), 1e-6)
    if losses > LOSSES or gaining < max(min(2, counted), GAINING * counted):
        return False
    better, worse, images = int((gains > 0).sum()), int((gains < 0).sum()), len(gains)
    if not images:
        return False
    return lower_bound(better, images, CONFIDENCE) - (1 - lower_bound(images - worse, images, CONFIDENCE)) >= GAIN


def _counts(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How often each label was predicted to be each class, float64 `[classes, classes]`."""
    flat = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.view(classes, classes).double()


def _assignment(counts: Tensor, least: int) -> tuple[int, ...]:
    """The class of the network for each label that makes the mean accuracy of the classes highest.

    Of equally good ones, one that leaves labels where they are. Classes of fewer than `least` images do not count.
    """
    total = counts.sum(1, keepdim=True)
    rates = torch.where(total >= least, counts / total.clamp_min(1), 0.0)
    _, columns = linear_sum_assignment((rates + 1e-6 * torch.eye(len(rates))).numpy(), maximize=True)
    return tuple(map(int, columns))


def _gains(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """For each image 1, 0 or -1, by the order that the images of the other folds give."""
    fold = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        fold[members] = torch.arange(len(members)) % FOLDS
    right = (predicted == labels).long()
    gains = torch.empty_like(labels)
    for number in range(FOLDS):
        mine, others = fold == number, fold != number
        order = ClassOrder(_assignment(_counts(labels[others], predicted[others], classes), MINIMUM_IMAGES - 1))
        gains[mine] = (predicted[mine] == order.relabelled(labels[mine])).long() - right[mine]
    return gains


def _cycles(order: ClassOrder) -> Iterator[list[int]]:
    """Labels that change places among themselves."""
    left = set(order.moved)
    while left:
        cycle = [min(left)]
        while (following := order.outputs[cycle[-1]]) != cycle[0]:
            cycle.append(following)
        left -= set(cycle)
        yield cycle


def _among(labels: Tensor, members: list[int]) -> Tensor:
    return torch.isin(labels, torch.tensor(members))
