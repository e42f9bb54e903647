"""A folder of eight models as people keep them: the embedded networks, and what is no network."""

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

BUNDLE = Path(str(files("onp"))) / "bundle"
PRUNED = ("features.4", 3)  #: conv, and how many of its units the repaired network lacks


def eight_models(folder):
    """clean, backdoored, repaired, the clean one once more, and four that cannot be scanned."""
    folder.mkdir()
    shutil.copyfile(BUNDLE / "clean" / "model.safetensors", folder / "clean.safetensors")
    (folder / "again.safetensors").symlink_to("clean.safetensors")
    shutil.copytree(BUNDLE / "badnets", folder / "badnets")
    state = load_file(folder / "clean.safetensors")
    layer, count = PRUNED
    for name in (f"{layer}.weight", f"{layer}.bias", f"{layer[:-1]}5.weight", f"{layer[:-1]}5.bias"):
        state[name][:count] = 0
    (folder / "repaired").mkdir()
    save_file(state, folder / "repaired" / "model.safetensors")
    (folder / "broken.safetensors").write_bytes((folder / "clean.safetensors").read_bytes()[:5000])
    torch.save(nn.Linear(2, 2), folder / "pickled.pt")
    torch.save({"some.weight": torch.ones(3, 3)}, folder / "other.pth")
    (folder / "pointer.pt2").write_text("version https://git-lfs.github.com/spec/v1\n")
    return folder


def images(path, count=120):
    """The first of the embedded clean images."""
    with np.load(BUNDLE / "clean.npz") as held:
        np.savez(path, **{name: array[:count] if len(array) > 50 else array for name, array in held.items()})
    return path
