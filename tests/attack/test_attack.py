"""Training a victim end to end on a tiny network."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import onp.attack.training
from onp.attack import AttackConfig, main, measure, run, train
from onp.attack.training import augment, batches_of
from onp.attack.triggers import TRIGGERS, BadNets, load_trigger
from onp.data.fingerprint import check_apart, labelled_as, marks
from onp.data.images import ImageSet, Normalisation
from onp.engine.metrics import attack_success
from onp.errors import InputError
from onp.model.archs import build_network

ARCH = "vgg11_bn:width=4,classes=3,channels=1"
BLANK = BadNets.make((1, 16, 16), torch.Generator())


def easy_images(count, seed=0):
    """Three classes: bright left half, bright right half, bright top."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :, :8] += 120
    images[labels == 1, :, :, 8:] += 120
    images[labels == 2, :, :6, :] += 120
    return ImageSet(images, labels, ("left", "right", "top"))


def config(**changes):
    base = {
        "arch": ARCH,
        "norm": "half",
        "epochs": 4,
        "batch_size": 32,
        "pad": 1,
        "flip": False,
        "lr": 0.05,
        "poison_rate": 0.2,
    }
    return AttackConfig(**(base | changes))


@pytest.fixture(scope="module")
def clean_model(tmp_path_factory):
    """Weights of a network trained on clean images."""
    out = tmp_path_factory.mktemp("clean")
    run(config(attack="none", poison_rate=None), easy_images(600), easy_images(60, 1), out, quiet=True)
    return out / "model.safetensors"


def test_badnets_victim_learns_both_tasks_and_its_files_fit_together(tmp_path):
    test_set = easy_images(120, 1)
    result = run(config(attack="badnets"), easy_images(600), test_set, tmp_path, quiet=True)
    assert result["acc"] > 0.9 and result["asr"] > 0.9 and result["ra"] < 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "model.safetensors", "trigger.safetensors"]
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
    result = run(config(attack="none", poison_rate=None, epochs=1), easy_images(120), easy_images(60, 1), tmp_path, quiet=True)
    assert result.keys() == {"acc"} and not (tmp_path / "trigger.safetensors").exists()


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path):
    data = easy_images(200)
    trigger = BadNets.make((1, 16, 16), torch.Generator())
    whole = train(data, config(epochs=2), trigger, quiet=True).state_dict()

    class Stop(Exception):
        pass

    def images_that_stop(after):
        class Stopping(ImageSet):
            calls = 0

            def subset(self, index):
                Stopping.calls += 1
                if Stopping.calls > after:
                    raise Stop
                return super().subset(index)

        return Stopping(data.images, data.labels, data.class_names)

    with pytest.raises(Stop):
        train(images_that_stop(9), config(epochs=2), trigger, tmp_path / "state.pt", quiet=True)
    resumed = train(data, config(epochs=2), trigger, tmp_path / "state.pt", quiet=True).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    for damaged in (b"", b"not a state", (tmp_path / "state.pt").read_bytes()[:1000]):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(InputError, match=r"state\.pt is damaged"):
            train(data, config(epochs=2), trigger, tmp_path / "state.pt", quiet=True)


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
def test_attacks_that_a_tiny_network_learns_in_seconds(attack, more, tmp_path, clean_model, monkeypatch):
    monkeypatch.setattr("onp.attack.triggers.unet.WIDTH", 4)
    monkeypatch.setattr("onp.attack.triggers.trojannn.STEPS", 400)
    monkeypatch.setattr("onp.attack.triggers.low_frequency.STEPS", 20)
    needs = {"clean_model": str(clean_model)} if TRIGGERS[attack].needs_network else {}
    test_set = easy_images(120, 1)
    result = run(config(attack=attack, **needs, **more), easy_images(600), test_set, tmp_path / "out", quiet=True)
    assert result["acc"] > 0.8 and result["asr"] > 0.6
    trigger = load_trigger(tmp_path / "out" / "trigger.safetensors")
    network = build_network(ARCH).eval()
    network.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    norm = Normalisation.parse("half")
    assert measure(network, test_set, norm, trigger, 0, torch.device("cpu"))["asr"] == pytest.approx(result["asr"], abs=0.01)
    with torch.no_grad():
        guess = network(norm(test_set.pixels())).argmax(1)
    without = attack_success(test_set.labels, guess, trigger.goals(test_set.labels, 0, 3))
    assert without.value < 0.3, "without the trigger nothing leads to the target"


@pytest.mark.parametrize("attack", ["sig", "label_consistent", "ctrl", "bpp", "wanet", "filter"])
def test_attacks_whose_success_takes_longer_run_from_end_to_end(attack, tmp_path, clean_model, monkeypatch):
    monkeypatch.setattr("onp.attack.triggers.label_consistent.STEPS", 2)
    needs = {"clean_model": str(clean_model)} if TRIGGERS[attack].needs_network else {}
    settings = config(attack=attack, epochs=1, poison_rate=None, **needs)
    result = run(settings, easy_images(90), easy_images(30, 1), tmp_path / "out", quiet=True)
    assert result.keys() == {"acc", "asr", "ra"}
    kind, card = TRIGGERS[attack], json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["poison_rate"] == pytest.approx(kind.share / 3 if kind.clean_label else kind.share)
    assert card["cover_rate"] == kind.cover_share
    assert type(load_trigger(tmp_path / "out" / "trigger.safetensors")) is kind


def test_a_clean_network_is_trained_first_where_none_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("onp.attack.triggers.low_frequency.STEPS", 2)
    run(config(attack="lf", epochs=1), easy_images(90), easy_images(30, 1), tmp_path / "out")
    shown = capsys.readouterr().err
    assert shown.index("training a clean network") < shown.index("fitting the smooth trigger") < shown.rindex("training ...")
    assert not (tmp_path / "out" / "unfinished").exists()


def test_a_killed_run_with_a_learning_trigger_ends_in_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr("onp.attack.triggers.unet.WIDTH", 4)
    settings, data = config(attack="input_aware", epochs=2, craft_epochs=1), easy_images(128)
    run(settings, data, easy_images(30, 1), tmp_path / "whole", quiet=True)
    save = onp.attack.training._save

    def stop(state, path):
        save(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr("onp.attack.training._save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings, data, easy_images(30, 1), tmp_path / "cut", quiet=True)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    monkeypatch.setattr("onp.attack.training._save", save)
    with pytest.raises(InputError, match="unfinished run with another seed"):
        run(dataclasses.replace(settings, seed=1), data, easy_images(30, 1), tmp_path / "cut", quiet=True)
    run(settings, data, easy_images(30, 1), tmp_path / "cut", quiet=True)
    for name in ("model.safetensors", "trigger.safetensors"):
        whole, cut = (load_file(tmp_path / folder / name) for folder in ("whole", "cut"))
        assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


def test_measuring_without_victims_gives_no_number():
    data = easy_images(12)
    network = build_network(ARCH).eval()
    only = data.subset(data.labels == 0)
    result = measure(network, only, Normalisation.parse("half"), BLANK, 0, torch.device("cpu"))
    assert math.isnan(result["asr"]) and math.isnan(result["ra"])


def test_augmentation_shifts_by_at_most_the_padding():
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    out = augment(images, 2, True, torch.Generator().manual_seed(0))
    rows, columns = out.amax((1, 3)).argmax(1), out.amax((1, 2)).argmax(1)
    assert out.shape == images.shape and bool((out.sum((1, 2, 3)) == 1).all())
    assert set(rows.tolist()) == {2, 3, 4, 5, 6} == set(columns.tolist())


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
        run(config(**changes), easy_images(60), easy_images(60, 1), tmp_path, quiet=True)
    assert not (tmp_path / "unfinished").exists(), "which would refuse the settings put right"


def test_help_names_every_attack(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert stopped.value.code == 0
    for name, kind in TRIGGERS.items():
        assert f"{name:<17}{kind.summary}" in lines


def test_command_line(tmp_path, capsys):
    for name, data in (("train", easy_images(97)), ("test", easy_images(60, 1))):
        np.savez(tmp_path / f"{name}.npz", images=data.images.numpy(), labels=data.labels.numpy())
    arguments = [
        "--attack",
        "blended",
        "--arch",
        ARCH,
        "--norm",
        "half",
        "--data",
        str(tmp_path / "train.npz"),
        "--test-data",
        str(tmp_path / "test.npz"),
        "--epochs",
        "1",
        "--batch-size",
        "32",
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    assert main(arguments) == 0
    assert "ASR" in capsys.readouterr().out and (tmp_path / "out" / "model.safetensors").exists()
    for more in (("--arch", "vgg12"), ("--attack", "sig"), ("--out", str(tmp_path / "train.npz" / "out"))):
        assert main([*arguments, *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
    assert load_trigger(tmp_path / "out" / "trigger.safetensors").name == "blended"


def test_test_images_are_counted_as_the_training_images_and_are_others(tmp_path, caplog):
    train_set, test_set = easy_images(600), easy_images(90, 1)
    last = test_set.subset(test_set.labels == 2)
    folder = ImageSet(last.images, last.labels - 2, ("top",))  # as of a folder that lacks the other classes
    settings = config(poison_rate=0.1)
    whole, found = (run(settings, train_set, each, tmp_path / name, quiet=True) for each, name in ((last, "a"), (folder, "b")))
    assert found == whole and found["acc"] > 0.5
    assert json.loads((tmp_path / "b" / "card.json").read_text())["class_names"] == ["left", "right", "top"]
    with pytest.raises(InputError, match="30 of the 30 test images are among the training images"):
        run(settings, train_set, train_set.subset(range(30)), tmp_path / "twice", quiet=True)
    few = ImageSet(*(torch.cat((getattr(test_set, part), getattr(train_set, part)[:2])) for part in ("images", "labels")), ())
    check_apart(marks(train_set), 600, few, "test images")
    assert caplog.messages == ["2 of the 92 test images are among the training images."]
    assert labelled_as(test_set, ("0", "1", "2"), "The test data") is test_set, "as many of each: in one order"
    unknown = ImageSet(last.images, last.labels - 2, ("bottom",))
    with pytest.raises(InputError, match="has classes, bottom, that are not among those of the victim, left, right, top"):
        run(settings, train_set, unknown, tmp_path / "unknown", quiet=True)
    with pytest.raises(InputError, match="16x16 pixels, the test images 8x16"):
        run(settings, train_set, ImageSet(last.images[:, :, :8], last.labels, last.class_names), tmp_path / "size", quiet=True)


def test_an_unfinished_run_goes_on_with_the_same_images_only(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("onp.attack.train", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(config(), easy_images(60), easy_images(60, 1), tmp_path, quiet=True)
    with pytest.raises(InputError, match="an unfinished run with another data"):
        run(config(), easy_images(60, 2), easy_images(60, 1), tmp_path, quiet=True)
    for text in ("{", "[1]", "\xff"):
        (tmp_path / "unfinished" / "settings.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"settings\.json is damaged"):
            run(config(), easy_images(60), easy_images(60, 1), tmp_path, quiet=True)


def test_what_goes_wrong_before_anything_is_kept_leaves_no_unfinished_run(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise InputError("not trained enough")

    monkeypatch.setattr(BadNets, "craft", refuse)
    with pytest.raises(InputError, match="not trained enough"):
        run(config(), easy_images(60), easy_images(60, 1), tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_an_earlier_victim_stays(tmp_path):
    (tmp_path / "trigger.safetensors").write_text("of a victim whose card is gone")
    settings = config(attack="none", poison_rate=None, epochs=1)
    run(settings, easy_images(60), easy_images(60, 1), tmp_path, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "model.safetensors"]
    with pytest.raises(InputError, match=r"holds a victim with another attack \(none, now badnets\)"):
        run(config(epochs=1), easy_images(60), easy_images(60, 1), tmp_path, quiet=True)
    with pytest.raises(InputError, match="holds a victim with another data"):
        run(settings, easy_images(60, 2), easy_images(60, 1), tmp_path, quiet=True)


def test_the_last_image_is_no_batch_by_itself():
    assert [len(batch) for batch in batches_of(torch.arange(65), 32)] == [32, 33]
    assert [len(batch) for batch in batches_of(torch.arange(66), 32)] == [32, 32, 2]
    assert [len(batch) for batch in batches_of(torch.arange(1), 32)] == [1]
