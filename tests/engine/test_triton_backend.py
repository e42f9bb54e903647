"""The Triton engine under the interpreter, against the gated graph in float64 and the table of what it computes how."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.evaluator_cases import divergence
from torch import Tensor, nn

from onp.data.normalisation import Normalisation
from onp.engine.backend import Machine, bfloat16_agrees, choose_backend
from onp.engine.evaluator import Evaluator
from onp.engine.plan import plan_of
from onp.engine.scoring import Batch, TriggeredBatch
from onp.engine.settings import EvaluatorSettings, Tuning
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.interpret import gated_forward
from onp.model.victim import Victim, victim_from_module

pytest.importorskip("triton", reason="the extra `triton` is not installed")

from onp.engine.scoring import ScoreCounter
from onp.engine.triton_backend.engine import Downstream, TritonEngine, label_agreement
from onp.engine.triton_backend.steps import EVERY_STEP, TritonSteps, Value

# NumPy's warning about how the interpreter turns a loop's bound into a number.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs on the CPU, in the interpreter")

SIZE = 6


class Residual(nn.Module):
    """Packed channels through a pooling, a residual sum with a masked shortcut, a norm alone, a mean behind a bare conv."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.shortcut = nn.Conv2d(5, 9, 3, 2, 1, bias=False), nn.Conv2d(6, 9, 1, 2)
        self.norm2, self.conv3 = nn.BatchNorm2d(9), nn.Conv2d(9, 9, (2, 1), padding=(1, 0))
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.norm0(self.stem(x))), 2)
        x = self.conv2(F.silu(self.norm1(self.conv1(x)))) + self.shortcut(x)
        x = self.conv3(F.relu(self.norm2(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Preactivated(nn.Module):
    """Norms behind sums that are read again, and behind one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norms = nn.Conv2d(3, 6, 3, padding=1), nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.conv1, self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 1, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.conv1(F.relu(self.norms[0](x))) + x
        x = self.conv2(F.silu(self.norms[1](x))) + x
        return self.head(F.relu(self.norms[2](x)).mean((2, 3)))


class Fallbacks(nn.Module):
    """Depthwise and grouped convs, an operator no plan knows, squeeze-and-excitation, the batch size as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6)
        self.depthwise, self.grouped = nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.Conv2d(6, 4, 1, groups=2)
        self.squeeze = nn.Conv2d(6, 6, 1)
        self.hidden, self.head = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.erf(self.norm(self.stem(x)))
        x = F.hardswish(self.depthwise(x))
        x = self.grouped(x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.head(F.hardtanh(self.hidden(x.view(x.shape[0], -1))))


@pytest.fixture(scope="module", params=[Residual, Preactivated, Fallbacks])
def victim(request) -> Victim:
    network = request.param().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    for _ in range(3):
        network(torch.randn(64, 3, SIZE, SIZE))
    network.eval()
    with torch.no_grad():
        logits = network(torch.randn(256, 3, SIZE, SIZE))
        network.head.bias -= logits.mean(0)
        network.head.weight *= 3 / logits.std()
        network.head.bias *= 3 / logits.std()
    return victim_from_module(network, Normalisation.parse("none"), (3, SIZE, SIZE))


def batches(clean: int, triggered: int) -> tuple[Batch, TriggeredBatch]:
    def images(count: int) -> Tensor:
        return torch.randn(count, 3, SIZE, SIZE)

    labels = torch.tensor([0, -1, 1, 2, 3] * 9)[:triggered]
    family = TriggeredBatch("patch", images(triggered), labels, torch.ones(triggered, dtype=torch.int64))
    return Batch(images(clean), torch.randint(0, 4, (clean,))), family


def assert_matches(evaluator: Evaluator, victim: Victim, masks: Tensor, clean: Batch, family: TriggeredBatch) -> None:
    """Counts within the near-ties of float64, mean divergences and probabilities to 1e-5."""
    scores = evaluator.score(masks)
    whole = gated_forward(victim, clean.images.double(), torch.ones(victim.units, dtype=torch.float64))
    counting = family.labels != family.target
    for row, mask in enumerate(masks):
        for images, wanted, count, mean in (
            (clean.images, clean.labels, scores.acc_count[row], scores.divergence[row]),
            (family.images[counting], family.target[counting], scores.asr_count[row, 0], scores.asr_soft[row, 0]),
        ):
            logits = gated_forward(victim, images.double(), mask.double())
            top = logits.topk(2, 1).values
            hit, tie = logits.argmax(1) == wanted, top[:, 0] - top[:, 1] < 1e-4
            assert int((hit & ~tie).sum()) <= int(count) <= int((hit | tie).sum())
            value = divergence(whole, logits) if images is clean.images else logits.softmax(1).gather(1, wanted[:, None])
            assert float(mean) == pytest.approx(float(value.mean()), abs=1e-5)


def layer_masks(victim: Victim, base: Tensor, layer, count: int) -> Tensor:
    masks = base.repeat(count, 1)
    masks[:, layer.offset : layer.offset + layer.units] = torch.rand(count, layer.units) > 0.4
    return masks


@interpreted
def test_scores_match_the_reference(victim):
    """Fresh masks over all units, then from layer to layer with commits; chunks of images, a layer pruned away, no budget."""
    clean, family = batches(5, 5)
    evaluator = Evaluator(victim, clean, [family], settings=EvaluatorSettings("triton", "float32", chunk=7))
    assert evaluator.backend == "triton" and evaluator.precision == "float32"
    masks = torch.rand(3, victim.units) > 0.3
    layer = victim.layers[int(torch.randint(len(victim.layers), ()))]
    masks[1, layer.offset : layer.offset + layer.units] = False
    assert_matches(evaluator, victim, masks, clean, family)
    base = masks[0]
    evaluator.commit(base)
    for layer in victim.layers[1::2]:
        candidates = layer_masks(victim, base, layer, 2)
        assert_matches(evaluator, victim, candidates, clean, family)
        base = candidates[1]
        evaluator.commit(base)
    assert evaluator.cached_bytes > 0
    frugal = Evaluator(victim, clean, [family], settings=EvaluatorSettings("triton", "float32", memory_budget=0))
    assert_matches(frugal, victim, candidates, clean, family)
    assert frugal.cached_bytes == 0


def test_what_is_packed_pooled_and_left_to_torch():
    network = Residual().eval()
    plan = plan_of(victim_from_module(network, Normalisation.parse("none"), (3, SIZE, SIZE)))
    steps = TritonSteps(plan, torch.float32)
    assert len(steps._packed) == 2  # the stem through its pooling, and conv1; not what a norm or a sum reads
    assert steps.tail.linear is plan.steps[-1]
    assert steps.tail.pooled == steps.tail.source
    assert len(steps.tail.skipped) == 3  # pooling, flattening, linear layer


@pytest.mark.parametrize("victim", [Fallbacks], indirect=True)
@interpreted
def test_masks_are_filled_up_and_keep_their_order(victim):
    """More masks than run together, with different first steps, come back in the order they went in."""
    clean, family = batches(3, 2)
    counter, plan = ScoreCounter(victim, clean, [family]), plan_of(victim)
    settings = EvaluatorSettings("triton", "float32", tuning=Tuning(batch_sizes=(1, 3)))
    engine = TritonEngine(plan, torch.cat([clean.images, family.images]), counter, settings)
    keep = np.random.default_rng().random((4, victim.units)) > 0.3
    keep[2, : victim.layers[-1].offset] = True
    first = np.array([0, 0, len(plan.steps) - 1, 0])
    together = engine.sums(keep, first)
    for row in (1, 2):
        alone = engine.sums(keep[row : row + 1], np.zeros(1, dtype=np.int64))
        assert torch.equal(alone[0, 0], together[row, 0])
        torch.testing.assert_close(alone[0, 1], together[row, 1], rtol=0, atol=1e-5)


def test_missing_backend_says_why():
    """Without the interpreter a victim on the CPU cannot have these kernels, nor anybody without triton."""
    machine, device = replace(Machine.here(), triton=True, interpreter=False), torch.device("cpu")
    assert choose_backend("auto", device, machine) in ("onednn", "torch")
    with pytest.raises(InputError, match="for NVIDIA GPUs"):
        choose_backend("triton", device, machine)
    with pytest.raises(InputError, match="triton is not installed"):
        choose_backend("triton", device, replace(machine, triton=False))


class Branched(nn.Module):
    """A shortcut that is computed before the convs beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 9, 1)
        self.conv1, self.conv2, self.head = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 9, 1), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = self.shortcut(x)
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x))) + short).mean((2, 3)))


@pytest.mark.parametrize("victim", [Branched], indirect=True)
@interpreted
def test_a_branch_that_no_mask_changes_is_computed_once(victim):
    """Masks over the shortcut alone: the conv beside it runs for one mask, the conv that adds the shortcut for all."""
    clean, family = batches(4, 3)
    shortcut = next(layer for layer in victim.layers if layer.name == "shortcut")
    masks = layer_masks(victim, torch.ones(victim.units, dtype=torch.bool), shortcut, 3)
    masks[:, shortcut.offset : shortcut.offset + 2] = torch.tensor([[0, 0], [0, 1], [1, 0]]) > 0
    evaluator = Evaluator(victim, clean, [family], settings=EvaluatorSettings("triton", "float32"))
    assert_matches(evaluator, victim, masks, clean, family)

    plan = plan_of(victim)
    index = {layer.name: position for layer in victim.layers for position, step in enumerate(plan.steps)
             if step.mask_slice is not None and step.mask_slice.offset == layer.offset}  # fmt: skip
    first = index["shortcut"]
    assert first < index["conv1"] < index["conv2"]
    unchanged = Downstream(plan).unchanged(masks.numpy(), np.ones(victim.units, dtype=bool), first)
    assert unchanged >> index["conv1"] & 1 and not unchanged >> index["conv2"] & 1 and not unchanged >> first & 1
    steps = TritonSteps(plan, torch.float32)
    values = {plan.input: Value(clean.images.permute(0, 2, 3, 1)[None].contiguous())}
    steps.run(values, 0, first, torch.ones(1, victim.units, dtype=torch.bool), EVERY_STEP)
    widths = {}
    for position in range(first, index["conv2"] + 1):
        steps.run(values, position, position + 1, masks, unchanged)
        widths[position] = len(values[plan.steps[position].name].data)
    assert widths[index["conv1"]] == 1 and widths[index["conv2"]] == widths[first] == 3


@pytest.mark.parametrize("victim", [Fallbacks], indirect=True)
@interpreted
def test_kernels_in_half_precision_give_the_labels_of_torch_in_float32(victim):
    """float16 stands for bfloat16, which the interpreter cannot multiply."""
    plan, images = plan_of(victim), torch.randn(64, 3, SIZE, SIZE)
    assert label_agreement(plan, images, torch.float32) == 1.0
    assert 0.9 <= label_agreement(plan, images, torch.float16) <= 1.0


def test_bfloat16_is_refused_where_labels_disagree(caplog):
    caplog.set_level("INFO", "onp")
    assert bfloat16_agrees(0.995, 0.995) and not caplog.text
    assert not bfloat16_agrees(0.99, 0.995)
    (record,) = caplog.records
    assert record.levelname == "INFO" and "1.0 % of the images another class" in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="needs a GPU and TRITON_INTERPRET=0"
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("build", [Residual, Preactivated, Fallbacks, None])
def test_graphs_on_a_gpu_give_what_float32_gives(monkeypatch, build, precision):
    """Run, captured, replayed: three sets of masks, on the GPU; then late masks from bases, whose own values are run, captured
    and replayed as well."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = (build() if build else build_network("preact_resnet18:width=64,classes=4")).train().cuda()
    for _ in range(3):
        network(torch.randn(64, 3, SIZE, SIZE, device="cuda"))
    victim = victim_from_module(network.eval(), Normalisation.parse("none"), (3, SIZE, SIZE), device="cuda")
    clean, family = batches(40, 20)
    base = torch.ones(victim.units, dtype=torch.bool)
    with torch.no_grad():
        evaluator = Evaluator(victim, clean, [family], settings=EvaluatorSettings(backend="triton", precision=precision))
        plain = Evaluator(victim, clean, [family], settings=EvaluatorSettings("torch", "float32"))
        for round in range(7):
            if round >= 3:
                base = torch.rand(victim.units) > 0.05
                evaluator.commit(base)
            masks = (torch.rand(5, victim.units) > 0.05) & base
            if round >= 3:
                masks[:, : victim.layers[-1].offset] = base[: victim.layers[-1].offset]
            ours, theirs = evaluator.score(masks), plain.score(masks)
            limit = 1 if precision == "float32" else 6
            assert (ours.acc_count - theirs.acc_count).abs().max() <= limit
            assert (ours.divergence - theirs.divergence).abs().max() <= (1e-3 if precision == "float32" else 5e-2)
