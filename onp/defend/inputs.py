"""Reading what the options name: the victim, the clean images, a known trigger, and what is for measuring only."""

from __future__ import annotations

from onp.attack.triggers import load_trigger
from onp.data.images import ImageSet, check_for, load_images, split
from onp.data.normalisation import Normalisation
from onp.defend.case import Case
from onp.defend.class_order import in_order, read_class_order
from onp.defend.config import DefendConfig
from onp.defend.evaluation import Evaluation, TrueAttack, TrueImages, find_target
from onp.defend.run import Run
from onp.defend.sanity import Stated, check_useful, with_numbered_classes
from onp.detect.bank import Bank
from onp.detect.known_trigger import KnownTrigger, known_triggered_images
from onp.errors import InputError
from onp.model.checkpoint import check_file
from onp.model.state_dicts import file_and_key
from onp.model.victim import Victim, load_victim


def read_case(run: Run) -> Case:
    """Read and check what the options name.

    Raises:
        InputError: something given cannot be used.
    """
    config = run.config
    if run.hub is not None:
        size = f"images of {config.image_size} pixels, normalised with {config.norm}"
        run.monitor.note(f"{run.hub.path}: {run.hub}; {size}.")
    with run.stage("reading the model and the images"):
        victim, images, doubts = _victim_and_images(run)
        clean = split(images, run.seed)
        known = _known_trigger(run, victim, clean.score)
        return Case(victim, clean, known, _evaluation(config, victim, images), doubts)


def _victim_and_images(run: Run) -> tuple[Victim, ImageSet, tuple[str, ...]]:
    """The victim and the clean images, checked against each other, and sentences on what looks like a mistake."""
    config, hub = run.config, run.hub
    check_file(file_and_key(str(config.model))[0])
    if config.data is None or config.norm is None:
        raise InputError(_missing(config))
    normalisation = Normalisation.parse(config.norm)
    clean = load_images(config.data, size=config.image_size, channels=hub.channels if hub else None)
    order = None if config.class_order is None else read_class_order(config.class_order)
    if order is None:
        clean = hub.in_order(clean) if hub else clean
    shape = (clean.images.shape[1], clean.images.shape[2], clean.images.shape[3])
    victim = load_victim(str(config.model), hub or config.arch, normalisation, shape, run.device)
    if victim.input_shape[0] != shape[0]:
        clean = clean.with_channels(victim.input_shape[0])
    if order is not None:
        clean = in_order(clean, order, victim.classes)
    check_for(clean, victim.classes, victim.input_shape)
    if order is None:
        clean = with_numbered_classes(victim, clean)
    doubts = check_useful(victim, clean, Stated(order is not None, config.expect_acc))
    for doubt in doubts:
        run.monitor.note(f"Warning: {doubt}")
    return victim, clean, doubts


def _missing(config: DefendConfig) -> str:
    """All that is still to be given, so that all of it is named at once."""
    wanted = []
    if config.data is None:
        wanted.append("a few hundred clean images with --data (a folder with one sub-folder per class, .npz, IDX or a tar)")
    if config.norm is None:
        wanted.append("how the model's images are normalised with --norm (a preset such as cifar10, or MEAN/STD)")
    if config.arch is None and not str(config.model).endswith(".pt2"):
        wanted.append("the network of the weights with --arch")
    *first, last = wanted
    return f"Give {', '.join(first)} and {last}." if first else f"Give {last}."


def _images_for(
    victim: Victim, path: str, config: DefendConfig, class_names: tuple[str, ...], labelled: bool = True
) -> ImageSet:
    """Images of the victim's shape, with labels counted as in `class_names`; -1 where they need not be `labelled`."""
    images = load_images(path, size=config.image_size, channels=victim.input_shape[0], labelled=labelled)
    images = images.relabelled(class_names)
    if tuple(images.images.shape[1:]) != victim.input_shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (images.images.shape[1:], victim.input_shape))
        raise InputError(f"The images in {path} are {found}, those of the model {wanted}; give images of that size.")
    return images


def _known_trigger(run: Run, victim: Victim, images: ImageSet) -> Bank | None:
    """The bank of a trigger that the user has, as a function or as images; None when it must be inverted."""
    config = run.config
    if config.trigger and config.triggered_data:
        raise InputError("Give either --trigger or --triggered-data, not both.")
    if config.trigger:
        trigger = load_trigger(config.trigger)
        return KnownTrigger(trigger, find_target(victim, images.labels, trigger(images.pixels())))
    if config.triggered_data:
        triggered = _images_for(victim, config.triggered_data, config, images.class_names, labelled=False)
        return known_triggered_images(victim, triggered, run.seed)
    return None


def _evaluation(config: DefendConfig, victim: Victim, clean: ImageSet) -> Evaluation:
    """What only the report may see."""
    if config.eval_trigger and config.eval_triggered_data:
        raise InputError("Give either --eval-trigger or --eval-triggered-data, not both.")
    if config.eval_trigger and not config.eval_data:
        raise InputError("--eval-trigger needs --eval-data, the images to put the trigger on.")
    names = clean.class_names
    images = None if config.eval_data is None else _images_for(victim, config.eval_data, config, names)
    if config.eval_triggered_data:
        triggered = _images_for(victim, config.eval_triggered_data, config, names)
        return Evaluation(images, TrueImages(triggered, find_target(victim, triggered.labels, triggered.pixels())))
    if config.eval_trigger is None or images is None:
        return Evaluation(images)
    trigger = load_trigger(config.eval_trigger)
    return Evaluation(images, TrueAttack(trigger, find_target(victim, images.labels, trigger(images.pixels()))))
