import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.engine.evaluator import Evaluator
from onp.engine.scoring import Batch, TriggeredBatch
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.victim import victim_from_module
from onp.search.features import ACTIVATION_MOMENTS, features


def test_shapes_and_ranges(backdoored, known):
    units = backdoored.victim.units
    assert known.values.shape == (units, len(known.names)) and known.values.dtype == torch.float32
    assert len(set(known.names)) == len(known.names)
    assert known.values.isfinite().all() and known.values.abs().max() <= 5
    assert known.attack.shape == known.cost.shape == (units,)
    assert known.attack.max() <= 1 and known.cost.max() <= 1


def test_the_score_points_at_units_whose_pruning_removes_the_attack(backdoored, known):
    """The measured effect of pruning each unit alone, against its first-order prediction."""
    b = backdoored
    alone = ~torch.eye(b.victim.units, dtype=torch.bool)
    own = TriggeredBatch("own class", b.score.images, torch.full_like(b.score.labels, -1), b.score.labels)
    evaluator = Evaluator(b.victim, b.score, [*b.score_triggered, own])
    scores = evaluator.score(torch.cat((torch.ones_like(alone[:1]), alone)))
    removed = (scores.asr_soft[0] - scores.asr_soft[1:])[:, 0].float()
    lost = (scores.asr_soft[0] - scores.asr_soft[1:])[:, 1].float()
    assert rank_correlation(known.attack, removed) > 0.5
    assert rank_correlation(known.cost, lost) > 0.5
    top = known.taylor.topk(6).indices
    together = torch.ones(1, b.victim.units, dtype=torch.bool)
    together[0, top] = False
    pruned = Evaluator(b.victim, b.score, b.score_triggered).score(together)
    assert float(pruned.asr) < 0.7 * float(scores.asr[0, 0])
    assert float(pruned.acc) > 0.9


def test_measuring_at_a_mask_changes_the_first_order_scores_alone(backdoored, known):
    everything = torch.ones(backdoored.victim.units, dtype=torch.bool)
    same = known.at(everything)
    torch.testing.assert_close(same.attack, known.attack)
    torch.testing.assert_close(same.cost, known.cost)
    keep = everything.clone()
    keep[known.taylor.topk(3).indices] = False
    other = known.at(keep)
    assert torch.equal(other.values, known.values)
    assert not torch.allclose(other.attack, known.attack, rtol=0.1)


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = torch.stack((a.argsort().argsort(), b.argsort().argsort())).float()
    return float(torch.corrcoef(ranks)[0, 1])


def test_families_count_by_their_weight(backdoored):
    b = backdoored
    harmless = TriggeredBatch("none", b.build.images, b.build.labels, torch.full_like(b.build.labels, 3))
    both = [*b.build_triggered, harmless]
    only = features(b.victim, b.build, b.build_triggered, (1.0,))
    silent = features(b.victim, b.build, both, (2.0, 0.0))
    shared = features(b.victim, b.build, both, (1.0, 1.0))
    torch.testing.assert_close(silent.attack, only.attack)
    assert not torch.allclose(shared.attack, only.attack, rtol=0.1)


def test_bn_divergence_is_zero_where_the_running_statistics_fit():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    images = torch.rand(64, 3, 10, 10)
    with torch.no_grad():
        out = model[0](images)
        model[1].running_mean.copy_(out.mean((0, 2, 3)))
        model[1].running_var.copy_(out.var((0, 2, 3), correction=0))
        model[1].running_mean[5] += 3 * model[1].running_var[5].sqrt()
    victim = victim_from_module(model, Normalisation.parse("none"), (3, 10, 10))
    divergence = features(victim, Batch(images, torch.randint(3, (64,))), [], ()).column("bn_divergence")
    assert divergence.argmax() == 5 and divergence[5] > 2
    assert divergence[torch.arange(8) != 5].abs().max() < 0.01


def test_carriers_bear_attack_and_are_remembered(backdoored, known):
    b = backdoored
    assert not known.carrier.any(), "nothing was said to be remembered"
    memory = torch.randn(b.victim.units, generator=torch.Generator().manual_seed(0))
    carrier = features(b.victim, b.build, b.build_triggered, (1.0,), memory=memory).carrier
    assert float(carrier.sum()) == pytest.approx(1, abs=1e-5)
    assert bool(((carrier > 0) == ((memory > 0) & (known.attack > 0))).all())
    pair = (carrier > 0).nonzero()[:2, 0]
    ratio = memory[pair] * known.attack[pair]
    assert float(carrier[pair[0]] / carrier[pair[1]]) == pytest.approx(float(ratio[0] / ratio[1]), rel=1e-3)


def test_networks_without_norms_and_with_depthwise_convs_have_finite_features():
    for spec, size in (("mobilenet_v2:width=8", 32), ("preact_resnet18:width=4", 16)):
        victim = victim_from_module(build_network(spec), Normalisation.parse("none"), (3, size, size))
        images, labels = torch.rand(12, 3, size, size), torch.arange(12) % 10
        triggered = [TriggeredBatch("blend", images + 0.1, labels, torch.zeros_like(labels))]
        assert features(victim, Batch(images, labels), triggered, (0.3,)).values.isfinite().all()


def test_select_keeps_the_named_columns(known):
    some = known.select(ACTIVATION_MOMENTS)
    assert some.names == ACTIVATION_MOMENTS
    torch.testing.assert_close(some.column("act_skew"), known.column("act_skew"))
    with pytest.raises(InputError, match="'colour'"):
        known.select(("colour",))


@pytest.mark.parametrize("weights", [(), (-1.0,), (0.0,), (1.0, 1.0)])
def test_weights_must_match_the_batches(backdoored, weights):
    with pytest.raises(InputError, match="weights"):
        features(backdoored.victim, backdoored.build, backdoored.build_triggered, weights)
