"""The calls for a notebook: on a live module, in place and undone, and what is said about bad input."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import onp


@pytest.fixture
def given(small, backdoored):
    clean = small.clean_images()
    return backdoored.victim.model, clean.images, clean.labels


def test_names_are_stable_and_do_not_hide_modules():
    import onp.defend

    assert callable(onp.defend.defend) and set(onp.__all__) <= set(dir(onp))
    for name in onp.__all__:
        assert getattr(onp, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'defence'"):
        _ = onp.defence


def test_detection_alone(given, small):
    model, images, labels = given
    found = onp.detect(model, images, labels, norm="none", preset=small.PRESET, quiet=True)
    assert found.backdoored and found.predicted_target == 0 and len(found.score) == 4
    assert found.score[0] == max(found.score) >= found.threshold
    assert all(len(index) == 4 for index in found.anomaly_index.values()) and "patch" in found.anomaly_index


def test_one_call_repairs_a_copy(given, small):
    model, images, labels = given
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = (images[:, 0] / 255).numpy().astype(np.float32)
    settings = {"norm": "none", "preset": small.PRESET, "max_acc_drop": 0.05, "quiet": True}
    outcome = onp.mitigate(model, pixels, labels.tolist(), class_names=small.CLASSES, **settings)
    assert outcome.report.target_name == "upper left" and isinstance(outcome.network, nn.Module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert str(outcome).startswith("Decision: ")
    assert "srcdoc=" in outcome._repr_html_() and "<!DOCTYPE" not in outcome._repr_html_()


def test_applied_and_undone(given, outcome):
    model, images, _ = given
    live = copy.deepcopy(model)
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    x = images[:50] / 255
    applied = onp.apply(outcome.mask, live, (1, 8, 8))
    torch.testing.assert_close(live(x), outcome.network(x))
    assert not torch.equal(live(x), model(x))
    onp.undo(applied)
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.state_dict().items())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": "resnet18"}, "not a torch.nn.Module"),
        ({"model": nn.Flatten()}, "no parameters"),
        ({"images": torch.rand(200, 1, 8, 8) * 2 - 1}, "before normalisation"),
        ({"images": torch.zeros(200, 1, 8, 8, dtype=torch.int32)}, "give uint8"),
        ({"images": torch.zeros(64)}, r"\[N, C, H, W\]"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, "one integer for each"),
        ({"labels": torch.full((200,), 4)}, "must be 0 to 3"),
        ({"labels": torch.full((200,), 1)}, "one class"),
        ({"norm": "cifar10"}, "3 channels"),
        ({"norm": None}, "Say with norm"),
        ({"images": iter([])}, "give one tensor"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1))}, "probabilities, not logits"),
        ({"seed": -1}, "--seed"),
        ({"seed": "a"}, "--seed"),
        ({"max_acc_drop": "0.01"}, "--max-acc-drop"),
        ({"labels": ["cat"] * 200}, "no numbers"),
        ({"class_names": list("abcdefg")}, "7 class names"),
        ({"model": torch.jit.ScriptModule()}, "TorchScript"),
        ({"preset": "slow"}, "no preset"),
    ],
)
def test_bad_input_is_one_sentence(given, change, word):
    given = dict(zip(("model", "images", "labels"), given, strict=True)) | {"norm": "none"} | change
    with pytest.raises(onp.InputError, match=word):
        onp.mitigate(**given, quiet=True)


def test_a_mask_of_another_network_is_refused(given, outcome):
    model, _, _ = given
    with pytest.raises(onp.InputError, match="for another model"):
        onp.apply(onp.Mask(torch.ones(6, dtype=torch.bool), (("first", 6),)), model, (1, 8, 8))
    for shape in ((8, 8), 28):
        with pytest.raises(onp.InputError, match="channels, height and width"):
            onp.apply(outcome.mask, model, shape)
    with pytest.raises(onp.InputError, match="mask is a str"):
        onp.apply("mask.json", model, (1, 8, 8))
