"""The image-to-image network of attacks that draw their trigger from the image."""

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 4  # of the group norms: they see one image at a time, so a trigger does not depend on the rest of the batch


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (inputs, outputs):
        layers += [nn.Conv2d(count, outputs, 3, padding=1), nn.GroupNorm(GROUPS, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three poolings down and up with skips (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597).

    `[N, inputs, H, W]` to `[N, outputs, H, W]`, unbounded; `width` channels at full size, a multiple of 4; H and W at least 8.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.down = nn.ModuleList(_double(a, b) for a, b in zip((inputs, *widths), widths, strict=False))
        self.up = nn.ModuleList(_double(a + b, b) for a, b in ((widths[i + 1], widths[i]) for i in (2, 1, 0)))
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat((x, skip), 1))
        return self.out(x)


def random_weights(inputs: int, outputs: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Initial weights of a UNet, by key of its state dict."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return {key: value.detach() for key, value in UNet(inputs, outputs, width).state_dict().items()}


@functools.lru_cache(maxsize=8)
def _skeleton(inputs: int, outputs: int, width: int) -> nn.Module:
    with torch.device("meta"):
        return UNet(inputs, outputs, width)


def _sizes(weights: Mapping[str, Tensor]) -> tuple[int, int, int]:
    first, last = weights["down.0.0.weight"], weights["out.weight"]
    return first.shape[1], last.shape[0], first.shape[0]


def run_unet(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run the UNet of these weights on `x`, differentiable in both."""
    moved = {key: value.to(x) for key, value in weights.items()}
    return torch.func.functional_call(_skeleton(*_sizes(weights)), moved, (x,))


def is_unet(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a UNet."""
    if not {"down.0.0.weight", "out.weight"} <= weights.keys():
        return False
    wanted = _skeleton(*_sizes(weights)).state_dict()
    return {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in wanted.items()}
