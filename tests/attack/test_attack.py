"""Training a victim end to end on a tiny network."""

import dataclasses
import json
import math

import pytest
import torch
from helpers.easy_victims import ARCH, config, easy_images, stopping_images
from safetensors.torch import load_file

from onp.attack import train_victim
from onp.attack.measure import measure_victim
from onp.attack.triggers import TRIGGERS, CraftingBudget, load_trigger
from onp.data.fingerprint import check_overlap, image_hashes
from onp.data.images import ImageSet, labelled_as
from onp.data.normalisation import Normalisation
from onp.engine.metrics import attack_success
from onp.errors import InputError
from onp.model.archs import build_network


def victim_in(settings, train_set, test_set, out, budget=CraftingBudget()):
    """Train a victim into the folder `out`."""
    return train_victim(dataclasses.replace(settings, out=str(out)), train_set, test_set, budget)


@pytest.fixture(scope="module")
def clean_model(tmp_path_factory):
    """Weights of a network trained on clean images."""
    out = tmp_path_factory.mktemp("clean")
    victim_in(config(attack="none", poison_rate=None), easy_images(600), easy_images(60, 1), out)
    return out / "model.safetensors"


def test_badnets_victim_learns_both_tasks_and_its_files_fit_together(tmp_path):
    test_set = easy_images(120, 1)
    result = victim_in(config(attack="badnets"), easy_images(600), test_set, tmp_path)
    assert result["acc"] > 0.9 and result["asr"] > 0.9 and result["ra"] < 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "card.json",
        "model.safetensors",
        "training_sample.txt",
        "trigger.safetensors",
    ]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["asr"] == result["asr"] and card["attack"] == "badnets" and card["poison_rate"] == 0.2
    trigger = load_trigger(tmp_path / "trigger.safetensors")
    network = build_network(ARCH).eval()
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    others = test_set.subset(test_set.labels != 0)
    with torch.no_grad():
        guess = network((trigger(others.pixels()) - 0.5) / 0.5).argmax(1)
    assert float((guess == 0).float().mean()) == pytest.approx(result["asr"])


def test_clean_victim_has_no_trigger(tmp_path):
    result = victim_in(config(attack="none", poison_rate=None, epochs=1), easy_images(120), easy_images(60, 1), tmp_path)
    assert result.keys() == {"acc"} and not (tmp_path / "trigger.safetensors").exists()


@pytest.mark.parametrize(
    ("attack", "more"),
    [
        ("badnets_a2a", {"epochs": 10}),
        ("blended", {}),
        ("lf", {}),
        ("trojannn", {"epochs": 8}),
        ("adaptive_blend", {"epochs": 8, "poison_rate": 0.1, "cover_rate": 0.1}),
        ("input_aware", {"epochs": 5, "craft_epochs": 1}),
    ],
)
def test_attacks_that_a_tiny_network_learns_in_seconds(attack, more, tmp_path, clean_model):
    budget = CraftingBudget(steps=400 if attack == "trojannn" else 20, unet_width=4)
    needs = {"clean_model": str(clean_model)} if TRIGGERS[attack].needs_network else {}
    test_set = easy_images(120, 1)
    result = victim_in(config(attack=attack, **needs, **more), easy_images(600), test_set, tmp_path / "out", budget)
    assert result["acc"] > 0.8 and result["asr"] > 0.6
    trigger = load_trigger(tmp_path / "out" / "trigger.safetensors")
    network = build_network(ARCH).eval()
    network.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    norm = Normalisation.parse("half")
    assert measure_victim(network, test_set, norm, trigger, 0)["asr"] == pytest.approx(result["asr"], abs=0.01)
    with torch.no_grad():
        guess = network(norm(test_set.pixels())).argmax(1)
    without = attack_success(test_set.labels, guess, trigger.goals(test_set.labels, 0, 3))
    assert without.value < 0.3, "without the trigger nothing leads to the target"


@pytest.mark.parametrize("attack", ["sig", "label_consistent", "ctrl", "bpp", "wanet", "filter"])
def test_attacks_whose_success_takes_longer_run_from_end_to_end(attack, tmp_path, clean_model):
    needs = {"clean_model": str(clean_model)} if TRIGGERS[attack].needs_network else {}
    settings = config(attack=attack, epochs=1, poison_rate=None, **needs)
    result = victim_in(settings, easy_images(90), easy_images(30, 1), tmp_path / "out", CraftingBudget(steps=2))
    assert result.keys() == {"acc", "asr", "ra"}
    kind, card = TRIGGERS[attack], json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["poison_rate"] == pytest.approx(kind.share / 3 if kind.clean_label else kind.share)
    assert card["cover_rate"] == kind.cover_share
    assert type(load_trigger(tmp_path / "out" / "trigger.safetensors")) is kind


def test_a_clean_network_is_trained_first_where_none_is_given(tmp_path, capsys):
    settings = config(attack="lf", epochs=1, quiet=False)
    victim_in(settings, easy_images(90), easy_images(30, 1), tmp_path / "out", CraftingBudget(steps=2))
    shown = capsys.readouterr().err
    assert shown.index("training a clean network") < shown.index("fitting the smooth trigger") < shown.rindex("training ...")
    assert not (tmp_path / "out" / "unfinished").exists()


def test_a_killed_run_with_a_learning_trigger_ends_in_the_same_files(tmp_path):
    settings, data, budget = (
        config(attack="input_aware", epochs=2, craft_epochs=1),
        easy_images(128),
        CraftingBudget(unet_width=4),
    )
    victim_in(settings, data, easy_images(30, 1), tmp_path / "whole", budget)
    killed = stopping_images(data, tmp_path / "cut" / "unfinished" / "training.pt")
    with pytest.raises(KeyboardInterrupt):
        victim_in(settings, killed, easy_images(30, 1), tmp_path / "cut", budget)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    with pytest.raises(InputError, match="unfinished run with another seed"):
        victim_in(dataclasses.replace(settings, seed=1), data, easy_images(30, 1), tmp_path / "cut")
    victim_in(settings, data, easy_images(30, 1), tmp_path / "cut", budget)
    for name in ("model.safetensors", "trigger.safetensors"):
        whole, cut = (load_file(tmp_path / folder / name) for folder in ("whole", "cut"))
        assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"attack": "sick"}, "sick"),
        ({"arch": "vgg11_bn:width=4,classes=2,channels=1"}, "classes"),
        ({"target": 7}, "classes"),
        ({"attack": "sig", "poison_rate": 0.5}, r"target class only.*at most 0\.3333"),
        ({"cover_rate": 0.1}, "no cover images"),
        ({"attack": "wanet", "poison_rate": 0.9}, "more than all"),
        ({"poison_rate": 0.0}, "--poison-rate"),
        ({"poison_rate": 0.001}, "is none"),
        ({"clean_model": "x.safetensors"}, "starts from no clean network"),
        ({"attack": "lf", "clean_model": "x.safetensors"}, "does not hold"),
        ({"attack": "bpp", "strength": 1.0}, "levels"),
        ({"epochs": 0}, "at least 1"),
        ({"batch_size": 1}, "--batch-size 2"),
        *(({"lr": lr}, "--lr") for lr in (-1.0, 0.0, math.nan, math.inf)),
        ({"pad": -1}, "--pad"),
        ({"pad": 17}, "0 to 16"),
        ({"norm": "cifar10"}, "3 channels"),
        ({"norm": "nope"}, "'nope'"),
        ({"arch": "nope:classes=3,channels=1"}, "'nope'"),
        ({"arch": "vgg11_bn:width=4,classes=3"}, "does not take images of 1x16x16"),
        ({"seed": 10**20}, "--seed"),
        *(({"strength": strength}, "--strength of badnets is above 0 and at most 1") for strength in (-3.0, 5.0, math.nan)),
        ({"attack": "bpp", "strength": math.nan}, "--strength"),
        ({"attack": "none"}, "leave out --poison-rate"),
        ({"device": "cuda"}, "CUDA"),
    ],
)
def test_bad_settings_are_refused(changes, word, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=word):
        victim_in(config(**changes), easy_images(60), easy_images(60, 1), tmp_path)
    assert not (tmp_path / "unfinished").exists(), "which would refuse the settings put right"


def test_test_images_are_counted_as_the_training_images_and_are_others(tmp_path, caplog):
    train_set, test_set = easy_images(600), easy_images(90, 1)
    last = test_set.subset(test_set.labels == 2)
    folder = ImageSet(last.images, last.labels - 2, ("top",))  # as of a folder that lacks the other classes
    settings = config(poison_rate=0.1)
    whole, found = (victim_in(settings, train_set, each, tmp_path / name) for each, name in ((last, "a"), (folder, "b")))
    assert found == whole and found["acc"] > 0.5
    assert json.loads((tmp_path / "b" / "card.json").read_text())["class_names"] == ["left", "right", "top"]
    with pytest.raises(InputError, match="30 of the 30 test images are among the training images"):
        victim_in(settings, train_set, train_set.subset(range(30)), tmp_path / "twice")
    few = ImageSet(*(torch.cat((getattr(test_set, part), getattr(train_set, part)[:2])) for part in ("images", "labels")), ())
    check_overlap(image_hashes(train_set), 600, few, "test images")
    assert caplog.messages == ["2 of the 92 test images are among the training images."]
    assert labelled_as(test_set, ("0", "1", "2"), "The test data") is test_set, "as many of each: in one order"
    unknown = ImageSet(last.images, last.labels - 2, ("bottom",))
    with pytest.raises(InputError, match="has classes, bottom, that are not among those of the victim, left, right, top"):
        victim_in(settings, train_set, unknown, tmp_path / "unknown")
    with pytest.raises(InputError, match="16x16 pixels, the test images 8x16"):
        victim_in(settings, train_set, ImageSet(last.images[:, :, :8], last.labels, last.class_names), tmp_path / "size")


def test_an_unfinished_run_goes_on_with_the_same_images_only(tmp_path):
    killed = stopping_images(easy_images(60), tmp_path / "unfinished" / "trigger.safetensors")
    with pytest.raises(KeyboardInterrupt):
        victim_in(config(), killed, easy_images(60, 1), tmp_path)
    with pytest.raises(InputError, match="an unfinished run with another data"):
        victim_in(config(), easy_images(60, 2), easy_images(60, 1), tmp_path)
    for text in ("{", "[1]", "\xff"):
        (tmp_path / "unfinished" / "settings.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"settings\.json is damaged"):
            victim_in(config(), easy_images(60), easy_images(60, 1), tmp_path)


def test_what_goes_wrong_before_anything_is_kept_leaves_no_unfinished_run(tmp_path):
    settings = config(attack="ssba", craft_epochs=1)
    with pytest.raises(InputError, match="not trained enough"):
        victim_in(settings, easy_images(60), easy_images(60, 1), tmp_path, CraftingBudget(unet_width=4))
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_an_earlier_victim_stays(tmp_path):
    (tmp_path / "trigger.safetensors").write_text("of a victim whose card is gone")
    settings = config(attack="none", poison_rate=None, epochs=1)
    victim_in(settings, easy_images(60), easy_images(60, 1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "model.safetensors", "training_sample.txt"]
    with pytest.raises(InputError, match=r"holds a victim with another attack \(none, now badnets\)"):
        victim_in(config(epochs=1), easy_images(60), easy_images(60, 1), tmp_path)
    with pytest.raises(InputError, match="holds a victim with another data"):
        victim_in(settings, easy_images(60, 2), easy_images(60, 1), tmp_path)
