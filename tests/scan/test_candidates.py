"""Which files of a folder are models, and what a list names."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from onp.errors import InputError
from onp.scan.candidates import find_models
from onp.scan.model_list import read_list


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(*sources, out=None):
    return [candidate.name for candidate in find_models([str(source) for source in sources], out).candidates]


def test_a_folder_is_searched_for_checkpoints(tmp_path):
    for name in ("b.pt", "a.safetensors", "sub/c.PTH", "sub/d.pt2", "sub/attack_result.pt", "best.pth.tar", "notes.txt"):
        write(tmp_path / name)
    for name in (".git/e.pt", ".f.pt", "run/state/run.json", "run/state/fit.safetensors", "state/g.pt"):
        write(tmp_path / name)
    write(tmp_path / "other.onnx")
    save_file({"pattern": torch.zeros(1)}, tmp_path / "trigger.safetensors", {"onp.trigger": "badnets"})
    write(tmp_path / "scan" / "models" / "h.pt")
    found = find_models([str(tmp_path)], str(tmp_path / "scan"))
    assert [candidate.name for candidate in found.candidates] == [
        *("a.safetensors", "b.pt", "best.pth.tar"),
        *("state/g.pt", "sub/attack_result.pt", "sub/c.PTH", "sub/d.pt2"),
    ]
    assert found.left_out == {".onnx files": 1, "trigger files": 1}
    assert all(os.path.isabs(candidate.path) for candidate in found.candidates)


def test_links_and_special_files_lead_nowhere(tmp_path):
    write(tmp_path / "zoo" / "a.pt")
    (tmp_path / "zoo" / "b.pt").symlink_to("a.pt")
    (tmp_path / "zoo" / "loop").symlink_to(".")
    (tmp_path / "zoo" / "up").symlink_to("..")
    (tmp_path / "zoo" / "gone.pt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "zoo" / "pipe.safetensors")
    write(tmp_path / "outside.pt")
    found = find_models([str(tmp_path / "zoo")])
    # Links to files are what caches of hubs are made of; what is no ordinary file is refused when it is read.
    assert [candidate.name for candidate in found.candidates] == ["a.pt", "b.pt", "gone.pt", "pipe.safetensors"]
    assert found.left_out == {"links to folders": 2}


def test_a_folder_of_a_hub_is_its_weights(tmp_path):
    write(tmp_path / "net" / "config.json", json.dumps({"architecture": "resnet18", "num_classes": 3}).encode())
    for name in ("model.safetensors", "optimizer.pt", "training_args.bin"):
        write(tmp_path / "net" / name)
    write(tmp_path / "net" / "checkpoint-5" / "model.safetensors")
    write(tmp_path / "empty" / "config.json", (tmp_path / "net" / "config.json").read_bytes())
    write(tmp_path / "foreign" / "config.json", b"{}")
    write(tmp_path / "foreign" / "a.pt")
    found = {candidate.name: candidate for candidate in find_models([str(tmp_path)]).candidates}
    assert list(found) == ["empty", "foreign/a.pt", "net/model.safetensors", "net/checkpoint-5/model.safetensors"]
    assert "holds no weights" in found["empty"].problem
    assert names(tmp_path / "empty") == ["empty"]


def test_every_model_has_a_name_of_its_own(tmp_path, monkeypatch):
    for name in ("x/zoo/a.pt", "y/zoo/a.pt"):
        write(tmp_path / name)
    assert names(tmp_path / "x" / "zoo", tmp_path / "y" / "zoo") == ["zoo/a.pt", "zoo/a.pt (2)"]
    monkeypatch.chdir(tmp_path)
    assert names("x/zoo/a.pt", "x/../y/zoo/a.pt", tmp_path / "x" / "zoo" / "a.pt") == ["x/zoo/a.pt", "zoo/a.pt"], (
        "the third is the first"
    )


@pytest.mark.parametrize("what", ["missing", "empty", "others"])
def test_what_holds_no_model_is_refused(tmp_path, what):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "others" / "a.onnx")
    with pytest.raises(InputError, match="There is no model" if what == "missing" else "holds no checkpoint"):
        find_models([str(tmp_path / what)])


def test_folders_have_a_deepest_level(tmp_path):
    deep = tmp_path.joinpath(*"d" * 40)
    write(deep / "a.pt")
    write(tmp_path / "b.pt")
    found = find_models([str(tmp_path)])
    assert [candidate.name for candidate in found.candidates] == ["b.pt"]
    assert found.left_out == {"folders more than 32 deep": 1}


def test_lists_name_models_and_their_options(tmp_path):
    for name in ("a.pt", "sub/b.pt", "images.npz"):
        write(tmp_path / name)
    text = write(tmp_path / "models.txt", b"# two\na.pt\n\n  sub/b.pt::ema\n")
    toml = write(tmp_path / "models.toml", b'[[model]]\npath = "a.pt"\narch = "vit"\nexpect-acc = 1\ndata = "images.npz"\n')
    lines = write(tmp_path / "models.jsonl", b'{"path": "sub", "image_size": 32}\n')
    found = find_models([str(text), str(toml), str(lines)]).candidates
    assert [(candidate.name, candidate.path) for candidate in found] == [
        ("a.pt", str(tmp_path / "a.pt")),
        ("sub/b.pt::ema", f"{tmp_path / 'sub' / 'b.pt'}::ema"),
        ("a.pt (2)", str(tmp_path / "a.pt")),
        ("sub/b.pt", str(tmp_path / "sub" / "b.pt")),
    ]
    assert found[2].options == {"arch": "vit", "expect_acc": 1.0, "data": str(tmp_path / "images.npz")}
    assert found[3].options == {"image_size": 32}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b'[[model]]\narch = "vit"', "model 1 of the list .* has no path"),
        ("a.toml", b'[[model]]\npath = "a.pt"\nout = "x"', "gives out; a model has only path, arch"),
        ("a.toml", b'[[model]]\npath = "a.pt"\nimage-size = "x"', "image-size as x, which is no int"),
        ("a.toml", b"model = 3", "something else than tables"),
        ("a.toml", b"[[model", "cannot be read"),
        ("a.jsonl", b"[1]\n", "line 1 of the list .* has no path"),
        ("a.jsonl", b"{", "cannot be read"),
        ("a.jsonl", b"[" * 100_000, "cannot be read"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.txt", b"a" * (16 * 2**20 + 1), "bytes, and 16777216 at most"),
    ],
)
def test_a_list_of_something_else_is_one_sentence(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as error:
        read_list(write(tmp_path / name, content))
    assert "\n" not in str(error.value)
