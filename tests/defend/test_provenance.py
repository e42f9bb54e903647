"""Provenance: digests that `sha256sum` repeats, every file that is named, and no folder of this machine in what is written."""

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest
from helpers.reports import repaired_report

from onp.defend.config import DefendConfig
from onp.defend.digests import FileState, manifest_line
from onp.defend.outputs import write_outputs
from onp.defend.provenance import digests, inputs_of, learned, provenance
from onp.defend.report.model_card import model_card
from onp.defend.report.names import arch_name, name_of, named
from onp.defend.report.sarif import sarif_of
from onp.defend.report.statement import statement_of
from onp.errors import InputError
from onp.files import write_atomically
from onp.version import VERSION

SUMS = "find -L . -type f -not -path '*/.*' -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    """Images in class folders, with names that sort differently in other locales, and files that do not count."""
    top = tmp_path / "clean"
    for name in ("b/1.png", "B/2.png", "b.txt", "a b/3.png", "ä/4.png", "line\nbreak/5.png", "back\\slash.png", "é\n\\.png"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(name.encode())
    for name in (".DS_Store", ".git/config"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"hidden")
    os.mkfifo(top / "pipe.png")
    (top / "nowhere.png").symlink_to(top / "missing")
    return top


def test_the_digest_of_a_folder_is_that_of_the_documented_command(folder, tmp_path):
    outside = tmp_path / "elsewhere.png"
    outside.write_bytes(b"linked")
    (folder / "link.png").symlink_to(outside)
    found = FileState(folder).digest("data", "clean")
    if shutil.which("find") and "GNU" in subprocess.run(["find", "--version"], capture_output=True, text=True).stdout:
        done = subprocess.run(["bash", "-c", SUMS], cwd=folder, capture_output=True, text=True, check=True)
        assert found.sha256 == done.stdout.split()[0]
    names = sorted(os.fsencode(path.relative_to(folder)) for path in folder.rglob("*")
                   if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts))  # fmt: skip
    contents = [(folder / os.fsdecode(name)).read_bytes() for name in names]
    lines = [manifest_line(sha256(content), name) for name, content in zip(names, contents, strict=True)]
    assert len(lines) == 9 and found.sha256 == sha256(b"".join(lines)) and found.bytes == sum(map(len, contents))


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "data" / "c0").mkdir(parents=True)
    (tmp_path / "data" / "c0" / "1.png").write_bytes(b"1")
    (tmp_path / "data" / "c0" / "up").symlink_to(tmp_path / "data")
    assert FileState(tmp_path / "data").digest("data", "data").bytes == 1


def test_a_folder_of_too_many_files_is_refused(folder):
    with pytest.raises(InputError, match="more than 5 files"):
        FileState(folder, most_files=5)


def swap(path):
    """Another file of the same name, size and time of change."""
    found, beside = path.stat(), path.with_name("beside")
    beside.write_bytes(bytes(len(path.read_bytes())))
    os.utime(beside, ns=(found.st_atime_ns, found.st_mtime_ns))
    beside.replace(path)


@pytest.mark.parametrize("change", [swap, os.unlink, lambda path: path.write_bytes(b"longer than before")])
def test_a_file_that_is_changed_between_reading_and_hashing_is_noticed(tmp_path, change):
    path = tmp_path / "net.pt"
    path.write_bytes(b"as it was read")
    inputs = inputs_of(DefendConfig(model=str(path)))
    assert digests(inputs)[0].sha256 == sha256(b"as it was read")
    change(path)
    with pytest.raises(InputError, match=r"net\.pt was changed while it was read; give the same command again"):
        digests(inputs)


def test_every_file_that_an_option_names_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("net.pt", "mask.json", "mynet.py", "trigger.safetensors", "names.txt", "clean/0/1.png", "clean/1/2.png",
                 "set/train/0/3.png", "eval.npz", "config.json", "preprocessor_config.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 2}')
    config = DefendConfig(
        model=f"{tmp_path}/net.pt::ema/net", arch="mynet:Net", data=f"{tmp_path}/clean/", trigger="trigger.safetensors",
        eval_data="eval.npz", triggered_data="set::train", eval_triggered_data="not/there", class_order="names.txt",
        verify=True,
    )  # fmt: skip
    found = {(each.role, each.name): each for each in digests(inputs_of(config))}
    assert set(found) == {
        ("model", "net.pt"), ("mask", "mask.json"), ("code", "mynet.py"), ("trigger", "trigger.safetensors"),
        ("class order", "names.txt"), ("data", "clean"), ("triggered data", "set::train"), ("evaluation data", "eval.npz"),
        ("config", "config.json"), ("config", "preprocessor_config.json"),
    }  # fmt: skip
    assert found["model", "net.pt"].sha256 == sha256(b"net.pt")
    assert found["triggered data", "set::train"].sha256 == sha256(manifest_line(sha256(b"set/train/0/3.png"), b"0/3.png"))


def test_the_labels_beside_idx_images_are_an_input_too(tmp_path):
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(b"\0\0\x08")
    found = digests(inputs_of(DefendConfig(data=str(tmp_path / "t10k-images-idx3-ubyte"))))
    assert [(each.role, each.name) for each in found] == [
        ("data", "t10k-images-idx3-ubyte"), ("data, labels", "t10k-labels-idx1-ubyte")
    ]  # fmt: skip


def test_names_are_without_folders():
    config = DefendConfig(
        model="/home/me/net.pt::ema/net", data="C:\\sets\\clean", out="/tmp/out/", arch="config:/home/me/config.json",
        class_order="cat,dog/wolf", eval_data="../eval.npz",
    )  # fmt: skip
    public = named(config)
    assert public == replace(
        config, model="net.pt::ema/net", data="clean", out="out", arch="config:config.json", eval_data="eval.npz"
    )
    assert name_of(os.fsdecode(b"/home/me/\xff.pt")) == "\\udcff.pt"
    assert named(replace(config, class_order="x" * 300)).class_order == "x" * 300
    assert name_of(".") == os.path.basename(os.getcwd())
    assert arch_name("mynet:Net") == "mynet:Net"


def test_names_that_are_no_unicode_are_written(tmp_path):
    report = repaired_report()
    name = os.fsdecode(b"caf\xe9.pt")
    report = replace(report, headline=f"Of class {name}.", target_name=name)
    texts = [report.to_text(), report.to_json(), model_card(report), sarif_of(report), statement_of(report, {"a": name})]
    for text in texts:
        write_atomically(tmp_path / "file", text)
    (tmp_path / name).write_bytes(b"weights")
    (found,) = digests(inputs_of(DefendConfig(model=str(tmp_path / name))))
    assert found.name == "caf\\udce9.pt" and found.sha256 == sha256(b"weights")


def test_what_the_verdict_learned_from_has_a_version():
    assert learned()["clean_reference.json"]
    made = provenance(())
    assert made.onp == VERSION and made.created.endswith("Z") and made.learned == learned()


def test_the_files_of_a_repair_carry_their_digests(outcome, tmp_path):
    config = replace(outcome.report.config, model=str(tmp_path / "net.pt"))
    (tmp_path / "net.pt").write_bytes(b"weights")
    outcome = outcome.with_provenance(provenance(digests(inputs_of(config))))
    out = tmp_path / "out"
    written = write_outputs(outcome, str(out))
    report = json.loads((out / "report.json").read_text())
    assert report["provenance"]["inputs"][0] == {
        "role": "model", "name": "net.pt", "sha256": sha256(b"weights"), "bytes": 7
    }  # fmt: skip
    for each in report["provenance"]["outputs"]:
        assert each["sha256"] == sha256((out / each["name"]).read_bytes())
    assert [each["name"] for each in report["provenance"]["outputs"]] == ["model.safetensors", "mask.json"]
    assert [each.name for each in written.report.provenance.outputs] == ["model.safetensors", "mask.json"]
    assert report["versions"]["onp"] == VERSION
