"""Tiny networks, and what tests ask of their checkpoints."""

import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.victim import load_victim

ARCH = "helpers.tiny_networks:Tiny"
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


class Bomb:
    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


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
    """`after` is `before` with the pruned rows zero and every other bit as it was; it computes what prune() does."""
    assert list(before) == list(after)
    expected = {name: tensor.clone() for name, tensor in before.items()}
    for layer, view in zip(victim.layers, mask.by_layer().values(), strict=True):
        for key in (layer.weight, layer.bias, *layer.norm):
            if key is not None:
                expected[key][~view] = 0
    assert any(not same(expected[name], before[name]) for name in before)
    assert all(same(after[name], expected[name]) for name in before)
    network = Tiny().eval()
    network.load_state_dict(after)
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(prune(victim, mask).logits(images), network(NORM(images)), rtol=1e-5, atol=1e-5)
