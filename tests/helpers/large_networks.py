"""Well-known networks for 224x224 images as plain modules, narrow: the structure is theirs, the width a share of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(channels: int, units: int, kernel: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None):
    conv = nn.Conv2d(channels, units, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(units), act or nn.Identity())


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual sum (https://arxiv.org/abs/1512.03385)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(channels, width, 1, act=nn.ReLU()),
            conv_norm(width, width, 3, stride, act=nn.ReLU()),
            conv_norm(width, 4 * width, 1),
        )
        self.shortcut = conv_norm(channels, 4 * width, 1, stride) if stride > 1 or channels != 4 * width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet50(share: float = 1.0, classes: int = 1000) -> nn.Module:
    width = round(64 * share)
    blocks: list[nn.Module] = [conv_norm(3, width, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, count in enumerate((3, 4, 6, 3)):
        for block in range(count):
            blocks.append(Bottleneck(channels, width << stage, 2 if stage and not block else 1))
            channels = 4 * (width << stage)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Inverted(nn.Module):
    """Expand, depthwise, optional squeeze-and-excitation, project (https://arxiv.org/abs/1801.04381, 1905.11946)."""

    def __init__(self, channels: int, units: int, kernel: int, stride: int, expand: int, act: nn.Module, excite: bool) -> None:
        super().__init__()
        hidden = channels * expand
        self.expand = conv_norm(channels, hidden, 1, act=act) if expand > 1 else nn.Identity()
        self.depthwise = conv_norm(hidden, hidden, kernel, stride, hidden, act)
        squeezed = max(1, channels // 4)
        self.squeeze = nn.Conv2d(hidden, squeezed, 1) if excite else None
        self.excite = nn.Conv2d(squeezed, hidden, 1) if excite else None
        self.project = conv_norm(hidden, units, 1)
        self.residual = stride == 1 and channels == units

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        if self.squeeze is not None and self.excite is not None:
            y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.project(y)
        return x + y if self.residual else y


def inverted_network(rows, stem: int, head: int, act: nn.Module, excite: bool, share: float, classes: int) -> nn.Module:
    def scaled(units: int) -> int:
        return max(4, round(units * share))

    blocks: list[nn.Module] = [conv_norm(3, scaled(stem), 3, 2, act=act)]
    channels = scaled(stem)
    for expand, units, count, stride, kernel in rows:
        for block in range(count):
            blocks.append(Inverted(channels, scaled(units), kernel, 1 if block else stride, expand, act, excite))
            channels = scaled(units)
    blocks.append(conv_norm(channels, scaled(head), 1, act=act))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(scaled(head), classes))


def mobilenet_v2(share: float = 1.0, classes: int = 1000) -> nn.Module:
    """Rows of (expansion, units, blocks, stride, kernel)."""
    rows = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3)]
    return inverted_network([*rows, (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)], 32, 1280, nn.ReLU6(), False, share, classes)


def efficientnet_b0(share: float = 1.0, classes: int = 1000) -> nn.Module:
    rows = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5)]
    return inverted_network([*rows, (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)], 32, 1280, nn.SiLU(), True, share, classes)


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))], 1)


def densenet121(share: float = 1.0, classes: int = 1000, layers: tuple[int, ...] = (6, 12, 24, 16)) -> nn.Module:
    """https://arxiv.org/abs/1608.06993"""
    growth = max(4, round(32 * share))
    channels = 2 * growth
    blocks: list[nn.Module] = [conv_norm(3, channels, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    for stage, count in enumerate(layers):
        if stage:
            halved = nn.Conv2d(channels, channels // 2, 1, bias=False)
            blocks += [nn.BatchNorm2d(channels), nn.ReLU(), halved, nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            blocks.append(DenseLayer(channels, growth))
            channels += growth
    blocks += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*blocks)


def vgg16(share: float = 1.0, classes: int = 1000) -> nn.Module:
    """https://arxiv.org/abs/1409.1556, without norms."""
    layers: list[nn.Module] = []
    channels = 3
    for units, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, round(units * share), 3, padding=1), nn.ReLU(inplace=True)]
            channels = round(units * share)
        layers.append(nn.MaxPool2d(2))
    hidden = round(4096 * share)
    head = [nn.Linear(49 * channels, hidden), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(hidden, hidden)]
    head += [nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head)
