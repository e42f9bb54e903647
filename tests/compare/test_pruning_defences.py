"""Defences that prune: each end to end on a tiny backdoored network, and the parts that can be checked by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from onp.compare.defences import PRUNERS, DefenceConfig, anp, bnp, clp, fp, ims, pruning, rnp
from onp.compare.defences.config import fit_and_held_out
from onp.compare.defences.pruning import Curve, choose_threshold, largest_within
from onp.compare.defences.unlearning import Unlearning, unlearned
from onp.data.images import ImageSet
from onp.data.normalisation import Normalisation
from onp.engine.metrics import accuracy, predictions
from onp.model.archs import build_network
from onp.model.interpret import gated_forward
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.tuning.common import with_weights
from onp.model.victim import victim_from_module

CONFIG = DefenceConfig(max_acc_drop=0.05, passes=4000)
# What these reach on the tiny network; IMS and RNP need more steps than a test has.
LEFT = {"fp": 0.1, "anp": 0.1, "clp": 0.5, "bnp": 0.1, "tsbd": 0.3}


def weights(victim):
    return {key: value.clone() for key, value in victim.model.state_dict().items()}


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruning_keeps_the_budget_on_images_it_did_not_fit(backdoored, pictures, name, figures):
    victim, before = backdoored.victim, weights(backdoored.victim)
    done = PRUNERS[name].run(victim, pictures, CONFIG)
    sizes = (~done.curve.masks).sum(1)
    assert sizes.tolist() == sorted(sizes.tolist()) and len(done.curve.thresholds) == len(sizes) > 10
    _, held_out = fit_and_held_out(pictures, CONFIG.seed)
    acc = [accuracy(held_out.labels, predictions(v.model, held_out.pixels())).value for v in (victim, prune(victim, done.mask))]
    assert acc[0] - acc[1] <= CONFIG.max_acc_drop + 1e-9
    assert 1 <= done.evaluations <= 1 + len(sizes)
    after = figures(prune(victim, done.mask))
    assert after[0] >= 0.85 and after[1] <= LEFT.get(name, 1.0)
    assert all(torch.equal(before[key], value) for key, value in victim.model.state_dict().items())


def test_the_seed_decides_the_mask(backdoored, pictures):
    config = replace(CONFIG, passes=1000)
    first, again = (PRUNERS["anp"].run(backdoored.victim, pictures, config).mask.keep for _ in range(2))
    assert torch.equal(first, again)


def test_the_threshold_is_the_largest_pruning_within_the_budget(backdoored, pictures):
    victim = backdoored.victim
    keep = torch.ones((5, victim.units), dtype=torch.bool)
    for row, count in enumerate((0, 2, 3, 3, 20)):
        keep[row, :count] = False
    curve = Curve((0.0, 0.1, 0.2, 0.3, 0.4), keep)
    lost = torch.tensor([0.0, 0.05, 0.01, 0.01, 0.3], dtype=torch.float64)
    assert largest_within(curve, lost, 0.01) == 2, "the gentlest of equally large ones"
    assert largest_within(curve, lost, 0.0) is None, "a mask that prunes nothing is no pruning"
    assert largest_within(curve, lost, 0.3) == 4
    done = choose_threshold(victim, pictures, curve, 1.0)
    assert done.chosen == 4 and torch.equal(done.mask.keep, keep[4])
    unpruned = accuracy(pictures.labels, predictions(victim.model, pictures.pixels())).value
    assert done.acc[0] == pytest.approx(unpruned) and len(done.acc) == 5


def test_curves_from_scores():
    values = torch.tensor([0.0, 0.5, 0.2, 1.0])
    assert pruning.at_most(values, (0.0, 0.2, 0.6)).masks.tolist() == [
        [False, True, True, True],
        [False, True, False, True],
        [False, False, False, True],
    ]
    assert pruning.above(torch.tensor([math.nan, 3.0, 1.0]), (2.0, 0.5)).masks.tolist() == [
        [True, False, True],
        [True, False, False],
    ]
    shares = pruning.first_share(torch.tensor([2, 0, 1, 3]), 4, (0.01, 0.5, 0.51))
    assert (~shares.masks).sum(1).tolist() == [1, 2, 3] and not shares.masks[0, 2]


def test_norms_are_paired_by_the_graph_in_a_pre_activation_network():
    network = build_network("preact_resnet18:width=8,channels=1")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    victim = victim_from_module(network, Normalisation.parse("none"), (1, 16, 16), 10)
    names, sizes = zip(*[(layer.name, layer.units) for layer in victim.layers], strict=True)
    bounds = dict(zip(names, clp.bounds(victim).split(sizes), strict=True))
    block = victim.model.layer2[0]
    kernel = [torch.linalg.matrix_norm(row.flatten(1), 2) for row in block.conv1.weight]
    scale = block.bn2.weight.abs() / (block.bn2.running_var + 1e-5).sqrt()
    assert torch.allclose(bounds["layer2.0.conv1"], torch.stack(kernel) * scale, rtol=1e-4), "bn2 follows conv1"
    alone = [torch.linalg.matrix_norm(row.flatten(1), 2) for row in block.conv2.weight]
    assert torch.allclose(bounds["layer2.0.conv2"], torch.stack(alone), rtol=1e-4), "no norm reads conv2 alone"


def test_bnp_is_the_divergence_of_two_normal_distributions(backdoored, pictures):
    victim = backdoored.victim
    found = bnp.divergence(victim, pictures)
    conv, norm = victim.model[0], victim.model[1]
    before = conv(pictures.pixels()).movedim(1, 0).flatten(1)
    now = Normal(before.mean(1), (before.var(1, correction=0) + 1e-5).sqrt())
    kept = Normal(norm.running_mean, (norm.running_var + 1e-5).sqrt())
    assert torch.allclose(found[:16], kl_divergence(now, kept), rtol=1e-3, atol=1e-5)


def test_fp_prunes_what_a_residual_sum_adds_together():
    network = build_network("preact_resnet18:width=8,channels=1")
    victim = victim_from_module(network, Normalisation.parse("none"), (1, 16, 16), 10)
    images = ImageSet(torch.randint(0, 256, (40, 1, 16, 16), dtype=torch.uint8), torch.arange(40) % 10, tuple("abcdefghij"))
    curve = fp.curve(victim, images, DefenceConfig())
    pruned = Mask.of(victim, curve.masks[49]).pruned()
    assert set(pruned) == {"layer4.0.conv2", "layer4.0.shortcut.0", "layer4.1.conv2"}
    assert len({tuple(units) for units in pruned.values()}) == 1 and len(pruned["layer4.1.conv2"]) == 32
    features = []
    repaired = prune(victim, Mask.of(victim, curve.masks[49])).model
    hook = repaired.linear.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    repaired(images.pixels())
    hook.remove()
    assert not features[0][:, pruned["layer4.1.conv2"]].any()


def test_anp_with_zeros_and_ones_is_pruning(backdoored, rng):
    victim = backdoored.victim
    keep = torch.rand(victim.units, generator=rng) < 0.7
    x = torch.rand((6, 1, 8, 8), generator=rng)
    state = anp.scaled(victim, victim.model, keep.float(), keep.float())
    expected = prune(victim, Mask.of(victim, keep)).model(x)
    assert torch.allclose(torch.func.functional_call(victim.model, state, (x,)), expected, atol=1e-5)


def test_rnp_recovers_with_a_mask_what_it_unlearned(backdoored, pictures):
    rate = 0.5  # the tiny network is never wrong, so its gradients are small
    victim, config = backdoored.victim, replace(CONFIG, passes=20_000)
    unlearned_victim = with_weights(victim, unlearned(victim, pictures, config, Unlearning(rate, rnp.FLOOR, rnp.EPOCHS)))
    mask = rnp.recovered(victim, pictures, config, rate)
    x, labels = pictures.pixels(), pictures.labels
    loss = [
        float(F.cross_entropy(gated_forward(unlearned_victim, x, gates), labels)) for gates in (torch.ones(victim.units), mask)
    ]
    assert (
        accuracy(labels, predictions(unlearned_victim.model, x)).value
        < 0.6
        < accuracy(labels, predictions(victim.model, x)).value
    )
    assert loss[1] < loss[0] and 0 <= float(mask.min()) < float(mask.max()) <= 1


def test_ims_compares_distributions():
    p, q = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.6, 0.4]])
    assert float(ims.agree(p, q)) == pytest.approx(-math.log(0.54))
    assert float(ims.disagree(p, q)) == pytest.approx(-math.log(0.46))
    ones = torch.ones(3)
    assert torch.allclose(ims.gates(ones, ones), ones) and torch.allclose(ims.gates(1 - ones, ones), ones)
    assert float(ims.gates(ones, 0 * ones).min()) > 0.99 and float(ims.gates(1 - ones, 0 * ones).max()) < 0.01
