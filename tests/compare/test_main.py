"""The command line of `onp compare`."""

import shutil
from dataclasses import replace

import pytest
from helpers.small_tables import arguments

from onp.compare.__main__ import main

TRAIN, TEST = "the training images", "the test images"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--defences", "magic"], "magic"),
        (["--defences", "ft+clp"], "ft+clp"),
        (["--defences", "clp+npd"], "clp+npd"),
        (["--attacks", "badnets"], "--data"),
        (["--attacks", "badnets", "--data", "a", "b", "--test-data", "a"], "--test-data"),
        (["--victims", ".", "--test-data", "x.npz"], "card.json"),
        (["--victims", "."], "--test-data"),
        (["--victims", "badnet"], "the embedded victims are badnets, "),
        (["--max-acc-drop", "5"], "0.01"),
        (["--gpu-share", "25"], "a quarter"),
        (["--passes", "0"], "--passes"),
        (["--seeds", "1", "1"], "--seeds"),
        (["--seeds", "99999999999999999999"], "--seeds is a number from 0 to 2147483647"),
        (["--victim-seed", "-1"], "--victim-seed"),
        (["--threads", "-1"], "--threads"),
        (["--norm", "nope"], "'nope'"),
        (["--data", "train.npz", "--test-data", "test.npz"], "--attacks"),
        (["--attacks", "none", "--data", "nofile", "--test-data", TEST], "nofile"),
        (["--attacks", "none", "--data", TRAIN, "--test-data", TEST, "--norm", "cifar10"], "--norm cifar10"),
        (["--attacks", "none", "--data", TRAIN, "--test-data", TEST, "--norm", "half", "--archs", "nope"], "'nope'"),
        (["--attacks", "none", "--data", TRAIN, "--test-data", TRAIN, "--norm", "half"], "not trained on"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(options, word, config, tmp_path, capsys):
    options = [{TRAIN: config.data[0], TEST: config.test_data[0]}.get(option, option) for option in options]
    assert main(["--out", str(tmp_path / "t"), "--quiet", *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1 and word in shown.err
    assert not (tmp_path / "t").exists()


def test_a_table_that_cannot_be_written_is_one_sentence(config, rows, tmp_path, capsys):
    shutil.copytree(config.out, tmp_path / "t")
    (tmp_path / "t" / "results.csv").unlink()
    (tmp_path / "t" / "results.csv").mkdir()
    assert main(arguments(replace(config, out=str(tmp_path / "t")))) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: The table cannot be written") and shown.count("\n") == 1
