"""Small networks with every structure a plan knows, and what their masks must give: for the tests of the evaluator."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.data.normalisation import Normalisation
from onp.engine.evaluator import Scores
from onp.engine.scoring import Batch, TriggeredBatch
from onp.model.archs import InvertedResidual, build_network
from onp.model.interpret import gated_forward
from onp.model.victim import Victim, victim_from_module
from onp_kernels.reference_conv import MOST_DIVERGENCE

SIZE = 16


class DenseNet(nn.Module):
    """Concatenated features, norms that read several layers, a transition with pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms1 = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs1 = nn.ModuleList(nn.Conv2d(8 + 4 * i, 12, 1, bias=False) for i in range(3))
        self.norms2 = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
        self.convs2 = nn.ModuleList(nn.Conv2d(12, 4, 3, padding=1, bias=False) for _ in range(3))
        self.norm, self.linear = nn.BatchNorm2d(20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm1, conv1, norm2, conv2 in zip(self.norms1, self.convs1, self.norms2, self.convs2, strict=True):
            x = torch.cat([x, conv2(F.relu(norm2(conv1(F.relu(norm1(x))))))], 1)
        return self.linear(F.avg_pool2d(F.relu(self.norm(x)), SIZE).flatten(1))


class SqueezeExcite(nn.Module):
    """A squeeze-and-excitation block with silu and a residual, then a two-layer head with a 1-d norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.expand, self.norm1 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depth, self.norm2 = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.norm3 = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.hidden, self.norm4, self.head = nn.Linear(8, 24), nn.BatchNorm1d(24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        y = F.silu(self.norm2(self.depth(F.silu(self.norm1(self.expand(x))))))
        y = y * torch.sigmoid(self.up(F.silu(self.down(y.mean((2, 3), keepdim=True)))))
        x = x + self.norm3(self.project(y))
        return self.head(F.relu(self.norm4(self.hidden(x.mean((2, 3))))))


class Unusual(nn.Module):
    """An operator no plan knows, a split, a grouped conv, in-place arithmetic and a flattened spatial map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1, groups=2)
        self.norm, self.c = nn.BatchNorm2d(12), nn.Conv2d(6, 12, 3, 1, 2, dilation=2)
        self.hidden, self.head = nn.Linear(12 * 16, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.erf(self.b(torch.erf(self.a(x))))
        left, right = self.norm(x).chunk(2, 1)
        x = self.c(left * torch.cos(right))
        x += 0.5
        x = F.max_pool2d(F.hardtanh(x), 2)
        return self.head(F.relu(self.hidden(x.view(x.shape[0], -1)), inplace=True))


NETWORKS = {
    "vgg": lambda: build_network("vgg11_bn:width=4"),
    "resnet": lambda: build_network("resnet18:width=4"),
    "preact": lambda: build_network("preact_resnet18:width=4"),
    "mobilenet": lambda: nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(InvertedResidual(8, 8, 1, 1), InvertedResidual(8, 12, 2, 3), InvertedResidual(12, 12, 1, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
    ),
    "densenet": DenseNet,
    "squeeze-excite": SqueezeExcite,
    "unusual": Unusual,
}


def lively_victim(build, channels: int = 3) -> Victim:
    """A random network whose norms have seen data and whose predictions differ from image to image."""
    network = build().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    for _ in range(3):
        network(torch.randn(64, channels, SIZE, SIZE))
    network.eval()
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        logits = network(torch.randn(256, channels, SIZE, SIZE))
        head.bias -= logits.mean(0)
        head.weight *= 2 / logits.std()
        head.bias *= 2 / logits.std()
    return victim_from_module(network, Normalisation.parse("none"), (channels, SIZE, SIZE))


def batches(clean: int = 37, families: tuple[int, ...] = (23, 14), channels: int = 3) -> tuple[Batch, list[TriggeredBatch]]:
    def images(count: int) -> Tensor:
        return torch.randn(count, channels, SIZE, SIZE)

    triggered = [
        TriggeredBatch(f"family{i}", images(n), torch.randint(-1, 10, (n,)), torch.randint(0, 10, (n,)))
        for i, n in enumerate(families)
    ]
    return Batch(images(clean), torch.randint(0, 10, (clean,))), triggered


def random_masks(victim: Victim, count: int) -> Tensor:
    """Light and heavy random pruning, all kept, and one layer pruned away altogether."""
    masks = torch.rand(count, victim.units) > torch.rand(count, 1) * 0.4
    masks[0] = True
    layer = victim.layers[int(torch.randint(len(victim.layers), ()))]
    masks[1, layer.offset : layer.offset + layer.units] = False
    return masks


def reference(victim: Victim, mask: Tensor, clean: Batch, triggered: list[TriggeredBatch]) -> tuple[list[Tensor], list[Tensor]]:
    """Float64 hits, NaN for near-ties, and probabilities of what is wanted, a tensor a batch; last the divergences (clean)."""
    hits, values = [], []
    whole = gated_forward(victim, clean.images.double(), torch.ones(victim.units, dtype=torch.float64))
    for batch in (clean, *triggered):
        wanted = batch.target if isinstance(batch, TriggeredBatch) else batch.labels
        logits = gated_forward(victim, batch.images.double(), mask.double())
        top = logits.topk(2, 1).values
        hit = (logits.argmax(1) == wanted).double()
        hit[top[:, 0] - top[:, 1] < 1e-4] = torch.nan
        counts = batch.labels != wanted if isinstance(batch, TriggeredBatch) else torch.ones(len(wanted), dtype=torch.bool)
        hits.append(hit[counts])
        values.append(logits.softmax(1).gather(1, wanted[:, None])[:, 0][counts])
        if batch is clean:
            divergences = divergence(whole, logits)
    return hits, [*values, divergences]


def divergence(whole: Tensor, pruned: Tensor) -> Tensor:
    """KL [N] from the probabilities of logits `whole` [N, classes] to those of `pruned`."""
    each = F.kl_div(pruned.log_softmax(1), whole.log_softmax(1), reduction="none", log_target=True)
    return each.sum(1).clamp_max(MOST_DIVERGENCE)


def assert_matches(scores: Scores, masks: Tensor, victim: Victim, clean: Batch, triggered: list[TriggeredBatch]) -> None:
    for row, mask in enumerate(masks):
        hits, values = reference(victim, mask, clean, triggered)
        counts = [scores.acc_count[row], *scores.asr_count[row]]
        shares = [scores.acc[row], *scores.asr[row]]
        means = [scores.acc_soft[row], *scores.asr_soft[row], scores.divergence[row]]
        for mean, value in zip(means, values, strict=True):
            assert mean == pytest.approx(float(value.mean()), abs=1e-5)
        for count, share, hit in zip(counts, shares, hits, strict=True):
            certain = int(hit.nansum())
            assert certain <= count <= certain + int(hit.isnan().sum())
            assert share == pytest.approx(int(count) / len(hit), abs=1e-12)


def edited_logits(victim: Victim, mask: Tensor, images: Tensor) -> Tensor:
    """The original network code in float64 with the rows of pruned units zero in its state dict."""
    network = copy.deepcopy(victim.model)
    state = network.state_dict()
    for layer in victim.layers:
        pruned = ~mask[layer.offset : layer.offset + layer.units]
        for key in (layer.weight, layer.bias, *layer.norm):
            if key is not None:
                state[key][pruned] = 0
    network.load_state_dict(state)
    with torch.no_grad():
        return network.double()(images.double())
