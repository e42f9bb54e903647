"""Checkpoints, masks, configs and networks made to exhaust memory or time, or to raise something else than InputError."""

from __future__ import annotations

import json
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.tiny_networks import NORM, SHAPE, Tiny, load, refused, state
from safetensors.torch import save_file
from torch import nn

from onp.errors import InputError
from onp.model.checkpoint import load_into, read_checkpoint
from onp.model.hub_config import read_config
from onp.model.state_dicts import ENTRIES
from onp.model.victim import victim_from_module


def sentence(call, *arguments) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and message.isprintable()
    return message


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def rewritten(path: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> Path:
    """The zip file at `path` with other contents of members, by the end of their names."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, changed.get(name.rpartition("/")[2].partition(".")[0], content))
    return path


def test_tensors_larger_than_their_storage(tmp_path):
    stored = {**state(), "extra": torch.zeros(1).expand(65536, 49152)}
    assert "larger than what is stored of them (extra)" in sentence(read_checkpoint, saved(tmp_path / "a.pt", stored))
    shared = torch.zeros(1000, 10)
    stored = {**state(), **{f"extra{i}": shared for i in range(100)}}
    assert "under many names" in sentence(read_checkpoint, saved(tmp_path / "b.pt", stored))
    tied = {**state(), "tied": state()["0.weight"]}
    assert read_checkpoint(saved(tmp_path / "c.pt", tied)).state["tied"].dim() == 4


def test_names_of_tensors(tmp_path):
    assert "more than 1000 characters" in sentence(
        read_checkpoint, saved(tmp_path / "a.pt", {**state(), "." * 200_000: torch.ones(1)})
    )
    save_file({"." * 200_000: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    assert "more than 1000 characters" in sentence(read_checkpoint, tmp_path / "a.safetensors")
    named = {**state(), "a\x1b]0;title\x07\nb\u202e": torch.ones(1)}
    assert "\\x1b]0;title\\x07\\nb\\u202e" in refused(saved(tmp_path / "b.pt", named))


def test_dicts_that_are_one(tmp_path):
    content: object = {"a": 1}
    for _ in range(3):
        content = {str(key): content for key in range(300)}
    assert str(ENTRIES) in sentence(read_checkpoint, saved(tmp_path / "a.pt", content))


def test_compressed_archives(tmp_path):
    path = rewritten(saved(tmp_path / "a.pt", {"x": torch.zeros(1000, 1000)}), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000 and "compressed zip file" in sentence(read_checkpoint, path)


def exported(path: Path) -> Path:
    torch.export.save(torch.export.export(Tiny().eval(), (torch.zeros(2, *SHAPE),)), path)
    return path


def test_compressed_programs(tmp_path):
    path = rewritten(exported(tmp_path / "a.pt2"), zipfile.ZIP_DEFLATED)
    assert "compressed zip file" in sentence(read_checkpoint, path)


def test_expanded_weights_of_a_program(tmp_path):
    path = exported(tmp_path / "a.pt2")
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("model_weights_config.json"))
        config = json.loads(archive.read(name))
    entry = next(entry for entry in config["config"].values() if len(entry["tensor_meta"]["sizes"]) == 4)
    entry["tensor_meta"]["strides"] = [{"as_int": 0}] * 4
    entry["tensor_meta"]["sizes"] = [{"as_int": 60_000}] * 4
    rewritten(path, model_weights_config=json.dumps(config).encode())
    assert "repeats a few stored numbers" in sentence(read_checkpoint, path)


def test_a_program_without_inputs(tmp_path):
    path = exported(tmp_path / "a.pt2")
    with zipfile.ZipFile(path) as archive:
        program = json.loads(archive.read(next(name for name in archive.namelist() if name.endswith("models/model.json"))))
    for call in program["graph_module"]["module_call_graph"]:
        if call["signature"] is not None:
            call["signature"]["in_spec"] = ""
    rewritten(path, model=json.dumps(program).encode())
    with pytest.raises(InputError) as error:
        load(path, None)
    assert "\n" not in str(error.value)


def test_odd_zip_directories(tmp_path):
    path = saved(tmp_path / "a.pt", state())
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    for at, value, name in ((entry + 6, 99, "version.pt"), (entry + 46, 0xFF, "name.pt")):
        damaged = bytearray(content)
        damaged[entry + 8 : entry + 10] = (0x800).to_bytes(2, "little")  # names in UTF-8
        damaged[at] = value
        (tmp_path / name).write_bytes(damaged)
        assert "cut off or damaged" in sentence(read_checkpoint, tmp_path / name)


def test_weights_of_another_type(tmp_path):
    stored = {**state(), "0.weight": state()["0.weight"].to(torch.int8)}
    assert "save them in the network's types" in refused(saved(tmp_path / "a.pt", stored))


def test_devices_and_paths(tmp_path):
    assert "device or pipe" in sentence(read_checkpoint, Path("/dev/zero"))
    assert "cannot be used" in sentence(read_checkpoint, tmp_path / ("a" * 300))


HUB = {"architecture": "tiny", "num_classes": 4}


@pytest.mark.parametrize(
    "config",
    [
        HUB | {"num_classes": 10**11, "label_names": {"0": "a"}},
        HUB | {"input_size": [3]},
        HUB | {"num_classes": float("inf")},
        HUB | {"num_classes": 10**400},
        HUB | {"architecture": "a\x1b[31m/b"},
        {"model_type": "vit", "num_channels": float("inf")},
    ],
)
def test_configs(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert sentence(read_config, tmp_path / "config.json")


def test_preprocessing_that_divides_by_zero(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"rescale_factor": 0, "image_mean": [0], "image_std": [1]}))
    assert sentence(read_config, tmp_path / "config.json")


class Head(Tiny):
    """Tiny with something done to its logits."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


class Uncopyable(Tiny):
    def __deepcopy__(self, memo):
        raise OSError("no copies")


def ends(_logits):
    raise SystemExit(3)


@pytest.mark.parametrize(
    "network",
    [
        Head(lambda logits: logits.to(torch.complex64)),
        Head(lambda logits: (100 * logits).long()),
        Head(ends),
        Uncopyable(),
    ],
)
def test_networks_of_ones_own(network):
    assert sentence(victim_from_module, network, NORM, SHAPE)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_layers_without_sizes(tmp_path):
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))
    checkpoint = read_checkpoint(saved(tmp_path / "a.pt", state()))
    assert "sizes are not known yet" in sentence(load_into, network, checkpoint, "module:net")


def test_a_callable_that_ends_the_program(tmp_path, monkeypatch):
    module = types.ModuleType("ending_module")
    module.network = lambda: sys.exit(3)
    monkeypatch.setitem(sys.modules, "ending_module", module)
    assert "failed (SystemExit: 3)" in refused(saved(tmp_path / "a.pt", state()), "ending_module:network")


def test_no_space_for_the_export(monkeypatch):
    def no_space(*_arguments, **_options):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(torch.export, "export", no_space)
    assert "free some space" in sentence(victim_from_module, Tiny(), NORM, SHAPE)
