"""What an engine sums under masks, against the gated graph in float64 and against the weight-edited network."""

import logging
from dataclasses import replace

import pytest
import torch
from helpers import evaluator_cases as CASES

from onp.engine import backend
from onp.engine.backend import Machine
from onp.engine.evaluator import Evaluator
from onp.engine.settings import EvaluatorSettings, Tuning
from onp.errors import InputError
from onp.model.interpret import gated_forward

pytestmark = pytest.mark.usefixtures("one_thread")
MACHINE = Machine.here()
FLOAT32 = EvaluatorSettings(precision="float32")


@pytest.fixture(scope="module", params=CASES.NETWORKS)
def victim(request):
    return CASES.lively_victim(CASES.NETWORKS[request.param])


def narrow(lanes: int) -> Tuning:
    """Few lanes: networks this narrow leave channels out and run small maps as matrix products, as wide ones do."""
    return Tuning(lane_bytes=4 * lanes, tap_gemm_products=1) if lanes < 16 else Tuning()


def test_gates_mean_the_weight_edit(victim):
    images = torch.randn(9, 3, CASES.SIZE, CASES.SIZE)
    for mask in CASES.random_masks(victim, 4):
        gated = gated_forward(victim, images.double(), mask.double())
        torch.testing.assert_close(gated, CASES.edited_logits(victim, mask, images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("backend", "lanes"), [("torch", 2), ("onednn", 2), ("onednn", 16)])
def test_scores_match_the_reference(victim, backend, lanes):
    clean, triggered = CASES.batches()
    evaluator = Evaluator(victim, clean, triggered, settings=replace(FLOAT32, backend=backend, chunk=20, tuning=narrow(lanes)))
    masks = CASES.random_masks(victim, 6)
    CASES.assert_matches(evaluator.score(masks), masks, victim, clean, triggered)
    assert evaluator.families == ("family0", "family1")
    assert evaluator.backend == backend


@pytest.mark.parametrize(("backend", "lanes"), [("torch", 2), ("onednn", 2), ("onednn", 16)])
def test_commits_and_memory_budgets_change_nothing(victim, backend, lanes):
    clean, triggered = CASES.batches(19, (11,))
    whole = 30 * 4 * 200 * CASES.SIZE * CASES.SIZE
    for budget in (0, whole // 20, whole):
        chunk = int(torch.randint(3, 40, ()))
        evaluator = Evaluator(
            victim,
            clean,
            triggered,
            settings=replace(FLOAT32, backend=backend, memory_budget=budget, chunk=chunk, tuning=narrow(lanes)),
        )
        base = torch.ones(victim.units, dtype=torch.bool)
        for _ in range(3):
            layer = victim.layers[int(torch.randint(len(victim.layers), ()))]
            masks = base.repeat(3, 1)
            masks[:, layer.offset : layer.offset + layer.units] = torch.rand(3, layer.units) > 0.4
            CASES.assert_matches(evaluator.score(masks), masks, victim, clean, triggered)
            base = masks[int(torch.randint(3, ()))]
            evaluator.commit(base)
            assert evaluator.cached_bytes <= budget


def test_masks_from_layer_to_layer_reuse_what_comes_before(preact):
    """Committed first to last, every layer's candidates start at or behind the nearest cut."""
    clean, triggered = CASES.batches(16, (8,))
    evaluator = Evaluator(preact, clean, triggered, settings=FLOAT32)
    base = torch.ones(preact.units, dtype=torch.bool)
    for layer in preact.layers:
        masks = base.repeat(2, 1)
        masks[:, layer.offset : layer.offset + layer.units] = torch.rand(2, layer.units) > 0.3
        CASES.assert_matches(evaluator.score(masks), masks, preact, clean, triggered)
        evaluator.commit(masks[1])
        base = masks[1]
    evaluator.commit(torch.ones(preact.units, dtype=torch.bool))
    masks = CASES.random_masks(preact, 3)
    CASES.assert_matches(evaluator.score(masks), masks, preact, clean, triggered)


def test_scores_do_not_depend_on_the_company(preact):
    """A mask's numbers are the same bits whatever masks it is scored with, in whatever order, cached or not."""
    clean, triggered = CASES.batches()
    masks = CASES.random_masks(preact, 5)
    layer = preact.layers[len(preact.layers) // 2]
    masks[2:] = masks[0]
    masks[2:, layer.offset : layer.offset + layer.units] = torch.rand(3, layer.units) > 0.5
    settings = replace(FLOAT32, tuning=narrow(2))
    together = Evaluator(preact, clean, triggered, settings=settings).score(masks)
    other = Evaluator(preact, clean, triggered, settings=settings)
    order = torch.randperm(5)
    alone = [other.score(masks[i : i + 1]) for i in order]
    for row, scores in zip(order, alone, strict=True):
        assert torch.equal(scores.divergence[0], together.divergence[row])
        assert torch.equal(scores.asr_soft[0], together.asr_soft[row])


@pytest.mark.parametrize("chunk", [None, 7])
def test_chunks_side_by_side_change_nothing(preact, chunk):
    clean, triggered = CASES.batches()
    masks = CASES.random_masks(preact, 3)
    torch.set_num_threads(3)
    try:
        evaluator = Evaluator(preact, clean, triggered, settings=replace(FLOAT32, chunk=chunk))
        CASES.assert_matches(evaluator.score(masks[:2]), masks[:2], preact, clean, triggered)
        evaluator.commit(masks[1])
        CASES.assert_matches(evaluator.score(masks[2:]), masks[2:], preact, clean, triggered)
    finally:
        torch.set_num_threads(1)


def test_bfloat16_stays_close(preact):
    clean, triggered = CASES.batches(100, (100,))
    masks = CASES.random_masks(preact, 2)
    exact = Evaluator(preact, clean, triggered, settings=FLOAT32).score(masks)
    for name in ("torch", "onednn") if MACHINE.bfloat16 else ("torch",):
        evaluator = Evaluator(preact, clean, triggered, settings=EvaluatorSettings(backend=name, precision="bfloat16"))
        assert evaluator.precision == "bfloat16"
        rough = evaluator.score(masks)
        torch.testing.assert_close(rough.divergence, exact.divergence, rtol=0, atol=0.02)
        torch.testing.assert_close(rough.asr, exact.asr, rtol=0, atol=0.08)


def test_bfloat16_is_refused_where_onednn_has_none(preact):
    clean, triggered = CASES.batches()
    settings = EvaluatorSettings("onednn", "bfloat16", machine=replace(MACHINE, bfloat16=False))
    with pytest.raises(InputError, match="lacks AVX-512; use precision float32"):
        Evaluator(preact, clean, triggered, settings=settings)


@pytest.mark.skipif(not MACHINE.bfloat16, reason="oneDNN has no bfloat16 on this CPU")
def test_automatic_precision_falls_back_when_labels_disagree(preact, caplog):
    clean, triggered = CASES.batches()
    machine = replace(MACHINE, matrix_units=True)
    for least, precision in ((1.1, "float32"), (0.0, "bfloat16")):
        settings = EvaluatorSettings(machine=machine, tuning=Tuning(agreement=least))
        with caplog.at_level(logging.INFO, logger="onp"):
            assert Evaluator(preact, clean, triggered, settings=settings).precision == precision
        assert "Masks are scored in float32" in caplog.text


@pytest.mark.parametrize(
    "amx, dots, vendor, faster",
    [
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),
        (False, True, backend.AMD, True),
        (False, False, backend.AMD, False),
        (False, True, None, False),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(amx, dots, vendor, faster, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    if vendor is not None:
        info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu\n\n")
    monkeypatch.setattr(backend, "CPUINFO", info)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: dots)
    assert Machine.here().matrix_units == faster
