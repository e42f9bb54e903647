"""Evaluator.score against the gated graph in float64 and against the weight-edited network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.archs import InvertedResidual, build_network
from onp.data import Normalisation
from onp.errors import InputError
from onp.evaluator import Batch, Evaluator, Scores, TriggeredBatch
from onp.plan import gated_forward
from onp.victim import Victim, victim_from_module

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


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=NETWORKS)
def victim(request) -> Victim:
    return lively_victim(NETWORKS[request.param])


@pytest.fixture(scope="module")
def preact() -> Victim:
    return lively_victim(NETWORKS["preact"])


def batches(
    clean: int = 37, families: tuple[int, ...] = (23, 14), channels: int = 3
) -> tuple[Batch, list[TriggeredBatch]]:
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


def reference(
    victim: Victim, mask: Tensor, clean: Batch, triggered: list[TriggeredBatch]
) -> tuple[list[Tensor], list[Tensor]]:
    """Float64 hits and probabilities, one tensor a batch; hits of near-ties are NaN."""
    hits, probabilities = [], []
    for batch in (clean, *triggered):
        wanted = batch.target if isinstance(batch, TriggeredBatch) else batch.labels
        logits = gated_forward(victim, batch.images.double(), mask.double())
        top = logits.topk(2, 1).values
        hit = (logits.argmax(1) == wanted).double()
        hit[top[:, 0] - top[:, 1] < 1e-4] = torch.nan
        counts = (
            batch.labels != wanted if isinstance(batch, TriggeredBatch) else torch.ones(len(wanted), dtype=torch.bool)
        )
        hits.append(hit[counts])
        probabilities.append(logits.softmax(1).gather(1, wanted[:, None])[:, 0][counts])
    return hits, probabilities


def assert_matches(
    scores: Scores, masks: Tensor, victim: Victim, clean: Batch, triggered: list[TriggeredBatch]
) -> None:
    for row, mask in enumerate(masks):
        hits, probabilities = reference(victim, mask, clean, triggered)
        counts = [scores.acc_count[row], *scores.asr_count[row]]
        shares = [scores.acc[row], *scores.asr[row]]
        soft = [scores.acc_soft[row], *scores.asr_soft[row]]
        for count, share, mean, hit, probability in zip(counts, shares, soft, hits, probabilities, strict=True):
            certain = int(hit.nansum())
            assert certain <= count <= certain + int(hit.isnan().sum())
            assert share == pytest.approx(int(count) / len(hit), abs=1e-12)
            assert mean == pytest.approx(float(probability.mean()), abs=1e-5)


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


def test_gates_mean_the_weight_edit(victim):
    images = torch.randn(9, 3, SIZE, SIZE)
    for mask in random_masks(victim, 4):
        gated = gated_forward(victim, images.double(), mask.double())
        torch.testing.assert_close(gated, edited_logits(victim, mask, images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "onednn"])
def test_scores_match_the_reference(victim, backend):
    clean, triggered = batches()
    evaluator = Evaluator(victim, clean, triggered, backend=backend, precision="float32", chunk=20)
    masks = random_masks(victim, 6)
    assert_matches(evaluator.score(masks), masks, victim, clean, triggered)
    assert evaluator.families == ("family0", "family1")
    assert evaluator.backend == backend


@pytest.mark.parametrize("backend", ["torch", "onednn"])
def test_commits_and_memory_budgets_change_nothing(victim, backend):
    clean, triggered = batches(19, (11,))
    whole = 30 * 4 * 200 * SIZE * SIZE
    for budget in (0, whole // 20, whole):
        chunk = int(torch.randint(3, 40, ()))
        evaluator = Evaluator(
            victim, clean, triggered, backend=backend, precision="float32", memory_budget=budget, chunk=chunk
        )
        base = torch.ones(victim.units, dtype=torch.bool)
        for _ in range(3):
            layer = victim.layers[int(torch.randint(len(victim.layers), ()))]
            masks = base.repeat(3, 1)
            masks[:, layer.offset : layer.offset + layer.units] = torch.rand(3, layer.units) > 0.4
            assert_matches(evaluator.score(masks), masks, victim, clean, triggered)
            base = masks[int(torch.randint(3, ()))]
            evaluator.commit(base)
            assert evaluator.cached_bytes <= budget


def test_masks_from_layer_to_layer_reuse_the_prefix(preact):
    """Committed first to last, every layer's candidates start at or behind the nearest cut."""
    clean, triggered = batches(16, (8,))
    evaluator = Evaluator(preact, clean, triggered, precision="float32")
    base = torch.ones(preact.units, dtype=torch.bool)
    for layer in preact.layers:
        masks = base.repeat(2, 1)
        masks[:, layer.offset : layer.offset + layer.units] = torch.rand(2, layer.units) > 0.3
        assert_matches(evaluator.score(masks), masks, preact, clean, triggered)
        evaluator.commit(masks[1])
        base = masks[1]
    evaluator.commit(torch.ones(preact.units, dtype=torch.bool))
    masks = random_masks(preact, 3)
    assert_matches(evaluator.score(masks), masks, preact, clean, triggered)


@pytest.mark.parametrize("chunk", [None, 7])
def test_chunks_side_by_side_change_nothing(preact, chunk):
    clean, triggered = batches()
    masks = random_masks(preact, 3)
    torch.set_num_threads(3)
    try:
        evaluator = Evaluator(preact, clean, triggered, precision="float32", chunk=chunk)
        assert_matches(evaluator.score(masks[:2]), masks[:2], preact, clean, triggered)
        evaluator.commit(masks[1])
        assert_matches(evaluator.score(masks[2:]), masks[2:], preact, clean, triggered)
    finally:
        torch.set_num_threads(1)


def test_known_masks_are_remembered(preact):
    clean, triggered = batches()
    evaluator = Evaluator(preact, clean, triggered)
    masks = random_masks(preact, 3)
    first = evaluator.score(masks[[0, 1, 0, 2, 1]])
    assert evaluator.evaluations == 3
    evaluator.commit(masks[2])
    second = evaluator.score(masks[[2, 2, 0]])
    assert evaluator.evaluations == 3
    assert evaluator.seconds > 0
    for name in ("acc", "asr", "acc_soft", "asr_soft", "acc_count", "asr_count"):
        torch.testing.assert_close(getattr(second, name), getattr(first, name)[[3, 3, 0]], rtol=0, atol=0)
    again = Evaluator(preact, clean, triggered).score(masks[:1])
    assert again.acc_count[0] == first.acc_count[0] == first.acc_count[2]


def test_shapes_dtypes_and_no_masks(preact):
    clean, triggered = batches()
    evaluator = Evaluator(preact, clean, triggered)
    for count in (0, 1):
        scores = evaluator.score(torch.ones(count, preact.units, dtype=torch.bool))
        assert scores.acc.shape == scores.acc_soft.shape == scores.acc_count.shape == (count,)
        assert scores.asr.shape == scores.asr_soft.shape == scores.asr_count.shape == (count, 2)
        assert scores.acc.dtype == scores.asr.dtype == scores.acc_soft.dtype == scores.asr_soft.dtype == torch.float64
        assert scores.acc_count.dtype == scores.asr_count.dtype == torch.int64
    assert evaluator.evaluations == 1


def test_strided_masks(preact):
    clean, triggered = batches()
    masks = random_masks(preact, 4)
    strided = masks.t().contiguous().t()
    every_other = torch.stack([masks, ~masks], 2).flatten(1)[:, ::2]
    evaluators = [Evaluator(preact, clean, triggered) for _ in range(3)]
    scores = [e.score(m) for e, m in zip(evaluators, (masks, strided, every_other), strict=True)]
    assert not strided.is_contiguous() and not every_other.is_contiguous()
    for other in scores[1:]:
        assert torch.equal(other.acc_count, scores[0].acc_count) and torch.equal(other.asr_count, scores[0].asr_count)


def test_images_of_the_target_class_do_not_count(preact):
    clean, _ = batches()
    images, labels = torch.randn(10, 3, SIZE, SIZE), torch.tensor([3, 3, -1, 0, 1, 2, 3, 4, 5, 3])
    predicted = preact.model(images).argmax(1)
    evaluator = Evaluator(preact, clean, [TriggeredBatch("patch", images, labels, torch.full((10,), 3))], precision="float32")
    scores = evaluator.score(torch.ones(1, preact.units, dtype=torch.bool))
    assert scores.asr_count[0, 0] == ((predicted == 3) & (labels != 3)).sum()
    assert scores.asr[0, 0] == pytest.approx(int(scores.asr_count[0, 0]) / 6)


def test_without_families_and_with_one_channel():
    def grey() -> nn.Module:
        return build_network("preact_resnet18:width=4,channels=1")

    victim = lively_victim(grey, channels=1)
    clean, triggered = batches(channels=1)
    masks = random_masks(victim, 3)
    scores = Evaluator(victim, clean, triggered, precision="float32", chunk=9).score(masks)
    assert_matches(scores, masks, victim, clean, triggered)
    assert Evaluator(victim, clean, []).score(masks).asr.shape == (3, 0)


def test_bfloat16_stays_close(preact):
    clean, triggered = batches(100, (100,))
    masks = random_masks(preact, 2)
    exact = Evaluator(preact, clean, triggered, precision="float32").score(masks)
    for backend in ("torch", "onednn"):
        evaluator = Evaluator(preact, clean, triggered, backend=backend, precision="bfloat16")
        assert evaluator.precision == "bfloat16"
        rough = evaluator.score(masks)
        torch.testing.assert_close(rough.acc_soft, exact.acc_soft, rtol=0, atol=0.02)
        torch.testing.assert_close(rough.asr, exact.asr, rtol=0, atol=0.08)


def test_automatic_precision_falls_back_when_labels_disagree(preact, monkeypatch, caplog):
    clean, triggered = batches()
    monkeypatch.setattr("onp.cpu_engine.matrix_units", lambda: True)
    monkeypatch.setattr("onp.cpu_engine.AGREEMENT", 1.1)
    assert Evaluator(preact, clean, triggered).precision == "float32"
    assert "computing in float32" in caplog.text
    monkeypatch.setattr("onp.cpu_engine.AGREEMENT", 0.0)
    assert Evaluator(preact, clean, triggered).precision == "bfloat16"


def test_missing_backend_says_why(preact, monkeypatch):
    clean, triggered = batches()
    monkeypatch.setattr("onp.cpu_engine.missing", lambda: "this torch was built without oneDNN")
    with pytest.raises(InputError, match="built without oneDNN"):
        Evaluator(preact, clean, triggered, backend="onednn")
    assert Evaluator(preact, clean, triggered).backend == "torch"
    with pytest.raises(InputError, match="not known"):
        Evaluator(preact, clean, triggered, backend="cudnn")


def test_bad_batches_and_masks(preact):
    clean, (family, _) = batches()
    same = TriggeredBatch("same", family.images, family.target, family.target)
    far = TriggeredBatch("far", family.images, family.labels, torch.full_like(family.target, 10))
    small = TriggeredBatch("small", family.images[..., 1:], family.labels, family.target)
    short = TriggeredBatch("short", family.images, family.labels[1:], family.target)
    for bad, words in ((same, "target class"), (far, "0 to 9"), (small, "the network takes"), (short, "labels")):
        with pytest.raises(InputError, match=words):
            Evaluator(preact, clean, [bad])
    with pytest.raises(InputError, match="not all different"):
        Evaluator(preact, clean, [family, family])
    with pytest.raises(InputError, match="clean batch"):
        Evaluator(preact, Batch(clean.images, clean.labels - 11), [family])
    with pytest.raises(InputError, match="chunk"):
        Evaluator(preact, clean, [family], chunk=0)
    evaluator = Evaluator(preact, clean, [family])
    for masks in (
        torch.ones(1, preact.units),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(preact.units, dtype=torch.bool),
    ):
        with pytest.raises(InputError, match="give bool"):
            evaluator.score(masks)
