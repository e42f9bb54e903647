"""Mask files: what is written comes back, reads well, and only fits the model it was made for."""

import dataclasses
import json
import types

import pytest
import torch

from onp.errors import InputError
from onp.model.mask import Mask, load_mask

LAYERS = (("stem", 4), ("layer1.0.conv1", 7), ("head.0", 1))


def victim(layers=LAYERS):
    return types.SimpleNamespace(
        layers=[types.SimpleNamespace(name=name, units=units) for name, units in layers],
        units=sum(units for _, units in layers),
    )


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_round_trip(tmp_path, density):
    mask = Mask.of(victim(), torch.rand(12) < density)
    mask.save(tmp_path / "mask.json")
    loaded = load_mask(tmp_path / "mask.json", victim())
    assert loaded.layers == mask.layers == LAYERS
    assert torch.equal(loaded.keep, mask.keep)
    assert [file.name for file in tmp_path.iterdir()] == ["mask.json"]


def test_layers_and_pruned_agree_with_the_flat_mask():
    keep = torch.tensor([1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    mask = Mask.of(victim(), keep)
    assert mask.pruned() == {"layer1.0.conv1": [0, 3], "head.0": [0]}
    assert torch.equal(torch.cat(list(mask.by_layer().values())), keep)
    assert torch.equal(Mask.from_pruned(LAYERS, mask.pruned()).keep, keep)
    assert Mask.of(victim()).keep.all()


def test_json_names_the_units_of_each_layer(tmp_path):
    Mask.from_pruned(LAYERS, {"stem": [3, 1]}).save(tmp_path / "mask.json")
    document = json.loads((tmp_path / "mask.json").read_text())
    assert (document["format"], document["version"]) == ("onp-mask", 1)
    assert (document["units"], document["pruned_units"]) == (12, 2)
    assert document["layers"][0] == {"name": "stem", "units": 4, "pruned": [1, 3]}
    assert [row["name"] for row in document["layers"]] == [name for name, _ in LAYERS]


def test_a_mask_does_not_change_with_the_tensor_it_was_made_from():
    keep = torch.ones(12, dtype=torch.bool)
    mask = Mask.of(victim(), keep)
    keep[0] = False
    assert mask.keep.all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        mask.layers = ()


def test_a_keep_of_the_wrong_kind_is_a_programming_error():
    for keep in (torch.ones(12), torch.ones(11, dtype=torch.bool), torch.ones(1, 12, dtype=torch.bool)):
        with pytest.raises(ValueError, match="keep must be bool"):
            Mask.of(victim(), keep)


@pytest.mark.parametrize(
    "layers",
    [LAYERS[:2], (*LAYERS, ("more", 2)), (("stem", 5), *LAYERS[1:]), (("other", 4), *LAYERS[1:]), LAYERS[::-1]],
)
def test_a_mask_of_another_model_is_refused(tmp_path, layers):
    Mask.of(victim()).save(tmp_path / "mask.json")
    with pytest.raises(InputError, match="for another model"):
        load_mask(tmp_path / "mask.json", victim(layers))


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"units": 11},
        {"pruned_units": 3},
        {"layers": [{"name": "stem", "units": 4, "pruned": [4]}]},
        {"layers": [{"name": "stem", "units": 4, "pruned": [-1]}]},
        {"layers": [{"name": "stem", "units": 4, "pruned": [True]}]},
        {"layers": [{"name": "stem", "pruned": []}]},
        {"layers": None},
        {"layers": [{"name": "stem", "units": 2**32, "pruned": []}], "units": 2**32, "pruned_units": 0},
        {"layers": [{"name": "stem", "units": -1, "pruned": []}]},
    ],
)
def test_bad_json_is_refused(tmp_path, change):
    path = tmp_path / "mask.json"
    document = json.loads(Mask.of(victim()).to_json())
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(InputError):
        load_mask(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no mask"):
        load_mask(tmp_path / "nothing.json")
    for name, content in {"a.json": b"{", "b.json": b"[]", "c.json": b"PK", "d.json": b"\xff\xfe\x00"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="not a mask"):
            load_mask(tmp_path / name)
