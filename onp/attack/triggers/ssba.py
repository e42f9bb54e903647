"""SSBA: a bit string hidden in each image by a trained encoder (Li et al. 2021, https://arxiv.org/abs/2012.03816)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp import progress
from onp.attack.triggers.base import Trigger
from onp.attack.triggers.crafting import Crafting, CraftingBudget, Shape
from onp.attack.triggers.unet import GROUPS, is_unet, random_weights, run_unet
from onp.errors import InputError

EPOCHS, BATCH = 20, 64
IMAGE_WEIGHT = 30.0  # of the squared error of the image against the cross-entropy of the bits, once bits are read
READ = 0.9  # share of bits that makes an encoder usable


@dataclass(frozen=True)
class SSBA(Trigger):
    """x' = x + residual(x, secret), clipped; `encoder` are the weights of a U-Net that sees the image and `secret`.

    `secret` is float32 `[1, H, W]`, one fixed string of 100 bits spread over the image. The encoder is trained with a decoder
    that must read random strings back (StegaStamp, https://arxiv.org/abs/1904.05343, without its distortions, as in SSBA).
    """

    name: ClassVar[str] = "ssba"
    summary: ClassVar[str] = "a bit string hidden by an encoder that is trained first (Li et al. 2021)"
    strongest: ClassVar[float] = 1e6
    secret: Tensor
    encoder: dict[str, Tensor]
    amount: float

    def __post_init__(self) -> None:
        if not is_unet(self.encoder):
            raise InputError("These are not the weights of an ssba trigger.")

    def __call__(self, images: Tensor) -> Tensor:
        self.check(images, (self.encoder["out.weight"].shape[0], *self.secret.shape[1:]))
        secret = self.secret.to(images).expand(len(images), -1, -1, -1)
        return hide(self.encoder, images, secret, self.amount)

    def example_shape(self) -> Shape:
        _, height, width = self.secret.shape
        return self.encoder["out.weight"].shape[0], height, width

    def check_amplitude(self) -> None:
        self.check_strength(self.amount)

    @classmethod
    def craft(cls, crafting: Crafting) -> "SSBA":
        """Train encoder and decoder on the training images; `strength` scales the residual afterwards, 1 as published.

        Raises InputError when the decoder reads less than 90 % of the bits in the end: the encoder hides nothing then.
        """
        (channels, height, width), budget = crafting.shape, crafting.budget
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=crafting.generator)))
            spread = _Spread(budget.bits, height, width).to(crafting.device)
            decoder = _decoder(channels, budget).to(crafting.device)
        drawn = random_weights(channels + 1, channels, budget.unet_width, crafting.generator)
        encoder = {key: value.to(crafting.device).requires_grad_() for key, value in drawn.items()}
        _train(crafting, encoder, spread, decoder)
        bits = _bits(1, crafting)
        images, _ = crafting.sample(256)
        with torch.no_grad():
            secret = spread(bits)
            stamped = hide(encoder, images, secret.expand(len(images), -1, -1, -1), 1.0)
            read = float(((decoder(stamped) > 0) == (bits > 0.5)).float().mean())
        if read < READ:
            raise InputError(
                f"The ssba encoder is not trained enough: its decoder reads only {100 * read:.0f} % of the bits; give it more "
                "passes with --craft-epochs, or more images."
            )
        amount = 1.0 if crafting.strength is None else crafting.strength
        return cls(secret[0].cpu(), {key: value.detach().cpu() for key, value in encoder.items()}, amount)


def hide(encoder: dict[str, Tensor], images: Tensor, secret: Tensor, amount: float) -> Tensor:
    """Add the residual that the encoder draws for `images` `[N, C, H, W]` and `secret` `[N, 1, H, W]`."""
    return (images + amount * run_unet(encoder, torch.cat((images - 0.5, secret), 1))).clamp(0, 1)


def _bits(count: int, crafting: Crafting) -> Tensor:
    """Random strings, float32 `[count, bits]` in {0, 1}."""
    return torch.randint(0, 2, (count, crafting.budget.bits), generator=crafting.generator).float().to(crafting.device)


class _Spread(nn.Module):
    """Bits `[N, bits]` in {0, 1} as a plane `[N, 1, H, W]`."""

    def __init__(self, bits: int, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width
        self.linear = nn.Linear(bits, 16 * 16)

    def forward(self, bits: Tensor) -> Tensor:
        return F.interpolate(self.linear(2 * bits - 1).view(-1, 1, 16, 16), self.size)


def _decoder(channels: int, budget: CraftingBudget) -> nn.Sequential:
    width = budget.unet_width
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, 1, 1), (1, 2, 2), (2, 4, 2), (4, 4, 2)):
        count = inputs if not layers else inputs * width
        layers += [nn.Conv2d(count, outputs * width, 3, stride, 1), nn.GroupNorm(GROUPS, outputs * width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(4 * width * 16, budget.bits))


def _train(crafting: Crafting, encoder: dict[str, Tensor], spread: nn.Module, decoder: nn.Module) -> None:
    """Bits alone at first; the image's weight rises as soon as they are read."""
    count, epochs, size = len(crafting.images), crafting.epochs or EPOCHS, crafting.budget.batch or BATCH
    optimiser = torch.optim.Adam([*encoder.values(), *spread.parameters(), *decoder.parameters()], 1e-3)
    weight, steps = 0.0, epochs * -(-count // size)
    with progress.stage("training the encoder", steps, crafting.quiet) as bar:
        for _ in range(epochs):
            for index in torch.randperm(count, generator=crafting.generator).split(size):
                images = crafting.images.subset(index).pixels().to(crafting.device)
                bits = _bits(len(images), crafting)
                stamped = hide(encoder, images, spread(bits), 1.0)
                logits = decoder(stamped)
                read = float(((logits > 0) == (bits > 0.5)).float().mean())
                weight = min(IMAGE_WEIGHT, weight + IMAGE_WEIGHT / 500) if read > READ else weight
                loss = F.binary_cross_entropy_with_logits(logits, bits) + weight * F.mse_loss(stamped, images)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                bar.advance(note=f"{100 * read:.0f} % of the bits")
