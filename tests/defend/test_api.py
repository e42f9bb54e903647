"""The calls for a notebook: on a live module, in place and undone, and what is said about bad input."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import onp
from onp.data.normalisation import Normalisation
from onp.defend.config import DefendConfig
from onp.defend.from_memory import CheckedTrigger, Given, case_from_memory
from onp.defend.run import Run
from onp.model.prune import prune
from onp.model.victim import victim_from_module


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


def test_detection_alone(given, small, plain_verdict):
    model, images, labels = given
    found = onp.detect(model, images, labels, norm="none", preset=small.PRESET, quiet=True)
    assert found.backdoored and found.predicted_target == 0 and len(found.per_class) == len(found.evidence) == 4
    assert found.per_class[0] == max(found.per_class) and found.probability >= found.backdoor_from > found.none_below
    assert sum(found.evidence[0].values()) > sum(found.evidence[1].values())
    assert all(len(index) == 4 for index in found.anomaly_index.values()) and "patch" in found.anomaly_index
    assert found.class_names == tuple("0123") and found.decision == "backdoor-evidence"


INDEX = {"patch": (0.5, 7.2, math.nan), "latent": (0.1, 2.0, 0.0)}
ADDED = ({"patch": 0.0, "latent": 0.1}, {"patch": 4.2, "latent": -0.5}, {"patch": 0.0, "latent": 0.0})


@pytest.mark.parametrize(
    ("decision", "advice"),
    [("backdoor-evidence", "onp.mitigate"), ("inconclusive", "thorough"), ("no-backdoor-evidence", "no proof")],
)
def test_evidence_prints_as_five_lines(decision, advice):
    found = onp.Evidence(True, 1, 0.96, (0.02, 0.94, 0.0), ADDED, INDEX, 0.8, 0.2, ("ant", "<b>\n", "2"), decision)
    lines = str(found).splitlines()
    assert repr(found) == str(found) and len(lines) == 5 and lines[0] == f"Decision: {decision}"
    assert lines[1].endswith("is 96 %; evidence from 80 % on, none below 20 %.")
    assert "class <b>\\n (1), 94 %; log odds patch +4.2, latent -0.5." in lines[2]
    assert "class ant (0), 2 %, of 3 classes" in lines[3] and advice in lines[4]
    assert found.ranking == (1, 0, 2)
    page = found._repr_html_()
    assert "&lt;b&gt;" in page and "<b>" not in page and page.index("ant") > page.index("94 %") and decision in page


def test_one_call_repairs_a_copy(given, small, plain_verdict):
    model, images, labels = given
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = (images[:, 0] / 255).numpy().astype(np.float32)
    settings = {"norm": "none", "preset": small.PRESET, "max_acc_drop": 0.05, "quiet": True}
    outcome = onp.mitigate(model, pixels, labels.tolist(), class_names=small.CLASSES, **settings)
    assert outcome.report.target_name == "upper left" and isinstance(outcome.network, nn.Module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "srcdoc=" in outcome._repr_html_() and "<!DOCTYPE" not in outcome._repr_html_()


class WithFeatures(nn.Module):
    """A network that returns a dict."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return {"logits": self.network(x), "features": x}


class Pictures(Dataset):
    """(image, label) with the names of the classes, as sets of torchvision have them."""

    def __init__(self, images, labels, classes):
        self.images, self.labels, self.classes = images / 255, labels.tolist(), list(classes)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, position):
        return self.images[position], self.labels[position]


def test_a_dataset_a_network_of_dicts_a_known_trigger_and_files(given, small, tmp_path):
    model, images, labels = given
    network, seen = WithFeatures(model), []
    outcome = onp.mitigate(
        network,
        DataLoader(Pictures(images, labels, small.CLASSES), 64),
        norm="none",
        preset=small.PRESET,
        max_acc_drop=0.05,
        trigger=small.stamp,
        heal=False,
        device="cpu",
        quiet=True,
        progress=lambda *step: seen.append(step),
    )
    assert outcome.report.decision == "repaired" and outcome.report.detection is None
    assert outcome.report.target_name == small.CLASSES[0]
    assert any(stage == "searching for the mask" and done > 0 for stage, done, _ in seen)
    assert all(done >= 0 and total >= 1 for _, done, total in seen)
    lines = str(outcome).splitlines()
    assert repr(outcome) == str(outcome) and lines[0] == "Decision: repaired" and 4 <= len(lines) <= 5
    assert any("ACC " in line and "known trigger: ASR" in line for line in lines) and "What to do: " in lines[-1]
    given_again = outcome.network(images[:5] / 255)
    assert type(outcome.network) is WithFeatures and set(given_again) == {"logits", "features"}

    outcome.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "mask.json", "model_card.md", "report.html", "report.json", "report.sarif"} <= names
    loaded = WithFeatures(small.network()).eval()
    loaded.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    torch.testing.assert_close(loaded(images[:5] / 255)["logits"], given_again["logits"])
    files = json.loads((tmp_path / "out" / "report.json").read_text())["provenance"]["outputs"]
    assert "model.safetensors" in {file["name"] for file in files}
    with pytest.raises(onp.InputError, match="not empty"):
        outcome.save(tmp_path / "out")

    applied = onp.apply(outcome.mask, network, (1, 8, 8))
    assert len(repr(applied)) < 100 and "onp.undo" in repr(applied)
    torch.testing.assert_close(network(images[:5] / 255)["logits"], given_again["logits"])
    onp.undo(applied)


def test_what_a_trigger_makes_is_checked():
    images = torch.rand(4, 1, 8, 8)
    for function, says in (
        (lambda x: x[:2], r"makes torch.float32 \[2, 1, 8, 8\]"),
        (lambda x: None, "makes NoneType"),
        (lambda x: x * 255, "keep them from 0 to 1"),
        (lambda x: x / 0 * 0, "from nan to nan"),
        (lambda x: x[7], "fails on the images .IndexError"),
    ):
        with pytest.raises(onp.InputError, match=says):
            CheckedTrigger(function)(images)
    before = images.clone()
    assert CheckedTrigger(lambda x: x.mul_(0))(images).max() == 0 and torch.equal(images, before)
    assert CheckedTrigger(small_trigger).name == "small_trigger" and not CheckedTrigger(small_trigger).all_to_all


def small_trigger(images):
    return images


def test_applied_and_undone(given, outcome):
    model, images, _ = given
    live = copy.deepcopy(model)
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    x = images[:50] / 255
    applied = onp.apply(outcome.mask, live, (1, 8, 8))
    pruned = prune(victim_from_module(model, Normalisation.parse("none"), (1, 8, 8)), outcome.mask)
    torch.testing.assert_close(live(x), pruned.model(x))
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
        ({"images": TensorDataset(torch.zeros(3, 1, 8, 8))}, "leave labels out"),
        ({"labels": None}, "There are no labels"),
        ({"class_order": ["a", "a", "b", "c"]}, "names a twice"),
        ({"class_order": ["a", "b", "c"]}, "3 names, and the network 4"),
        ({"expect_acc": 90}, "--expect-acc"),
        ({"device": "cuda:99"}, "The device cuda:99 cannot be used"),
        ({"device": "tpu"}, "The device tpu cannot be used"),
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


def test_labels_in_another_order_are_refused_and_stated(given, small):
    model, images, labels = given
    names = sorted(small.CLASSES)
    alphabetical = torch.tensor([names.index(name) for name in small.CLASSES])[labels]
    with pytest.raises(onp.InputError, match="with the classes in another order"):
        onp.detect(model, images, alphabetical, class_names=names, norm="none", quiet=True)
    run = Run.of(DefendConfig(norm="none", quiet=True))
    case = case_from_memory(Given(model, images, alphabetical, names, small.CLASSES), run)
    assert case.class_names == small.CLASSES and case.images.labels.bincount().tolist() == labels.bincount().tolist()


def test_a_mask_of_another_network_is_refused(given, outcome):
    model, _, _ = given
    with pytest.raises(onp.InputError, match="for another model"):
        onp.apply(onp.Mask(torch.ones(6, dtype=torch.bool), (("first", 6),)), model, (1, 8, 8))
    for shape in ((8, 8), 28):
        with pytest.raises(onp.InputError, match="channels, height and width"):
            onp.apply(outcome.mask, model, shape)
    with pytest.raises(onp.InputError, match="mask is a str"):
        onp.apply("mask.json", model, (1, 8, 8))
