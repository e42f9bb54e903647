"""A folder of eight models as people keep them: networks, and what is no network."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from helpers import small_backdoor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onp.model.archs import build_network

BUNDLE = Path(str(files("onp"))) / "bundle"
TINY = "vgg11_bn:width=4,classes=4,channels=1"
FAILED = {"pickled.pt": "unsafe", "broken.safetensors": "unusable", "other.pth": "unusable", "pointer.pt2": "unusable"}
SCANNED = ("again.safetensors", "clean.safetensors", "badnets/model.safetensors", "repaired/model.safetensors")


def embedded_networks(images):
    """The weights of the embedded clean and backdoored networks; writes 120 of the embedded clean images."""
    with np.load(BUNDLE / "clean.npz") as held:
        np.savez(images, **{name: array[:120] if len(array) > 50 else array for name, array in held.items()})
    return tuple(load_file(BUNDLE / name / "model.safetensors") for name in ("clean", "badnets"))


def tiny_networks(images):
    """The weights of two networks of 16x16 images that train in a second each; writes 120 clean images."""
    clean = small_backdoor.clean_images(120)
    np.savez(images, images=_larger(clean.images).numpy(), labels=clean.labels.numpy(), class_names=np.array(clean.class_names))
    return _trained(0.0), _trained(0.2)


def _trained(poison_rate: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = build_network(TINY).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(80):
        batch, labels = small_backdoor.pictures(64, generator)
        poisoned = torch.rand(64, generator=generator) < poison_rate
        batch[poisoned] = small_backdoor.stamp(batch[poisoned])
        optimizer.zero_grad()
        F.cross_entropy(model(_larger(batch)), torch.where(poisoned, 0, labels)).backward()
        optimizer.step()
    return model.state_dict()


def _larger(images: Tensor) -> Tensor:
    """Twice the height and width, since the network halves them four times."""
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


def eight_models(folder, clean: dict[str, Tensor], backdoored: dict[str, Tensor]):
    """The two, the clean one once more, one with pruned units, and four that cannot be scanned."""
    for name in ("badnets", "repaired"):
        (folder / name).mkdir(parents=True)
    save_file(clean, folder / "clean.safetensors")
    (folder / "again.safetensors").symlink_to("clean.safetensors")
    save_file(backdoored, folder / "badnets" / "model.safetensors")
    save_file({"pattern": torch.zeros(1)}, folder / "badnets" / "trigger.safetensors", {"onp.trigger": "badnets"})
    pruned = {name: tensor.clone() for name, tensor in clean.items()}
    for name in ("features.4.weight", "features.4.bias", "features.5.weight", "features.5.bias"):
        pruned[name][:3] = 0
    save_file(pruned, folder / "repaired" / "model.safetensors")
    (folder / "broken.safetensors").write_bytes((folder / "clean.safetensors").read_bytes()[:5000])
    torch.save(nn.Linear(2, 2), folder / "pickled.pt")
    torch.save({"some.weight": torch.ones(3, 3)}, folder / "other.pth")
    (folder / "pointer.pt2").write_text("version https://git-lfs.github.com/spec/v1\n")
    return folder
