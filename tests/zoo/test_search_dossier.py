"""Search dossiers: what the defence can know and what is true of a network, in a small file that reads back the same."""

import json
import lzma
import math
import shutil
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from helpers import small_backdoor

from onp.data.images import ImageSet
from onp.detect.anomaly import LATENT
from onp.detect.bank import FAMILY_NAMES
from onp.engine.metrics import predictions
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.zoo import knowledge, packed, search_dossier, true_effects, truth
from onp.zoo.config import ZooConfig
from onp.zoo.packed import from_levels, from_log_levels, levels, log_levels, read_packed, write_packed
from onp.zoo.search_dossier import make_search_dossier
from onp.zoo.search_file import STEP, read_search_dossier, search_path, write_search_dossier


class Stamp(small_backdoor.Stamp):
    def goals(self, labels, target, classes):
        return torch.full_like(labels, target)


@cache
def victim():
    return small_backdoor.backdoored().victim


class Network:
    """The tiny victim as a network of a zoo."""

    index = 3

    def __init__(self, clean):
        self.known = not clean
        backdoors = [{"attack": "stamp", "target": 0, "asr": 1.0, "works": True}] if self.known else []
        self.card = {
            "index": 3, "seed": 3, "arch": "tiny", "clean": clean, "after": "none", "acc": 0.9, "backdoors": backdoors,
            "files": ["cifar10=/home/somebody/train.npz"],
        }  # fmt: skip

    def victim(self):
        return victim()

    def clean(self, split):
        return self.images(10 + split, 100)

    def test(self):
        return self.images(1, 360)

    def triggers(self):
        return [(Stamp(), 0)] if self.known else []

    @staticmethod
    def images(seed, count):
        images, labels = small_backdoor.pictures(count, torch.Generator().manual_seed(seed))
        return ImageSet((images * 255).round().byte(), labels, small_backdoor.CLASSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the detection dossiers of three splits: class 1 stands out in the first one, class 0 in the others."""
    folder = tmp_path_factory.mktemp("dossiers")
    for split in range(3):
        costs = [1.0, 1.05, 0.95, 1.0]
        costs[1 if split == 0 else 0] = -2.0
        detectors = {name: costs for name in (*FAMILY_NAMES, LATENT)} | {"warp": [*costs[:3], None]}
        (folder / f"0003-{split}.json").write_text(json.dumps({"detectors": detectors}))
    return folder


def made(entry, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge, "CONFIG", replace(small_backdoor.PRESET.detect, starts=1))
        patch.setattr(truth, "EFFECT_CLEAN", 60)
        patch.setattr(true_effects, "MOST_EVALUATIONS", 120)
        return make_search_dossier(entry, folder)


@pytest.fixture(scope="module")
def dossier(one_thread, folder):
    return made(Network(clean=False), folder)


@pytest.fixture(scope="module")
def back(dossier, folder):
    path = search_path(folder, 3)
    assert write_search_dossier(path, dossier) == path.stat().st_size < 40_000
    return read_search_dossier(path)


def test_best_mask_removes_the_backdoor_on_images_that_it_was_not_searched_on(dossier):
    (backdoor,), masks = dossier.truth.backdoors, dossier.truth.masks
    assert masks.images[0] > 120 and len(masks.keep) > 60
    assert masks.asr[0, 0] > 0.9 and masks.asr[1 + backdoor.best, 0] < 0.2
    assert masks.acc[0] - masks.acc[1 + backdoor.best] < 0.05


def test_units_effects_are_those_of_the_pruned_network(dossier):
    entry, effects = Network(clean=False), dossier.truth.effects
    network, unit = entry.victim(), int(effects.asr[0].argmax())
    keep = torch.ones(network.units, dtype=torch.bool)
    keep[unit] = False
    images = truth.true_images(network, entry.test().subset(range(180)), [truth.TrueBackdoor("stamp", Stamp(), 0)], 100, 60)
    lost = []
    for model in (network.model, prune(network, Mask.of(network, keep)).model):
        right = predictions(model, images.clean.images) == images.clean.labels
        led = predictions(model, images.triggered[0].images) == 0
        lost.append(torch.stack((right[: effects.images[0]].sum(), led.sum())))
    assert effects.measured.all() and effects.images == (100, 60)
    assert effects.hits[:, unit].tolist() == (lost[0] - lost[1]).tolist()
    assert effects.asr[0, unit] > 0.01


def test_trigger_activated_change_is_that_of_the_activations():
    network = victim()
    plain, _ = small_backdoor.pictures(6, torch.Generator().manual_seed(2))
    change, std = truth.trigger_activated_change(network, plain, small_backdoor.stamp(plain))
    before, after = (network.model[:3](images) for images in (plain, small_backdoor.stamp(plain)))
    torch.testing.assert_close(change[:16], (after - before).square().mean((2, 3)).sqrt().mean(0))
    torch.testing.assert_close(std[:16], before.movedim(1, 0).flatten(1).std(1, correction=0))


def test_each_split_knows_the_true_target_and_the_class_that_detection_names(dossier):
    known = [(one.split, one.target, one.named) for one in dossier.knowledge]
    assert known == [(0, 0, False), (0, 1, True), (1, 0, True), (2, 0, True)]
    for one in dossier.knowledge:
        assert sum(row.weight for row in one.bank) == pytest.approx(1)
        assert one.scores["asr"].shape == (1 + len(one.masks), len(one.bank))
        assert math.isnan(one.log_costs["warp"][3]) and one.log_costs[LATENT][0 if one.split else 1] == -2.0
    assert set(dossier.knowledge[0].masks.tolist()) != set(dossier.knowledge[2].masks.tolist())


def test_what_was_written_reads_back(dossier, back):
    assert back.card == dossier.card and "files" not in back.card
    assert [(layer.name, layer.units, layer.offset) for layer in back.layers] == [
        (layer.name, layer.units, layer.offset) for layer in dossier.layers
    ]
    before, after = dossier.truth, back.truth
    assert torch.equal(before.masks.keep, after.masks.keep) and torch.equal(before.effects.hits, after.effects.hits)
    for name in ("acc_count", "asr_count", "target_count"):
        assert torch.equal(getattr(before.masks, name), getattr(after.masks, name))
    torch.testing.assert_close(after.masks.asr_soft, before.masks.asr_soft, atol=2e-4, rtol=0)
    torch.testing.assert_close(after.backdoors[0].tac, before.backdoors[0].tac, atol=1e-4, rtol=0.08)
    assert after.backdoors[0].best == before.backdoors[0].best
    for relation, graph in dossier.graphs.items():
        order = torch.argsort(graph.csr.targets() * graph.nodes + graph.indices)
        assert torch.equal(back.graphs[relation].indptr, graph.indptr)
        assert torch.equal(back.graphs[relation].indices, graph.indices[order])
        torch.testing.assert_close(back.graphs[relation].weight, graph.weight[order], atol=0.05, rtol=0.1)


def test_features_read_back_within_a_step(dossier, back):
    for one, other in zip(dossier.knowledge, back.knowledge, strict=True):
        assert (other.split, other.target, other.bank) == (one.split, one.target, one.bank)
        assert repr(other.log_costs) == repr(one.log_costs)
        assert other.features.names == one.features.names
        for name in one.features.names:
            error = (one.features.column(name) - other.features.column(name)).abs().max()
            # Made of stored attributions, whose error grows with their size.
            assert error < (0.6 if "attribution" in name or name in ("taylor", "backdoor_score", "bn_shift") else STEP), name


def test_a_clean_network_has_masks_but_no_attack(one_thread, folder, tmp_path):
    shutil.copy(folder / "0003-0.json", tmp_path)
    dossier = made(Network(clean=True), tmp_path)
    path = search_path(tmp_path, 4)
    write_search_dossier(path, dossier)
    back = read_search_dossier(path)
    assert back.truth.backdoors == () and back.truth.masks.asr_count.shape == (1 + len(back.truth.masks.keep), 0)
    found = [(one.split, one.target) for one in back.knowledge]
    assert found == [(0, 1), (1, 1), (2, 1)], "the first split's detection serves splits without their own"
    assert len(back.truth.masks.keep) > 60 and back.truth.effects.acc.any()


def test_a_dossier_is_made_once(back, folder, monkeypatch):
    monkeypatch.setattr(search_dossier, "make_search_dossier", None)
    found = search_dossier.search_dossier(Network(clean=False), folder)
    assert found["backdoors"][0]["asr"] > 0.9 > 0.2 > found["backdoors"][0]["best_asr"] and found["bytes"] < 40_000


@pytest.mark.parametrize("damage", ["cut", "other", "version", "edges"])
def test_a_damaged_dossier_is_named(back, folder, tmp_path, damage):
    path = tmp_path / "0003.search.xz"
    content = search_path(folder, 3).read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "other":
        path.write_bytes(lzma.compress(b"some text"))
    else:
        document, arrays = read_packed(search_path(folder, 3))
        document |= {"version": 99} if damage == "version" else {}
        arrays["graph.feeds.sources.high"] += 8 * (damage == "edges")
        write_packed(path, document, arrays)
    with pytest.raises(InputError, match=r"0003|make it again"):
        read_search_dossier(path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "MOST_UNPACKED", 1000)
    path = tmp_path / "large.xz"
    path.write_bytes(lzma.compress(bytes(1001)))
    with pytest.raises(InputError, match="damaged"):
        read_packed(path)


def test_numbers_in_eight_bits():
    values = torch.tensor([0.0, 0.013, -1.0, 6.0, 100.0, float("nan")])
    assert from_levels(levels(values, 0.05), 0.05).tolist() == pytest.approx([0, 0, -1.0, 6.0, 6.35, 0], abs=0.026)
    values = torch.tensor([0.0, 1e-7, 1e-4, -0.3, 7.0, float("nan")])
    back = from_log_levels(log_levels(values, 1e-6, 1.0), 1e-6, 1.0)
    assert back.tolist() == pytest.approx([0, 0, 1e-4, -0.3, 1.0, 0], rel=0.06, abs=2e-7)


def test_only_the_missing_dossiers_are_made_and_a_failure_stops_no_other(tmp_path, monkeypatch, capsys):
    search_path(tmp_path / "dossiers", 1).parent.mkdir()
    search_path(tmp_path / "dossiers", 1).touch()
    done = []

    def one(entry, folder):
        if entry.index == 2:
            raise InputError("Its weights are gone.")
        done.append(search_path(folder, entry.index).name)

    monkeypatch.setattr(search_dossier, "search_dossier", one)
    monkeypatch.setattr(search_dossier, "read_zoo", lambda out: [SimpleNamespace(index=index) for index in range(5)])
    assert search_dossier.measure_search(ZooConfig(out=str(tmp_path), count=4, workers=0)) == 1
    assert done == ["0000.search.xz", "0003.search.xz"]
    assert "network 2 failed: InputError: Its weights are gone." in capsys.readouterr().err
