"""The embedded victims are what they are said to be."""

import json
from pathlib import Path

import pytest
import torch

from onp.attack.triggers import load_trigger
from onp.data.normalisation import Normalisation
from onp.defend.demos import ARCH, DEMOS, NORM, clean_images, demo, eval_images
from onp.engine.metrics import accuracy, attack_success, predictions
from onp.errors import InputError
from onp.model.victim import load_victim


@pytest.mark.parametrize("name", DEMOS)
def test_victims_are_accurate_and_obey_their_trigger(name):
    files = demo(name)
    victim = load_victim(files.model, ARCH, Normalisation.parse(NORM), (1, 28, 28))
    images = eval_images()
    card = json.loads((files.model.parent / "card.json").read_text())
    acc = accuracy(images.labels, predictions(victim.model, victim.normalisation(images.pixels()))).value
    assert acc == pytest.approx(card["acc"], abs=0.02) and acc > 0.86
    if files.trigger is None:
        assert name == "clean" and "asr" not in card
        return
    triggered = victim.normalisation(load_trigger(files.trigger)(images.pixels()))
    asr = attack_success(images.labels, predictions(victim.model, triggered), 0).value
    assert asr == pytest.approx(card["asr"], abs=0.02) and card["asr"] >= 0.95


def test_the_whole_bundle_is_small():
    folder = demo("clean").model.parents[1]
    assert sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) < 8_000_000


def test_evaluation_images_are_not_those_of_the_defence():
    clean, evaluation = clean_images(), eval_images()
    assert len(clean) == 500 and len(evaluation) == 2000
    assert torch.bincount(clean.labels).tolist() == [50] * 10
    seen = {image.numpy().tobytes() for image in clean.images}
    assert not any(image.numpy().tobytes() in seen for image in evaluation.images)


def test_an_unknown_demo_is_refused():
    with pytest.raises(InputError, match="badnets"):
        demo("mnist")
