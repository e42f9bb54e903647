"""Folders that timm and transformers write: what their config.json says, what it may not ask for, and the way back."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_networks import half_mask
from safetensors.torch import save_file
from torch import nn

from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.defend.config import DefendConfig
from onp.defend.resolve import with_hub
from onp.errors import InputError
from onp.model.hub_config import companions, read_config
from onp.model.prune import prune, save_checkpoint
from onp.model.victim import Victim, load_victim

TIMM = {
    "architecture": "tiny",
    "num_classes": 4,
    "label_names": ["ant", "bee", "cat", "dog"],
    "pretrained_cfg": {"input_size": [3, 10, 10], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
    "model_args": {"width": 6},
}
VIT = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "id2label": {"0": "ant", "1": "bee", "2": "cat"},
    "image_size": 16,
    "num_channels": 3,
}
IMAGES = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5], "rescale_factor": 1 / 255}


def written(folder: Path, config: object, images: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if images is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return folder / "config.json"


def load(folder: Path) -> Victim:
    config, hub = with_hub(DefendConfig(model=str(folder)))
    assert hub is not None and config.norm is not None and config.image_size is not None
    shape = (hub.channels, config.image_size, config.image_size)
    return load_victim(str(config.model), hub, Normalisation.parse(config.norm), shape)


def test_a_timm_config(tmp_path):
    hub = read_config(written(tmp_path, TIMM))
    assert (str(hub), hub.channels, hub.size) == ("timm tiny", 3, 10)
    assert hub.class_names == ("ant", "bee", "cat", "dog")
    assert hub.normalisation == Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    old = {"architecture": "tiny", "num_classes": 3, "input_size": [1, 8, 9], "mean": [0.5], "std": [0.5]}
    hub = read_config(written(tmp_path, old | {"label_names": {"0": "ant", "2": "bee"}}))
    assert (hub.channels, hub.size, hub.class_names) == (1, None, ("ant", "1", "bee"))


def test_a_transformers_config(tmp_path):
    hub = read_config(written(tmp_path, VIT | {"auto_map": {"AutoModel": "x.Y"}, "attn_implementation": "hub/kernel"}, IMAGES))
    assert (str(hub), hub.channels, hub.size) == ("transformers vit", 3, 16)
    assert hub.class_names == ("ant", "bee", "cat")
    assert hub.normalisation == Normalisation((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert hub.options.keys() == VIT.keys() - {"model_type"}, "what would import code is left out"
    cropped = IMAGES | {"do_center_crop": True, "crop_size": {"height": 12, "width": 12}, "size": {"shortest_edge": 14}}
    assert read_config(written(tmp_path, VIT, cropped)).size == 12
    assert read_config(written(tmp_path, VIT, IMAGES | {"size": {"shortest_edge": 14}})).size == 14
    unnamed = VIT | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    assert read_config(written(tmp_path, unnamed)).class_names == ()


@pytest.mark.parametrize(
    ("images", "norm"),
    [
        ({"rescale_factor": 1 / 127.5}, "0.25,0.25,0.25/0.25,0.125,0.25"),  # 2 x - mean
        ({"do_normalize": False}, "0.0/1.0"),
        ({"rescale_offset": True}, None),
    ],
)
def test_preprocessing_as_one_normalisation(tmp_path, images, norm):
    found = read_config(written(tmp_path, VIT, IMAGES | images)).normalisation
    assert (found and str(found)) == norm


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "no JSON"),
        ("[]", "holds a list"),
        ({"learning_rate": 0.1}, "no timm or transformers model"),
        (TIMM | {"model_args": {"checkpoint_path": "/tmp/x.pth"}}, "checkpoint_path, which names other files"),
        (TIMM | {"model_args": {"pretrained": True}}, "pretrained, which names other files"),
        (TIMM | {"architecture": "hf_hub:someone/model"}, "names other files"),
        (TIMM | {"pretrained_cfg": [1]}, "not what timm or transformers write"),
        (VIT | {"architectures": ["ViTModel"]}, "a ViTModel, not an image classifier"),
        (VIT | {"use_timm_backbone": True}, "another model's weights"),
        (VIT | {"id2label": {"a": "b"}}, "not what timm or transformers write"),
    ],
)
def test_configs_that_are_refused(tmp_path, config, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(written(tmp_path, config))
    assert "\n" not in str(error.value)


def test_what_options_say_comes_first(tmp_path):
    written(tmp_path, TIMM)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    filled, hub = with_hub(DefendConfig(model=str(tmp_path)))
    assert hub == read_config(tmp_path / "config.json")
    assert filled.model == str(tmp_path / "model.safetensors")
    assert filled.arch == f"config:{tmp_path / 'config.json'}" and filled.image_size == 10
    assert filled.norm == "0.5,0.4,0.3/0.2,0.2,0.1"
    assert with_hub(DefendConfig(model=filled.model)) == (filled, hub), "the file stands for its folder"
    given = DefendConfig(model=filled.model, arch="resnet18", norm="half", image_size=12)
    assert with_hub(given) == (given, None)
    other = written(tmp_path / "other", TIMM | {"num_classes": 9})
    assert with_hub(replace(given, arch=f"config:{other}"))[1].options["num_classes"] == 9
    assert with_hub(DefendConfig(model=filled.model, norm="half"))[0].norm == "half"


def test_folders_without_one_file_of_weights(tmp_path):
    written(tmp_path, TIMM)
    with pytest.raises(InputError, match="holds no weights"):
        with_hub(DefendConfig(model=str(tmp_path)))
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(InputError, match="several files of weights"):
        with_hub(DefendConfig(model=str(tmp_path)))


def test_labels_are_counted_as_the_model_counts_its_classes(tmp_path):
    hub = read_config(written(tmp_path, TIMM))

    def labels(*names: str) -> list[int]:
        return hub.in_order(ImageSet(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), names)).labels.tolist()

    assert labels("bee", "dog") == [1, 3]
    assert labels("0", "2") == [0, 2], "folders named after the number of a class"
    assert labels("a", "b", "c", "d") == [0, 1], "as many other names: in the order of their folders"
    with pytest.raises(InputError, match="'eel' is not among"):
        labels("bee", "eel")
    with pytest.raises(InputError, match="None of the data's 2 classes"):
        labels("cow", "eel")


def test_a_folder_of_timm(tmp_path, monkeypatch):
    """Against a module with timm's interface, since timm needs torchvision."""

    def create_model(name, pretrained, num_classes, in_chans, width):
        assert (name, pretrained) == ("tiny", False)
        norm = [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(nn.Conv2d(in_chans, width, 3), *norm, nn.Linear(width, num_classes))

    timm = types.ModuleType("timm")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    written(tmp_path, TIMM)
    network = create_model("tiny", False, 4, 3, 6).eval()
    # The prefix is the one that transformers' wrapper of timm models adds.
    save_file({"timm_model." + name: tensor for name, tensor in network.state_dict().items()}, tmp_path / "model.safetensors")
    victim = load(tmp_path)
    assert victim.arch == "timm tiny" and victim.classes == 4 and victim.units == 6
    images = torch.rand(2, 3, 10, 10)
    torch.testing.assert_close(victim.logits(images), network(victim.normalisation(images)))
    assert companions(tmp_path / "model.safetensors") == [tmp_path / "config.json"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for config, package in ((TIMM, "timm"), (VIT, "transformers")):
        monkeypatch.setitem(sys.modules, package, None)
        written(tmp_path, config, IMAGES)
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=f"needs {package}; install it with: pip install {package}"):
            load(tmp_path)


SIZES = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"},
    "vit": {
        **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": 16, "patch_size": 8},
    },
}


@pytest.mark.filterwarnings("ignore")  # of transformers' own making
@pytest.mark.parametrize("model_type", SIZES)
def test_a_folder_of_transformers_and_back(tmp_path, model_type):
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoModelForImageClassification
    original = auto.from_config(transformers.AutoConfig.for_model(model_type, num_labels=3, **SIZES[model_type])).eval()
    original.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "preprocessor_config.json").write_text(json.dumps(IMAGES | {"size": 16}))
    victim = load(tmp_path / "in")
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(victim.logits(images), original(victim.normalisation(images)).logits, rtol=1e-4, atol=1e-5)

    repaired = prune(victim, half_mask(victim))
    out = tmp_path / "out"
    out.mkdir()
    save_checkpoint(repaired, out / "model.safetensors")
    for path in companions(victim.checkpoint.path):
        (out / path.name).write_bytes(path.read_bytes())
    again, info = auto.from_pretrained(out, local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        found = again.eval()(victim.normalisation(images)).logits
    torch.testing.assert_close(found, repaired.logits(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, victim.logits(images))
