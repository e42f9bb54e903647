import copy

import pytest
import torch
from helpers import small_backdoor
from torch import nn

from onp.data.normalisation import Normalisation
from onp.engine.evaluator import Evaluator
from onp.engine.scoring import Batch, TriggeredBatch
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.victim import victim_from_module
from onp.search.features import ACTIVATION_MOMENTS, FeatureBatches, node_features


def test_shapes_and_ranges(backdoored, features):
    units = backdoored.victim.units
    assert features.values.shape == (units, len(features.names)) and features.values.dtype == torch.float32
    assert len(set(features.names)) == len(features.names)
    assert features.values.isfinite().all() and features.values.abs().max() <= 5
    assert features.attack_attribution.shape == features.acc_attribution.shape == (units,)
    assert features.attack_attribution.max() <= 1 and features.acc_attribution.max() <= 1


def test_the_score_points_at_units_whose_pruning_removes_the_attack(backdoored, features):
    """The measured effect of pruning each unit alone, against its first-order prediction."""
    b = backdoored
    alone = ~torch.eye(b.victim.units, dtype=torch.bool)
    own = TriggeredBatch("own class", b.score.images, torch.full_like(b.score.labels, -1), b.score.labels)
    evaluator = Evaluator(b.victim, b.score, [*b.score_triggered, own])
    scores = evaluator.score(torch.cat((torch.ones_like(alone[:1]), alone)))
    removed = (scores.asr_soft[0] - scores.asr_soft[1:])[:, 0].float()
    lost = (scores.asr_soft[0] - scores.asr_soft[1:])[:, 1].float()
    assert rank_correlation(features.attack_attribution, removed) > 0.5
    assert rank_correlation(features.acc_attribution, lost) > 0.5
    top = features.taylor.topk(6).indices
    together = torch.ones(1, b.victim.units, dtype=torch.bool)
    together[0, top] = False
    pruned = Evaluator(b.victim, b.score, b.score_triggered).score(together)
    assert float(pruned.asr) < 0.7 * float(scores.asr[0, 0])
    assert float(pruned.acc) > 0.9


def test_measuring_at_a_mask_changes_the_attributions_alone(backdoored, features, saliency):
    everything = torch.ones(backdoored.victim.units, dtype=torch.bool)
    same = features.at(everything, saliency)
    torch.testing.assert_close(same.attack_attribution, features.attack_attribution)
    torch.testing.assert_close(same.acc_attribution, features.acc_attribution)
    keep = everything.clone()
    keep[features.taylor.topk(3).indices] = False
    other = features.at(keep, saliency)
    assert torch.equal(other.values, features.values)
    assert not torch.allclose(other.attack_attribution, features.attack_attribution, rtol=0.1)


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = torch.stack((a.argsort().argsort(), b.argsort().argsort())).float()
    return float(torch.corrcoef(ranks)[0, 1])


def test_families_count_by_their_weight(backdoored):
    b = backdoored
    harmless = TriggeredBatch("none", b.build.images, b.build.labels, torch.full_like(b.build.labels, 3))
    both = [*b.build_triggered, harmless]
    cases = ((b.build_triggered, (1.0,)), (both, (2.0, 0.0)), (both, (1.0, 1.0)))
    only, silent, shared = (node_features(b.victim, FeatureBatches.of(b.build, *case)) for case in cases)
    torch.testing.assert_close(silent.attack_attribution, only.attack_attribution)
    assert not torch.allclose(shared.attack_attribution, only.attack_attribution, rtol=0.1)


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
    batches = FeatureBatches.of(Batch(images, torch.randint(3, (64,))), [], ())
    divergence = node_features(victim, batches).column("bn_divergence")
    assert divergence.argmax() == 5 and divergence[5] > 2
    assert divergence[torch.arange(8) != 5].abs().max() < 0.01


def test_backdoor_neurons_have_an_attack_attribution_and_a_bn_shift(backdoored, features, saliency):
    assert not features.backdoor_score.any(), "there was no BN shift"
    shift = torch.randn(backdoored.victim.units, generator=torch.Generator().manual_seed(0))
    score = node_features(backdoored.victim, saliency.batches, shift).backdoor_score
    assert float(score.sum()) == pytest.approx(1, abs=1e-5)
    assert bool(((score > 0) == ((shift > 0) & (features.attack_attribution > 0))).all())
    pair = (score > 0).nonzero()[:2, 0]
    ratio = shift[pair] * features.attack_attribution[pair]
    assert float(score[pair[0]] / score[pair[1]]) == pytest.approx(float(ratio[0] / ratio[1]), rel=1e-3)


def test_more_images_than_wanted_are_thinned_evenly_and_target_images_left_out(backdoored):
    b = backdoored
    batches = FeatureBatches.of(b.build, b.build_triggered * 2, (3.0, 1.0), max_images=20)
    assert len(batches.clean.images) == 20 and batches.weights == (0.75, 0.25)
    assert torch.equal(batches.clean.images[[0, -1]], b.build.images[[0, -1]])
    for attack in batches.attacks:
        assert len(attack.images) == 10 and bool((attack.labels != attack.target).all())


def test_networks_without_norms_and_with_depthwise_convs_have_finite_features():
    for spec, size in (("mobilenet_v2:width=8", 32), ("preact_resnet18:width=4", 16)):
        victim = victim_from_module(build_network(spec), Normalisation.parse("none"), (3, size, size))
        images, labels = torch.rand(12, 3, size, size), torch.arange(12) % 10
        triggered = [TriggeredBatch("perturbation", images + 0.1, labels, torch.zeros_like(labels))]
        batches = FeatureBatches.of(Batch(images, labels), triggered, (0.3,))
        assert node_features(victim, batches).values.isfinite().all()


def test_select_keeps_the_named_columns(features):
    some = features.select(ACTIVATION_MOMENTS)
    assert some.names == ACTIVATION_MOMENTS
    torch.testing.assert_close(some.column("act_skew"), features.column("act_skew"))
    with pytest.raises(InputError, match="'colour'"):
        features.select(("colour",))


@pytest.mark.parametrize("weights", [(), (-1.0,), (0.0,), (1.0, 1.0)])
def test_weights_must_match_the_batches(backdoored, weights):
    with pytest.raises(InputError, match="weights"):
        FeatureBatches.of(backdoored.build, backdoored.build_triggered, weights)


def test_the_shape_of_activations_does_not_change_with_the_scale_of_a_unit(backdoored, features):
    batches = FeatureBatches.of(backdoored.build, backdoored.build_triggered, (1.0,))
    scaled = copy.deepcopy(backdoored.victim.model)
    _, norm, _, second = list(scaled)[:4]
    with torch.no_grad():
        norm.weight[3] *= 4
        norm.bias[3] *= 4
        second.weight[:, 3] /= 4
    after = node_features(small_backdoor.victim_of(scaled), batches)
    for name in ("act_ratio", "act_peak", "negentropy"):
        torch.testing.assert_close(after.column(name), features.column(name), atol=0.05, rtol=0.0)
    for name in ("act_mean", "act_max", "entropy"):
        assert abs(float((after.column(name) - features.column(name))[3])) > 0.05
