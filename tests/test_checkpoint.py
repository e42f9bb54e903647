"""Untrusted files: what is read, what is refused and with which words, and that nothing in them runs."""

import collections
import contextlib
import io
import json
import os
import pickle
import re
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onp import pt2
from onp.archs import build_network
from onp.checkpoint import read_checkpoint
from onp.data import Normalisation
from onp.errors import InputError
from onp.mask import Mask
from onp.networks import network_for
from onp.repair import repair, save_checkpoint
from onp.victim import load_victim

ARCH = "tiny_networks:Tiny"
NORM = Normalisation.parse("half")
SHAPE = (3, 10, 10)


class Tiny(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        )


class Wrapper(nn.Module):
    """All names of its own state dict start like those of DataParallel."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Tiny()

    def forward(self, x):
        return self.module(x)


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    """The networks of this file as an importable module."""
    module = types.ModuleType("tiny_networks")
    module.Tiny, module.Wrapper = Tiny, Wrapper
    monkeypatch.setitem(sys.modules, "tiny_networks", module)


def state(arch: str | None = None) -> dict[str, torch.Tensor]:
    return (build_network(arch) if arch else Tiny()).state_dict()


def load(path, arch=ARCH):
    return load_victim(path, arch, NORM, SHAPE)


def refused(path, arch=ARCH) -> str:
    with pytest.raises(InputError) as error:
        load(path, arch)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, dtype included."""
    if a.dtype == torch.bfloat16:
        a, b = a.view(torch.int16), b.view(torch.int16)
    a, b = a.detach(), b.detach()
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def half_mask(victim) -> Mask:
    keep = torch.rand(victim.units) < 0.5
    keep[0] = False
    return Mask.of(victim, keep)


def check_saved(victim, mask, before: dict, after: dict) -> None:
    """`after` is `before` with the pruned rows zero and every other bit as it was; it computes what repair() does."""
    assert list(before) == list(after)
    expected = {name: tensor.clone() for name, tensor in before.items()}
    for layer, view in zip(victim.layers, mask.views().values(), strict=True):
        for key in (layer.weight, layer.bias, *layer.norm):
            if key is not None:
                expected[key][~view] = 0
    assert any(not same(expected[name], before[name]) for name in before)
    assert all(same(after[name], expected[name]) for name in before)
    network = Tiny().eval()
    network.load_state_dict(after)
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(repair(victim, mask).logits(images), network(NORM(images)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_round_trip(tmp_path, dtype):
    stored = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state().items()}
    save_file(stored, tmp_path / "a.safetensors", metadata={"author": "someone"})
    victim = load(tmp_path / "a.safetensors")
    assert next(victim.model.parameters()).dtype == torch.float32
    mask = half_mask(victim)
    save_checkpoint(repair(victim, mask), tmp_path / "b.safetensors")
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
    save_checkpoint(repair(victim, mask), tmp_path / "b.pth")
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


def test_a_network_with_a_child_called_module(tmp_path):
    torch.save(Wrapper().state_dict(), tmp_path / "plain.pt")
    assert load(tmp_path / "plain.pt", "tiny_networks:Wrapper").checkpoint.prefix == ""
    torch.save({"module." + name: t for name, t in Wrapper().state_dict().items()}, tmp_path / "parallel.pt")
    victim = load(tmp_path / "parallel.pt", "tiny_networks:Wrapper")
    assert victim.checkpoint.prefix == "module."
    assert victim.layers[0].weight.startswith("module.")


def test_original_is_never_overwritten_and_nothing_half_written_remains(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(state(), path)
    before = path.read_bytes()
    victim = load(path)
    repaired = repair(victim, half_mask(victim))
    os.link(path, tmp_path / "other_name.safetensors")
    for target in (path, tmp_path / "other_name.safetensors", tmp_path / "sub" / ".." / "a.safetensors"):
        with pytest.raises(InputError):
            save_checkpoint(repaired, target)
    assert path.read_bytes() == before

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(repaired, tmp_path / "b.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "other_name.safetensors"]


def test_missing_file_and_directory(tmp_path):
    assert "no checkpoint" in refused(tmp_path / "nothing.pt")
    assert "is a directory" in refused(tmp_path)


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


class Bomb:
    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


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
    (tmp_path / "my_nets.py").write_text("from tiny_networks import Tiny as net")
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "stored.safetensors", "my_nets:net").classes == 5
    assert str(tmp_path) not in sys.path
    sys.modules.pop("my_nets")


def test_missing_packages_and_the_number_of_classes(monkeypatch):
    for package, module in (("timm", "timm"), ("torchvision", "torchvision.models")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=f"pip install {package}"):
            network_for(f"{package}:resnet18", {}, 3)

    def create_model(name, pretrained, in_chans, num_classes=1000):
        assert (name, pretrained) == ("tiny", False)
        return nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.Flatten(), nn.Linear(16, num_classes))

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    stored = create_model("tiny", False, 1, 7).state_dict()
    for prefix in ("", "module."):
        network = network_for("timm:tiny", {prefix + name: tensor for name, tensor in stored.items()}, 1)
        assert network[2].out_features == 7
        assert network[0].in_channels == 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A .pt2 file of a small network."""
    torch.manual_seed(0)
    network = Tiny().eval()
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(network, (torch.randn(2, *SHAPE),), dynamic_shapes=dynamic)
    path = tmp_path_factory.mktemp("pt2") / "a.pt2"
    torch.export.save(program, path)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.export.load, inside torch
def test_exported_program_round_trip(exported, tmp_path):
    victim = load_victim(exported, None, NORM, SHAPE)
    assert victim.arch == "exported program"
    assert victim.layers[0].norm
    mask = half_mask(victim)
    save_checkpoint(repair(victim, mask), tmp_path / "b.pt2")
    before, after = torch.export.load(exported), torch.export.load(tmp_path / "b.pt2")
    check_saved(victim, mask, before.state_dict, after.state_dict)
    images = torch.rand(3, *SHAPE)
    torch.testing.assert_close(after.module()(NORM(images)), repair(victim, mask).logits(images), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_exported_for_one_batch_size(tmp_path):
    class Flat(Tiny):
        def forward(self, x):
            for layer in list(self)[:7]:
                x = layer(x)
            return self[8](x.view(x.size(0), -1))

    network = Flat().eval()
    torch.export.save(torch.export.export(network, (torch.randn(2, *SHAPE),)), tmp_path / "a.pt2")
    images = torch.rand(5, *SHAPE)
    logits = load_victim(tmp_path / "a.pt2", None, NORM, SHAPE).logits(images)
    torch.testing.assert_close(logits, network(NORM(images)), rtol=1e-5, atol=1e-5)


def edit_archive(source, target, change) -> None:
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).partition("/")[0]
    change(members, root)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def edit_program(members, root, change) -> None:
    document = json.loads(members[f"{root}/models/model.json"])
    change(document)
    members[f"{root}/models/model.json"] = json.dumps(document).encode()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_code_in_an_exported_program_does_not_run(exported, tmp_path):
    proof = tmp_path / "the_code_ran"
    payload = f"__import__('pathlib').Path({str(proof)!r}).touch()"

    def node(document, i=0):
        return document["graph_module"]["graph"]["nodes"][i]

    def pickled_inputs(members, root):
        buffer = io.BytesIO()
        torch.save(Bomb(proof), buffer)
        members[f"{root}/data/sample_inputs/model.pt"] = buffer.getvalue()

    def pickled_weight(members, root):
        name = f"{root}/data/weights/model_weights_config.json"
        document = json.loads(members[name])
        next(iter(document["config"].values()))["use_pickle"] = True
        members[name] = json.dumps(document).encode()

    def size(document):
        text = json.dumps(document["graph_module"])
        document["graph_module"] = json.loads(text.replace('"expr_str": "', f'"expr_str": "{payload} or '))

    def tree(document):
        call = document["graph_module"]["module_call_graph"][0]["signature"]
        call["in_spec"] = call["in_spec"].replace("builtins.dict", "collections.defaultdict")

    def edited(change):
        return lambda members, root: edit_program(members, root, change)

    harmless = {
        "inputs": pickled_inputs,
        "guards": edited(lambda document: document.update(guards_code=[payload])),
        "metadata": edited(lambda document: node(document).update(metadata={"stack_trace": payload})),
    }
    dangerous = {
        "weights": pickled_weight,
        "library": lambda members, root: members.update({f"{root}/data/aotinductor/model/a.so": b"x"}),
        "legacy": lambda members, root: members.update({f"{root}/data/weights/model.pt": b"x"}),
        "object": lambda members, root: members.update({f"{root}/data/constants/custom_obj_0": b"x"}),
        "size": edited(size),
        "tree": edited(tree),
        "operator": edited(lambda document: node(document).update(target="torch.serialization.os.system")),
        "file": edited(lambda document: node(document).update(target="torch.ops.aten.from_file.default")),
        "name": edited(lambda document: node(document)["outputs"][0]["as_tensor"].update(name=f"a = {payload}; b")),
    }
    for name, change in {**harmless, **dangerous}.items():
        path = tmp_path / f"{name}.pt2"
        edit_archive(exported, path, change)
        if name in harmless:
            assert load_victim(path, None, NORM, SHAPE).units > 0
        else:
            assert "code" in refused(path, None), name
        assert not proof.exists(), name


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_pt2_attacks_are_real(exported, tmp_path):
    """Without the checks torch.export.load runs a symbolic size as code, which is why they exist."""
    proof = tmp_path / "the_code_ran"

    def change(document):
        text = json.dumps(document["graph_module"])
        payload = f"__import__('pathlib').Path({str(proof)!r}).touch() or "
        document["graph_module"] = json.loads(text.replace('"expr_str": "', f'"expr_str": "{payload}'))

    edit_archive(exported, tmp_path / "a.pt2", lambda members, root: edit_program(members, root, change))
    with contextlib.suppress(Exception):
        torch.export.load(tmp_path / "a.pt2")
    assert proof.exists()


def test_damaged_exported_programs(exported, tmp_path):
    edit_archive(exported, tmp_path / "a.pt2", lambda members, root: members.pop(f"{root}/data/weights/weight_0"))
    assert "cannot be read" in refused(tmp_path / "a.pt2", None)
    edit_archive(exported, tmp_path / "b.pt2", lambda members, r: members.update({f"{r}/models/model.json": b"{"}))
    assert "damaged" in refused(tmp_path / "b.pt2", None)


@pytest.mark.parametrize(
    "text", ["Symbol('s77', positive=True, integer=True)", "Mul(Integer(2), Symbol('u0'))"]
)
def test_sizes_that_exports_contain_are_let_through(text):
    assert pt2._SIZE.fullmatch(text)


@pytest.mark.parametrize(
    "text", ["s0.__class__", "exit()", "s0**9**9", "'a'", "Max", "s0[0]", "lambda: 0", "print(s0)", "9 9x"]
)
def test_sizes_that_are_code_are_not(text):
    assert not pt2._SIZE.fullmatch(text)
