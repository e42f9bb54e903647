"""What a newcomer may type: one sentence and exit code 2, before any work; and what is understood all the same."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from onp.attack.triggers import BadNets, load_trigger
from onp.data.images import ImageSet
from onp.defend.__main__ import main
from onp.defend.config import DefendConfig
from onp.defend.demos import ARCH, NORM, clean_images, demo
from onp.defend.inputs import read_case
from onp.defend.run import Run
from onp.model.arch_spec import likely
from onp.model.archs import NETWORKS, build_network

BASE = ("--arch", ARCH, "--norm", NORM, "--quiet")


def write_images(path, images, labels):
    np.savez(path, images=images.numpy(), labels=labels.numpy())
    return str(path)


def bad_inputs(folder):
    """name -> arguments that must be refused, and a word that the sentence must hold."""
    victim, images = demo("badnets"), clean_images()
    model, data = str(victim.model), str(victim.clean)
    (folder / "text.safetensors").write_text("hello")
    (folder / "full").mkdir()
    (folder / "full" / "kept.txt").write_text("precious")
    state = load_file(model)
    broken = {key: value.clone() for key, value in state.items()}
    broken["features.22.weight"][0, 0, 0, 0] = float("nan")
    save_file(broken, folder / "nan.safetensors")
    save_file({key: value for key, value in state.items() if key != "classifier.bias"}, folder / "missing.safetensors")
    few = images.subset(torch.arange(10))
    one = images.subset((images.labels == 3).nonzero()[:, 0])
    noise = write_images(folder / "noise.npz", torch.rand(60, 3, 28, 28), images.labels[:60])
    given, fits = ["--model", model, "--data", data], "they fit --arch vgg11_bn:width=16,channels=1"
    outside = torch.where(images.labels == 9, 12, images.labels)
    torch.save(build_network(ARCH), folder / "pickle.pth")
    (folder / "m.onnx").write_bytes(b"\x08\x0a")
    (folder / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (folder / "page.pth").write_text("<!DOCTYPE html><html></html>")
    BadNets(torch.ones(3, 3, 3)).save(folder / "rgb.safetensors")
    common = ["--model", model, *BASE]
    known = images.subset(range(200))
    folders = write_folders(folder / "gap", known, {label: f"class_{label}" for label in range(10) if label != 5})
    carrying = (load_trigger(victim.trigger)(known.pixels()) * 255).round().byte()
    stamped = write_images(folder / "stamped.npz", carrying, torch.zeros(200, dtype=torch.int64))
    return {
        "no such model": (["--model", str(folder / "none.pth"), "--data", data, *BASE], "none.pth"),
        "not a checkpoint": (["--model", str(folder / "text.safetensors"), "--data", data, *BASE], "safetensors"),
        "a pickle": (["--model", str(folder / "pickle.pth"), "--data", data, *BASE], "state_dict"),
        "nan": (["--model", str(folder / "nan.safetensors"), "--data", data, *BASE], "features.22.weight"),
        "missing": (["--model", str(folder / "missing.safetensors"), "--data", data, *BASE], "classifier.bias"),
        "no data": (common, "--data"),
        "no norm": (["--model", model, "--arch", ARCH, "--data", data], "--norm"),
        "few": ([*common, "--data", write_images(folder / "few.npz", few.images, few.labels)], "20"),
        "one class": ([*common, "--data", write_images(folder / "one.npz", one.images, one.labels)], "class"),
        "size": ([*common, "--data", write_images(folder / "size.npz", images.images[..., :4, :4], images.labels)], "4"),
        "labels": ([*common, "--data", write_images(folder / "outside.npz", images.images, outside)], "label 12"),
        "shuffled": (
            [*common, "--data", write_images(folder / "shuffled.npz", images.images, images.labels.flip(0))],
            "labels are mixed up",
        ),
        "full folder": ([*common, "--data", data, "--out", str(folder / "full")], "not empty"),
        "file as folder": ([*common, "--data", data, "--out", str(folder / "text.safetensors")], "is a file"),
        "unwritable": ([*common, "--data", data, "--out", "/proc/onp/out"], "cannot be"),
        "trigger": ([*common, "--data", data, "--trigger", str(folder / "text.safetensors")], "trigger"),
        "trigger alone": ([*common, "--data", data, "--eval-trigger", str(victim.trigger)], "--eval-data"),
        "both": ([*common, "--data", data, "--trigger", str(victim.trigger), "--triggered-data", data], "not both"),
        "drop": ([*common, "--data", data, "--max-acc-drop", "5"], "0.01"),
        "demo": (["--demo", "mnist"], "badnets"),
        "demo and data": (["--demo", "clean", "--data", data], "leave out --data"),
        "a folder": (["--model", str(folder)], "without a config.json"),
        "nothing but the model": (["--model", model], "--data"),
        "no such split": ([*common, "--data", f"{folder}::val"], "no folder val"),
        "no such preset": (["--preset", "quick"], "thorough"),
        "a word for a number": (["--seed", "one"], "--seed"),
        "seed": ([*common, "--data", data, "--seed", "-1"], "--seed"),
        "a file for --arch": (
            [*given, "--norm", "none", "--arch", "nets/mine.py:net"],
            "no nets/mine.py in the folder where you run",
        ),
        "a module that is not there": ([*given, "--norm", "none", "--arch", "mynett:net"], "in the folder where you run"),
        "no arch": ([*given, "--norm", "fashion-mnist"], fits),
        "another width": ([*given, "--norm", "none", "--arch", "vgg11_bn"], fits),
        "pixels up to 255": ([*given, "--arch", ARCH, "--norm", "73/90"], "255"),
        "colour": ([*common, "--data", noise], "grey"),
        "not torch's": (["--model", str(folder / "m.onnx"), "--data", data, *BASE], "torch checkpoint"),
        "a pointer": (["--model", str(folder / "lfs.pt"), "--data", data, *BASE], "git lfs pull"),
        "a web page": (["--model", str(folder / "page.pth"), "--data", data, *BASE], "web page"),
        "a name of the hub": (["--model", "someone/resnet-50", "--data", data, *BASE], "nothing is downloaded"),
        "another order": (
            [*common, "--data", write_images(folder / "moved.npz", images.images, (images.labels + 3) % 10)],
            "0 is its class 7, 1 is its class 8",
        ),
        "a trigger for colour": (
            [*common, "--data", data, "--eval-data", data, "--eval-trigger", str(folder / "rgb.safetensors")],
            "trigger",
        ),
        "data only": (["--data", data], "--model"),
        "a class without a folder": ([*common, "--data", folders], "class_6 is its class 6"),
        "labels from -1": ([*common, "--data", write_images(folder / "below.npz", images.images, images.labels - 1)], "from 0"),
        "size of a poster": ([*common, "--data", data, "--image-size", "100000"], "100000x100000"),
        "wrong triggered images": ([*common, "--data", data, "--triggered-data", stamped], "before the attack"),
    }


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    for name, (arguments, word) in bad_inputs(tmp_path).items():
        try:
            code = main(arguments)
        except SystemExit as stopped:  # by argparse
            code = stopped.code
        printed = capsys.readouterr()
        assert code == 2, name
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1, (name, printed.err)
        assert word in printed.err, (name, printed.err)
    assert (tmp_path / "full" / "kept.txt").read_text() == "precious"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_built_in_network_that_weights_fit_is_known(name):
    state = build_network(f"{name}:width=8,classes=7").state_dict()
    assert likely(state) == likely({f"module.{key}": tensor for key, tensor in state.items()}) == f"{name}:width=8,classes=7"
    assert likely({key: tensor for key, tensor in state.items() if not key.endswith("bias")}) is None
    assert likely(build_network(name).state_dict()) == name


def write_folders(folder, images, names):
    for position, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        if label in names:
            (folder / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(folder / names[label] / f"{position}.png")
    return str(folder)


def case(data, model=None, arch=ARCH, norm=NORM):
    config = DefendConfig(model=str(model or demo("badnets").model), arch=arch, norm=norm, data=data, quiet=True)
    return read_case(Run.of(config))


def test_folders_of_some_classes_are_counted_by_their_numbers(tmp_path):
    images = clean_images().subset(range(100))
    found = case(write_folders(tmp_path, images, {2: "2", 5: "5", 7: "7"})).images
    assert found.labels.unique().tolist() == [2, 5, 7] and found.class_names == tuple("0123456789")


def test_ten_comes_after_nine_where_the_network_says_so():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    found = ImageSet(images, torch.tensor([0, 1, 2]), ("0", "10", "2")).by_number(11)
    assert found.labels.tolist() == [0, 10, 2] and len(found.class_names) == 11
    named = ImageSet(images, torch.tensor([0, 1, 2]), ("0", "10", "cat"))
    assert named.by_number(11) is named


def test_grey_files_saved_as_colour_and_grey_files_for_a_colour_network(tmp_path):
    images = clean_images().subset(range(60))
    triple = ImageSet(images.images.expand(-1, 3, -1, -1), images.labels, images.class_names)
    data = write_folders(tmp_path / "colour", triple, dict(enumerate("0123456789")))
    assert torch.equal(case(data).images.images.sort(0).values, images.images.sort(0).values)
    # The colour network that sees the mean of the channels is the grey one.
    state = load_file(demo("badnets").model)
    state["features.0.weight"] = state["features.0.weight"].expand(-1, 3, -1, -1).contiguous() / 3
    save_file(state, tmp_path / "colour.safetensors")
    norm = ",".join(["0.286"] * 3) + "/" + ",".join(["0.353"] * 3)
    data = write_folders(tmp_path / "grey", images, dict(enumerate("0123456789")))
    found = case(data, tmp_path / "colour.safetensors", "vgg11_bn:width=16", norm)
    assert found.images.images.shape[1:] == (3, 28, 28) == found.victim.input_shape


def test_folders_of_the_first_classes_alone_are_fine(tmp_path):
    """Missing classes move no label where they come last, and a class of two images proves nothing."""
    images = clean_images()
    found = case(write_folders(tmp_path / "first", images.subset(range(200)), {label: f"class_{label}" for label in range(8)}))
    assert len(found.class_names) == 8
    few = torch.cat([(images.labels == label).nonzero()[:2, 0] for label in range(9)] + [(images.labels < 3).nonzero()[:30, 0]])
    assert len(
        case(write_folders(tmp_path / "few", images.subset(few), {label: f"class_{label}" for label in range(9)})).images
    )
