"""The built-in networks of the field, with a width: `build_network("preact_resnet18:width=32,classes=10")`.

Parameter names follow the versions that backdoor benchmarks train (a 3x3 stem for small images, `layerS.B.convN`, `linear`),
so that their checkpoints load here and ours load there.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.errors import InputError
from onp.model.convnext import ConvNeXt


class PreActBlock(nn.Module):
    """Pre-activation residual block: norm, ReLU, conv, twice (He et al. 2016, https://arxiv.org/abs/1603.05027)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut: nn.Module | None = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
        else:
            self.shortcut = None

    def forward(self, x: Tensor) -> Tensor:
        pre = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(pre)
        return self.conv2(F.relu(self.bn2(self.conv1(pre)))) + skip


class BasicBlock(nn.Module):
    """Residual block with the norm after each conv (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        else:
            self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def _stages(block: type[nn.Module], width: int) -> list[nn.Sequential]:
    stages, inputs = [], width
    for index in range(4):
        outputs, stride = width * 2**index, 1 if index == 0 else 2
        stages.append(nn.Sequential(block(inputs, outputs, stride), block(outputs, outputs, 1)))
        inputs = outputs
    return stages


class PreActResNet18(nn.Module):
    """ResNet-18 of pre-activation blocks; input `[N, channels, H, W]` normalised, output logits `[N, classes]`."""

    def __init__(self, width: int = 64, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(PreActBlock, width)
        self.linear = nn.Linear(width * 8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResNet18(nn.Module):
    """ResNet-18 for small images; input `[N, channels, H, W]` normalised, output logits `[N, classes]`."""

    def __init__(self, width: int = 64, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(BasicBlock, width)
        self.linear = nn.Linear(width * 8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class VGG11BN(nn.Module):
    """VGG-11 with batch norm and one linear layer (https://arxiv.org/abs/1409.1556); pools stop at one pixel."""

    norm: Callable[[int], nn.Module] = nn.BatchNorm2d

    def __init__(self, width: int = 64, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for multiple, pool in ((1, True), (2, True), (4, False), (4, True), (8, False), (8, True), (8, False), (8, False)):
            outputs = width * multiple
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), self.norm(outputs), nn.ReLU()]
            if pool:
                layers.append(nn.MaxPool2d(2))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class VGG11GN(VGG11BN):
    """The same with group norm, which stores no statistics (Wu and He 2018, https://arxiv.org/abs/1803.08494)."""

    @staticmethod
    def norm(channels: int) -> nn.Module:
        """Groups of four channels or more."""
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 4)), channels)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018, https://arxiv.org/abs/1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.skip = stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 with the strides used for small images; `width=32` is the published network, 64 doubles every channel."""

    def __init__(self, width: int = 32, classes: int = 10, channels: int = 3) -> None:
        super().__init__()

        def scaled(count: int) -> int:
            return max(8, count * width // 32)

        inputs = scaled(32)
        layers: list[nn.Module] = [nn.Conv2d(channels, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU6()]
        table = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
        for expand, count, repeats, stride in table:
            for index in range(repeats):
                layers.append(InvertedResidual(inputs, scaled(count), stride if index == 0 else 1, expand))
                inputs = scaled(count)
        last = scaled(1280)
        layers += [nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class Attention(nn.Module):
    """Multi-head self-attention over tokens `[N, T, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        query, key, value = self.qkv(x).view(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Six pre-norm blocks of 4 heads over 4x4 patches, mean over the tokens (Dosovitskiy et al. 2020,
    https://arxiv.org/abs/2010.11929, with the head of Beyer et al. 2022, https://arxiv.org/abs/2205.01580).

    `width`, a multiple of 4, is the size of a token. Positions are learned for 8x8 patches (32x32 images) and interpolated for
    images of other sizes.
    """

    def __init__(self, width: int = 128, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        if width % 4:
            raise InputError(f"The width of vit is shared by 4 heads; {width} is no multiple of 4.")
        self.patch = nn.Conv2d(channels, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, width, 8, 8) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4) for _ in range(6)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x)
        position: Tensor = self.position
        if patches.shape[2:] != position.shape[2:]:
            position = F.interpolate(position, patches.shape[2:], mode="bilinear", align_corners=False)
        tokens = (patches + position).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(1))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet18": PreActResNet18,
    "resnet18": ResNet18,
    "vgg11_bn": VGG11BN,
    "vgg11_gn": VGG11GN,
    "mobilenet_v2": MobileNetV2,
    "vit": VisionTransformer,
    "convnext": ConvNeXt,
}


def parse_options(spec: str) -> tuple[str, dict[str, int]]:
    """Split `name:width=32,classes=10` into the name and its integer options.

    Raises:
        InputError: an option is not `key=integer` with a positive integer.
    """
    name, _, text = spec.partition(":")
    options: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value.isdigit() or int(value) < 1:
            raise InputError(f"'{part}' in '{spec}' is not an option; write options as {name}:width=32,classes=10.")
        options[key.strip()] = int(value)
    return name, options


def build_network(spec: str) -> nn.Module:
    """Build a built-in network from `name:width=..,classes=..,channels=..` with freshly initialised float32 weights.

    Raises:
        InputError: the name or one of the options is unknown.
    """
    name, options = parse_options(spec)
    if name not in NETWORKS:
        raise InputError(f"There is no built-in network '{name}'; choose one of {', '.join(NETWORKS)}.")
    unknown = options.keys() - {"width", "classes", "channels"}
    if unknown:
        raise InputError(f"'{sorted(unknown)[0]}' is not an option of {name}; its options are width, classes and channels.")
    return NETWORKS[name](**options)


def option(spec: str, key: str, default: int) -> int:
    """The integer option `key` of a built-in network's spec, or `default`."""
    return parse_options(spec)[1].get(key, default)
