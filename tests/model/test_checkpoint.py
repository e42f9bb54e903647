"""Untrusted files: what is read, what is refused and with which words, and that nothing in them runs."""

import collections
import os
import pickle
import re
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from helpers.tiny_networks import Bomb, Tiny, Wrapper, check_saved, half_mask, load, refused, state
from safetensors.torch import load_file, save_file
from torch import nn

from onp.errors import InputError
from onp.model.arch_spec import network_for, torchvision_command
from onp.model.checkpoint import read_checkpoint
from onp.model.prune import prune, save_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_round_trip(tmp_path, dtype):
    stored = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state().items()}
    save_file(stored, tmp_path / "a.safetensors", metadata={"author": "someone"})
    victim = load(tmp_path / "a.safetensors")
    assert next(victim.model.parameters()).dtype == torch.float32
    mask = half_mask(victim)
    save_checkpoint(prune(victim, mask), tmp_path / "b.safetensors")
    assert read_checkpoint(tmp_path / "b.safetensors").metadata == {"author": "someone"}
    after = load_file(tmp_path / "b.safetensors")
    check_saved(victim, mask, dict(sorted(stored.items())), dict(sorted(after.items())))


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        *((None, ""), (None, "module."), ("state_dict", "module.")),
        *(("model", ""), ("net", "_orig_mod."), ("model_state_dict", "")),
    ],
)
def test_torch_round_trip(tmp_path, key, prefix):
    stored = collections.OrderedDict((prefix + name, tensor) for name, tensor in state().items())
    stored._metadata = {"": {"version": 1}}
    optimiser = {"lr": 0.1, "steps": [torch.arange(3)]}
    content = stored if key is None else {"epoch": 7, "optimizer": optimiser, key: stored}
    torch.save(content, tmp_path / "a.pth")
    victim = load(tmp_path / "a.pth")
    mask = half_mask(victim)
    save_checkpoint(prune(victim, mask), tmp_path / "b.pth")
    after = torch.load(tmp_path / "b.pth", weights_only=True)
    if key is not None:
        assert after["epoch"] == 7
        assert torch.equal(after["optimizer"]["steps"][0], torch.arange(3))
        after = after[key]
    assert type(after) is collections.OrderedDict
    assert after._metadata == stored._metadata
    assert all(name.startswith(prefix) for name in after)
    check_saved(victim, mask, state_of(stored, prefix), state_of(after, prefix))


def state_of(stored, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items()}


def test_a_backdoorbench_attack_result(tmp_path):
    """Its keys, arrays and scalars, without its images."""
    indicator, index = np.array([0.0, 1.0]), np.arange(2)
    images = {np.int64(1): {"path": "record/x/bd_test_dataset/3/1.png", "other_info": [np.int64(0), 3]}}
    container = {"save_folder_path": "record/x/bd_test_dataset", "data_dict": images, "save_file_format": ".png"}
    bd_test = {"bd_data_container": container, "original_index_array": index, "poison_indicator": indicator}
    stored = {"model_name": "tiny", "num_classes": 5, "model": state(), "img_size": [10, 10, 3], "bd_test": bd_test}
    torch.save(stored, tmp_path / "attack_result.pt")
    victim = load(tmp_path / "attack_result.pt")
    mask = half_mask(victim)
    save_checkpoint(prune(victim, mask), tmp_path / "b.pt")
    again = torch.load(tmp_path / "b.pt", weights_only=False)
    check_saved(victim, mask, stored["model"], again["model"])
    assert (again["bd_test"]["poison_indicator"] == indicator).all() and again["num_classes"] == 5
    (label,) = again["bd_test"]["bd_data_container"]["data_dict"]
    assert type(label) is np.int64 and label == 1


def test_arrays_of_objects_are_refused(tmp_path):
    proof = tmp_path / "the_code_ran"
    for name, array in (("a.pt", np.array([Bomb(proof)], dtype=object)), ("b.pt", np.array([{}], dtype=object))):
        torch.save({"model": state(), "extra": array}, tmp_path / name)
        assert "can run code" in refused(tmp_path / name)
    assert not proof.exists()


def test_a_network_with_a_child_called_module(tmp_path):
    torch.save(Wrapper().state_dict(), tmp_path / "plain.pt")
    victim = load(tmp_path / "plain.pt", "helpers.tiny_networks:Wrapper")
    assert victim.checkpoint.stored_as["module.0.weight"] == "module.0.weight"
    torch.save({"module." + name: t for name, t in Wrapper().state_dict().items()}, tmp_path / "parallel.pt")
    victim = load(tmp_path / "parallel.pt", "helpers.tiny_networks:Wrapper")
    assert victim.checkpoint.stored_as["module.0.weight"] == "module.module.0.weight"
    assert victim.layers[0].weight.startswith("module.")


def test_further_copies_of_the_weights_are_repaired_too(tmp_path):
    """As timm and torchvision keep a moving average beside the weights, which their loaders prefer."""
    averaged = {f"module.{name}": tensor + 1 for name, tensor in state().items()} | {"n_averaged": torch.tensor(3)}
    half = {name: tensor.half() for name, tensor in state().items()}
    content = {"epoch": 7, "state_dict": state(), "ema": {"half": half}, "model_ema": averaged}
    torch.save(content, tmp_path / "a.pth")
    victim = load(tmp_path / "a.pth")
    assert [str(each) for each in victim.checkpoint.copies] == ["ema/half", "model_ema"]
    mask = half_mask(victim)
    save_checkpoint(prune(victim, mask), tmp_path / "b.pth")
    after = torch.load(tmp_path / "b.pth", weights_only=True)
    check_saved(victim, mask, content["state_dict"], after["state_dict"])
    assert after["epoch"] == 7 and int(after["model_ema"]["n_averaged"]) == 3
    for name, tensor in after["state_dict"].items():
        assert torch.equal(after["model_ema"][f"module.{name}"], tensor)
        half = after["ema"]["half"][name]
        assert half.dtype == torch.float16 and torch.equal(half, tensor.half())
    asked = load(f"{tmp_path / 'a.pth'}::model_ema")
    assert torch.equal(asked.checkpoint.state["0.weight"], averaged["module.0.weight"])
    assert [str(each) for each in asked.checkpoint.copies] == ["state_dict", "ema/half"]
    assert read_checkpoint(tmp_path / "a.pth").to_bytes() != b""  # nothing was edited, so no copy is looked for


def test_copies_side_by_side_in_one_dict(tmp_path):
    both = {"model." + name: tensor for name, tensor in state().items()}
    both |= {"ema_model." + name: tensor + 1 for name, tensor in state().items()}
    save_file(both, tmp_path / "a.safetensors")
    victim = load(tmp_path / "a.safetensors")
    assert [str(each) for each in victim.checkpoint.copies] == ["ema_model.*"]
    save_checkpoint(prune(victim, half_mask(victim)), tmp_path / "b.safetensors")
    after = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(after[f"model.{name}"], after[f"ema_model.{name}"]) for name in state())
    assert after.keys() == both.keys()


@pytest.mark.parametrize("prefix", ["backbone.", "network.", "module.module.", "model.module."])
def test_whatever_stands_before_the_names(tmp_path, prefix):
    """Lightning modules hold the network under a name of their own, and other things beside it."""
    stored = {prefix + name: tensor for name, tensor in state().items()} | {"criterion.weight": torch.ones(5)}
    torch.save({"state_dict": stored, "epoch": 3}, tmp_path / "a.ckpt")
    victim = load(tmp_path / "a.ckpt")
    mask = half_mask(victim)
    save_checkpoint(prune(victim, mask), tmp_path / "b.ckpt")
    after = torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(after.pop("criterion.weight"), stored.pop("criterion.weight"))
    check_saved(victim, mask, state_of(stored, prefix), state_of(after, prefix))


def test_which_weights_are_meant(tmp_path):
    torch.save({**state(), "epoch": 5}, tmp_path / "beside.pt")
    assert load(tmp_path / "beside.pt").units > 0
    torch.save({"checkpoint": {"student": state(), "lr": 0.1}, "epoch": 5}, tmp_path / "deep.pt")
    assert load(tmp_path / "deep.pt").checkpoint.place == ("checkpoint", "student")
    torch.save({"teacher": state(), "student": state()}, tmp_path / "two.pt")
    assert f"choose with --model {tmp_path / 'two.pt'}::teacher" in refused(tmp_path / "two.pt")
    assert load(f"{tmp_path / 'two.pt'}::student").checkpoint.place == ("student",)
    assert "no weights under pupil; it has teacher, student" in refused(f"{tmp_path / 'two.pt'}::pupil")
    save_file(state(), tmp_path / "one.safetensors")
    assert "leave out ::x" in refused(f"{tmp_path / 'one.safetensors'}::x")
    torch.save({}, tmp_path / "empty.pt")
    assert "its entries are none" in refused(tmp_path / "empty.pt")


def test_original_is_never_overwritten_and_nothing_half_written_remains(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(state(), path)
    before = path.read_bytes()
    victim = load(path)
    repaired = prune(victim, half_mask(victim))
    os.link(path, tmp_path / "other_name.safetensors")
    (tmp_path / "sub").mkdir()
    for target in (path, tmp_path / "other_name.safetensors", tmp_path / "sub" / ".." / "a.safetensors"):
        with pytest.raises(InputError):
            save_checkpoint(repaired, target)
    assert path.read_bytes() == before

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(repaired, tmp_path / "b.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "other_name.safetensors", "sub"]


def test_missing_file_and_directory(tmp_path):
    assert "no checkpoint" in refused(tmp_path / "nothing.pt")
    assert "without a config.json" in refused(tmp_path)


def test_not_a_checkpoint(tmp_path):
    for name, content in {"a.pt": b"", "b.pt": b"hello world, this is text", "c.safetensors": os.urandom(64)}.items():
        (tmp_path / name).write_bytes(content)
        assert re.search("not a checkpoint|not a complete safetensors", refused(tmp_path / name))
    torch.save([1, 2, 3], tmp_path / "list.pt")
    assert "holds a list" in refused(tmp_path / "list.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "dict.pt")
    assert "epoch, lr" in refused(tmp_path / "dict.pt")
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("cat.txt", "meow")
    assert "damaged torch file" in refused(tmp_path / "photos.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors"])
@pytest.mark.parametrize("write", ["zip", "legacy", "pickle", "in_state_dict"])
def test_a_pickle_does_not_run(tmp_path, name, write):
    proof = tmp_path / "the_code_ran"
    bomb = Bomb(proof)
    if write == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(bomb))
    elif write == "in_state_dict":
        torch.save({"state_dict": state(), "note": bomb}, tmp_path / name)
    else:
        torch.save(bomb, tmp_path / name, _use_new_zipfile_serialization=write == "zip")
    assert not proof.exists()
    message = refused(tmp_path / name)
    assert not proof.exists()
    if not name.endswith("safetensors"):
        assert "pickled Python objects" in message
        assert "torch.save(model.state_dict()" in message
    pickle.loads(pickle.dumps(bomb)).close()
    assert proof.exists()  # the bomb itself works


def test_a_whole_model_is_refused_with_the_way_to_convert_it(tmp_path):
    torch.save(Tiny(), tmp_path / "model.pt")
    assert "torch.save(model.state_dict(), 'weights.pt')" in refused(tmp_path / "model.pt")


def test_truncated_files(tmp_path):
    save_file(state(), tmp_path / "a.safetensors")
    torch.save(state(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        assert re.search("not a complete safetensors file|cut off", refused(path))
    (tmp_path / "b.pt").write_bytes(whole[:-400] + whole[-350:])
    assert "damaged" in refused(tmp_path / "b.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_numbers(tmp_path, value):
    stored = state()
    names = [name for name, tensor in stored.items() if tensor.is_floating_point()]
    for name in names[2:8]:
        stored[name].view(-1)[0] = value
    save_file(stored, tmp_path / "a.safetensors")
    message = refused(tmp_path / "a.safetensors")
    assert "NaN or infinite" in message
    assert f"{sorted(names[2:8])[0]}, " in message or names[2] in message
    assert "and 3 more" in message


def test_tensors_that_do_not_fit(tmp_path):
    stored = state()
    names = list(stored)
    torch.save({name: t for name, t in stored.items() if name != names[0]}, tmp_path / "missing.pt")
    assert f"tensors missing: 1 ({names[0]})" in refused(tmp_path / "missing.pt")
    torch.save({**stored, "extra.weight": torch.ones(3)}, tmp_path / "extra.pt")
    assert "unknown to the network: 1 (extra.weight)" in refused(tmp_path / "extra.pt")
    message = refused_with(tmp_path, state("vgg11_bn:width=4,classes=5"), "vgg11_bn:width=8,classes=5")
    assert "of another shape or type: 49 (features.0.weight is [4, 3, 3, 3] in the file and [8, 3, 3, 3] in " in message
    assert "more" in message
    torch.save({**stored, names[0]: stored[names[0]].to(torch.int8)}, tmp_path / "int.pt")
    assert "int8" in refused(tmp_path / "int.pt")
    torch.save({**stored, names[0]: stored[names[0]].to_sparse()}, tmp_path / "sparse.pt")
    assert "sparse" in refused(tmp_path / "sparse.pt")


def refused_with(tmp_path, stored, arch):
    save_file(stored, tmp_path / "stored.safetensors")
    return refused(tmp_path / "stored.safetensors", arch)


def test_old_checkpoints_without_batch_counters_load(tmp_path):
    torch.save({name: t for name, t in state().items() if "num_batches" not in name}, tmp_path / "old.pt")
    assert load(tmp_path / "old.pt").classes == 5


def test_architectures(tmp_path, monkeypatch):
    stored = state()
    assert "There is no built-in network 'vgg99'" in refused_with(tmp_path, stored, "vgg99")
    assert "There is no built-in network 'vgg99'" in refused_with(tmp_path, stored, "vgg99:width=3")
    assert "is not an option" in refused_with(tmp_path, stored, "vgg11_bn:width")
    assert "is not an option of vgg11_bn" in refused_with(tmp_path, stored, "vgg11_bn:depth=3")
    assert "cannot be imported" in refused_with(tmp_path, stored, "no.such.package:Net")
    assert "cannot be imported" in refused_with(tmp_path, stored, "collections:NoSuchName")
    assert "not a function" in refused_with(tmp_path, stored, "string:digits")
    assert "not a torch.nn.Module" in refused_with(tmp_path, stored, "collections:OrderedDict")
    assert "failed (TypeError" in refused_with(tmp_path, stored, "torch.nn:Linear")
    assert "--arch" in refused_with(tmp_path, stored, None)
    (tmp_path / "my_nets.py").write_text("from helpers.tiny_networks import Tiny as net")
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "stored.safetensors", "my_nets:net").classes == 5
    (tmp_path / "own").mkdir()
    (tmp_path / "my_nets.py").rename(tmp_path / "own" / "other_nets.py")
    for spec in ("own/other_nets:net", "./own/other_nets.py:net", f"{tmp_path}/own/other_nets.py:net"):
        assert load(tmp_path / "stored.safetensors", spec).classes == 5
    assert "no own/other_net.py in the folder where you run" in refused_with(tmp_path, stored, "own/other_net:net")
    assert not {str(tmp_path), str(tmp_path / "own")} & set(sys.path)
    for name in ("my_nets", "own", "own.other_nets", "other_nets"):
        sys.modules.pop(name)


def test_missing_packages_and_the_number_of_classes(monkeypatch):
    for package, module in (("timm", "timm"), ("torchvision", "torchvision.models")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=f"pip install .*{package}"):
            network_for(f"{package}:resnet18", {})

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    with monkeypatch.context() as patched:
        patched.setattr("onp.model.arch_spec.importlib.import_module", broken)
        with pytest.raises(InputError, match=r"timm is installed but cannot be imported .*nms.* torchvision==0\.\d+\.\d"):
            network_for("timm:resnet18", {})
    cpu = "pip install --no-deps --force-reinstall torchvision==0.28.0+cpu --index-url INDEX"
    assert torchvision_command("2.13.0+cpu").startswith(cpu)
    assert torchvision_command("2.9.1").endswith(" torchvision==0.24.1")
    assert torchvision_command("3.0").endswith(" torchvision")

    def create_model(name, pretrained, in_chans=3, num_classes=1000):
        assert (name, pretrained) == ("tiny", False)
        return nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.Flatten(), nn.Linear(16, num_classes))

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    stored = create_model("tiny", False, 1, 7).state_dict()
    for prefix in ("", "module."):
        network = network_for("timm:tiny", {prefix + name: tensor for name, tensor in stored.items()})
        assert network[2].out_features == 7
        assert network[0].in_channels == 1
