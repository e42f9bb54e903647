"""The folder of a run: what it may hold before, which names it takes, and where it may not lie."""

import os
from pathlib import Path

import pytest

from onp.attack import AttackConfig, attack
from onp.compare import CompareConfig, compare
from onp.defend import defend
from onp.defend.config import DefendConfig
from onp.defend.folder import LONGEST_NAME, check_folder, check_model_name
from onp.errors import InputError
from onp.files import check_apart, remove_temporaries, write_atomically
from onp.scan import ScanConfig, scan

DEAD = 2**22 + 1  # more than Linux numbers processes


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_it_wrote_what_it_is_about_is_begun_again(tmp_path, resume):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / f".run.json.{DEAD}.tmp").write_text("{")
    check_folder(tmp_path, resume)
    assert not any((tmp_path / "state").iterdir())
    (tmp_path / "state" / "scores.jsonl").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        check_folder(tmp_path, resume)


def test_what_a_killed_run_left_half_written_goes_when_it_is_resumed(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "run.json").write_text("{}")
    left = [tmp_path / f".model.safetensors.{DEAD}.tmp", tmp_path / "state" / f".triggers.safetensors.{os.getpid()}.tmp"]
    # Of a process that runs, and of somebody else.
    kept = [tmp_path / f".mask.json.{os.getppid()}.tmp", tmp_path / ".hidden.tmp", tmp_path / "report.tmp"]
    for path in (*left, *kept):
        path.write_text("")
    check_folder(tmp_path, resume=True)
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


def test_the_name_of_a_temporary_file_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda source, target: os.link(source, tmp_path / f".a.{DEAD}.tmp"))
    write_atomically(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == [f".a.{DEAD}.tmp"]
    remove_temporaries(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["state", "report.json", "Mask.json", "config.toml", "sbom.cdx.json"])
def test_a_model_with_the_name_of_a_result_is_refused(name):
    with pytest.raises(InputError, match=f"A run writes a file {name} of its own; rename"):
        check_model_name(name)


def test_the_longest_name_of_a_model_can_be_written(tmp_path):
    name = "é" * (LONGEST_NAME // 2)
    check_model_name(name)
    write_atomically(tmp_path / name, "")
    with pytest.raises(InputError, match="too long"):
        check_model_name(name + "ab")


def test_results_go_nowhere_among_the_images(tmp_path):
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    (images / "a").mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(images / "a")  # a way in
    (images / "b").symlink_to(elsewhere)  # a part that lies elsewhere
    (images / "a" / "again").symlink_to(images)
    for out in (images, images / "out", images / "a" / "new" / "out", tmp_path / "link" / "out", elsewhere / "out"):
        with pytest.raises(InputError, match="lies among the images"):
            check_apart(out, [None, str(images)])
    for out in (tmp_path / "out", tmp_path / "images2"):
        check_apart(out, [str(images), str(tmp_path / "clean.npz"), f"{images}::a"])
    check_apart(images / "out", [f"{images}::b"])
    with pytest.raises(InputError):
        check_apart(images / "a" / "out", [f"{images}::a"])


def test_a_path_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (Path("x" * 300), tmp_path / "loop" / "out"):
        for check in (lambda out: check_folder(out, resume=False), lambda out: check_apart(out, [str(tmp_path)])):
            with pytest.raises(InputError, match=r"^The path .* cannot be used"):
                check(path)
    with pytest.raises(InputError, match="cannot be used"):
        check_apart(tmp_path / "out", ["x" * 300])


def test_no_command_writes_among_its_images(tmp_path):
    (tmp_path / "a").mkdir()
    data, out = str(tmp_path), str(tmp_path / "a" / "out")
    model = {"model": "m.pt", "arch": "resnet18", "norm": "none"}
    for work, config in (
        (defend, DefendConfig(**model, data=data, out=out)),
        (defend, DefendConfig(**model, data="clean.npz", eval_data=data, out=out)),
        (attack, AttackConfig(data="train.npz", test_data=data, out=out)),
        (compare, CompareConfig(attacks=("none",), data=(data,), test_data=("test.npz",), out=out)),
        (scan, ScanConfig(models=(data,), data=data, out=out)),
    ):
        with pytest.raises(InputError, match="lies among the images"):
            work(config)
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
