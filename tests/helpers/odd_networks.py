"""Small networks of the kinds that graphs are captured from: residual, dense, gated, grouped, attention, shared weights."""

import torch
import torch.nn.functional as F
from torch import nn


def norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), *norm_relu(6), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), *norm_relu(8)
        )
        self.hidden = nn.Linear(8 * 4 * 4, 9)
        self.norm = nn.BatchNorm1d(9)
        self.classifier = nn.Linear(9, 5)

    def forward(self, x):
        x = self.features(x)
        return self.classifier(F.dropout(F.relu(self.norm(self.hidden(x.view(x.size(0), -1)))), training=self.training))


class Block(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, 3x3, 1x1) residual block, with a projection when the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        kernels, widths = ((1, 3, 1), (4, 4, outputs)) if bottleneck else ((3, 3), (outputs, outputs))
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (kernel, width) in enumerate(zip(kernels, widths, strict=True)):
            step = stride if i == 0 else 1
            before = inputs if i == 0 else widths[i - 1]
            self.convs.append(nn.Conv2d(before, width, kernel, step, kernel // 2, bias=False))
            self.norms.append(nn.BatchNorm2d(width))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if i < len(self.convs) - 1:
                out = F.relu(out, inplace=True)
        out += shortcut
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    def __init__(self, bottleneck: bool = False) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), *norm_relu(6))  # a name like a prefix
        self.blocks = nn.Sequential(Block(6, 6, 1, bottleneck), Block(6, 10, 2, bottleneck), Block(10, 10, 1, bottleneck))
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.module(x)), 1).flatten(1))


class PreActBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreAct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.layer1, self.layer2 = PreActBlock(6, 6, 1), PreActBlock(6, 8, 2)
        self.bn, self.linear = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.avg_pool2d(x, 6).flatten(1))


class Inverted(nn.Module):
    """MobileNetV2 block, depthwise and with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.expand = nn.Sequential(nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True))
        depthwise = nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(12), nn.Hardswish())
        self.project = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.multiply = nn.Conv2d(6, 12, 3, groups=6)  # depth multiplier 2: not one to one
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(self.multiply(x)).mean((2, 3))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(7), nn.BatchNorm2d(10)])
        self.convs = nn.ModuleList([nn.Conv2d(width, 3, 3, padding=1, bias=False) for width in (4, 7)])
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.fc(F.relu(self.norms[-1](torch.cat(features, 1))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.squeeze2, self.excite2 = nn.Linear(8, 4), nn.Linear(4, 8)
        self.last, self.fc = nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        x = self.bn(self.conv(x))
        x = x * torch.sigmoid(x)  # the layer reaches the product directly too: not a gate
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        gate = self.excite2(F.relu(self.squeeze2(x.mean((2, 3)))))
        x = x * (F.relu6(gate + 3) / 6)[:, :, None, None]
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU()),
            *(nn.Conv2d(6, 9, 3, groups=3, padding="same"), *norm_relu(9)),
            *(nn.Conv2d(9, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False), nn.ELU()),
        )
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(F.max_pool2d(self.convs(x), 6).flatten(1))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 10, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.ln, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = self.encoder(x)
        x = x + self.fc2(F.gelu(self.fc1(self.ln(x))))
        return self.head(x[:, 0])


class Functional(nn.Module):
    """No module for anything that has no weights; writes in place, through a view too; two norms read one conv."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3)
        self.a, self.b = nn.BatchNorm2d(7), nn.BatchNorm2d(7)
        self.fc = nn.Linear(7, 5)

    def forward(self, x):
        x = F.leaky_relu_(self.conv1(x), 0.1)
        x[:, :, 0] += 1.0
        x = F.dropout(F.pad(x, (1, 1, 1, 1)), 0.5, self.training)
        x = self.conv2(x)
        x = self.a(x) + F.relu(self.b(x))
        return self.fc(F.adaptive_max_pool2d(x, (1, 1)).squeeze(3).squeeze(2))


NETWORKS = {
    "vgg": Vgg,
    "resnet": ResNet,
    "bottleneck": lambda: ResNet(bottleneck=True),
    "preact": PreAct,
    "inverted": Inverted,
    "dense": Dense,
    "squeeze_excite": SqueezeExcite,
    "grouped": Grouped,
    "vit": Vit,
    "functional": Functional,
}
