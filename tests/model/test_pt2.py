"""Exported programs (.pt2): rebuilt from an allow-list, never run as code."""

import contextlib
import io
import json
import zipfile

import pytest
import torch
from helpers.tiny_networks import NORM, SHAPE, Bomb, Tiny, check_saved, half_mask, refused

from onp.model import pt2
from onp.model.prune import prune, save_checkpoint
from onp.model.victim import load_victim


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
    save_checkpoint(prune(victim, mask), tmp_path / "b.pt2")
    before, after = torch.export.load(exported), torch.export.load(tmp_path / "b.pt2")
    check_saved(victim, mask, before.state_dict, after.state_dict)
    images = torch.rand(3, *SHAPE)
    torch.testing.assert_close(after.module()(NORM(images)), prune(victim, mask).logits(images), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_that_returns_a_dict(tmp_path):
    class Named(Tiny):
        def forward(self, x):
            return {"features": x, "logits": super().forward(x)}

    network, x = Named().eval(), torch.rand(2, *SHAPE)
    torch.export.save(torch.export.export(network, (x,)), tmp_path / "a.pt2")
    victim = load_victim(tmp_path / "a.pt2", None, NORM, SHAPE)
    torch.testing.assert_close(victim.logits(x), network(NORM(x))["logits"])


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


@pytest.mark.parametrize("text", ["Symbol('s77', positive=True, integer=True)", "Mul(Integer(2), Symbol('u0'))"])
def test_sizes_that_exports_contain_are_let_through(text):
    assert pt2._SIZE.fullmatch(text)


@pytest.mark.parametrize(
    "text", ["s0.__class__", "exit()", "s0**9**9", "'a'", "Max", "s0[0]", "lambda: 0", "print(s0)", "9 9x"]
)
def test_sizes_that_are_code_are_not(text):
    assert not pt2._SIZE.fullmatch(text)
