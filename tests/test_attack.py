"""Training a victim end to end on a tiny network."""

import json

import numpy as np
import pytest
import torch

from onp.archs import build_network
from onp.attack import AttackConfig, main, run, train
from onp.poisoning import choose
from onp.training import augment, epoch_generator
from onp.data import ImageSet
from onp.errors import InputError
from onp.triggers import BadNets, WaNet, load_trigger

ARCH = "vgg11_bn:width=4,classes=3,channels=1"


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


def test_badnets_victim_learns_both_tasks_and_its_files_fit_together(tmp_path):
    test_set = easy_images(120, 1)
    result = run(config(attack="badnets"), easy_images(600), test_set, tmp_path, quiet=True)
    assert result["acc"] > 0.9 and result["asr"] > 0.9 and result["ra"] < 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "model.safetensors", "trigger.safetensors"]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["asr"] == result["asr"] and card["attack"] == "badnets" and card["poison_rate"] == 0.2
    trigger = load_trigger(tmp_path / "trigger.safetensors")
    network = build_network(ARCH).eval()
    from safetensors.torch import load_file

    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    others = test_set.subset(test_set.labels != 0)
    with torch.no_grad():
        guess = network((trigger(others.pixels()) - 0.5) / 0.5).argmax(1)
    assert float((guess == 0).float().mean()) == pytest.approx(result["asr"])


def test_clean_victim_has_no_trigger(tmp_path):
    result = run(config(attack="none", epochs=1), easy_images(120), easy_images(60, 1), tmp_path, quiet=True)
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


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_poisoned_images_are_spread_over_an_epoch(seed):
    settings = config(seed=seed, poison_rate=0.1)
    chosen = choose(5000, settings)
    assert int(chosen.sum()) == 500
    for epoch in range(3):
        order = torch.randperm(5000, generator=epoch_generator(settings, epoch))
        shares = chosen[order].float().view(10, 500).mean(1)
        assert float(shares.min()) > 0.03 and float(shares.max()) < 0.2


def test_poisoning_changes_the_chosen_images_only():
    images, labels = torch.rand(50, 1, 16, 16), torch.full((50,), 2)
    chosen = torch.zeros(50, dtype=torch.bool)
    chosen[:10] = True
    trigger = BadNets.make((1, 16, 16), torch.Generator())
    out, given = poison(images, labels, chosen, trigger, config(target=1), torch.Generator().manual_seed(0))
    assert torch.equal(out[10:], images[10:]) and bool((out[:10] != images[:10]).any(-1).any(-1).any(-1).all())
    assert given.tolist() == [1] * 10 + [2] * 40


def test_wanet_noise_mode_keeps_labels():
    images, labels = torch.rand(400, 1, 16, 16), torch.full((400,), 2)
    chosen = torch.zeros(400, dtype=torch.bool)
    chosen[:40] = True
    trigger = WaNet.make((1, 16, 16), torch.Generator().manual_seed(0))
    out, given = poison(images, labels, chosen, trigger, config(cover_rate=0.25), torch.Generator().manual_seed(0))
    moved = (out != images).flatten(1).any(1)
    assert bool(moved[:40].all()) and 60 <= int(moved[40:].sum()) <= 120
    assert bool((given[40:] == 2).all()) and bool((given[:40] == 0).all())


def test_augmentation_shifts_by_at_most_the_padding():
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    out = augment(images, 2, True, torch.Generator().manual_seed(0))
    rows, columns = out.amax((1, 3)).argmax(1), out.amax((1, 2)).argmax(1)
    assert out.shape == images.shape and bool((out.sum((1, 2, 3)) == 1).all())
    assert set(rows.tolist()) == {2, 3, 4, 5, 6} == set(columns.tolist())


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"attack": "sig"}, "sig"), ({"arch": "vgg11_bn:width=4,classes=2,channels=1"}, "classes"), ({"target": 7}, "classes")],
)
def test_bad_settings_are_refused(changes, word, tmp_path):
    with pytest.raises(InputError, match=word):
        run(config(**changes), easy_images(60), easy_images(60), tmp_path, quiet=True)


def test_command_line(tmp_path, capsys):
    data = easy_images(90)
    np.savez(tmp_path / "train.npz", images=data.images.numpy(), labels=data.labels.numpy())
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
        str(tmp_path / "train.npz"),
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
    assert main([*arguments[:-3], "--out", str(tmp_path / "out"), "--arch", "vgg12"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
