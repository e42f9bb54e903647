"""Tuning methods: each end to end on a tiny backdoored network, and the parts that can be checked by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import large_networks, odd_networks
from safetensors.torch import load_file, save_file

from onp.compare.defences import TUNERS, DefenceConfig, npd
from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.interpret import gated_forward
from onp.model.mask import Mask
from onp.model.prune import prune, pruned_rows, save_checkpoint
from onp.model.tuning import TUNERS as TUNING_METHODS
from onp.model.tuning import check_tuning, common, ibau, nad, sau, tune_pruned
from onp.model.victim import load_victim, victim_from_module

CONFIG = DefenceConfig(max_acc_drop=0.05, passes=4000)
# What these reach on the tiny network; the others need more steps than a test has, or do not fit its patch trigger.
LEFT = {"nad": 0.5, "npd": 0.5, "tsbd-ft": 0.1}


def weights(victim):
    return {key: value.clone() for key, value in victim.model.state_dict().items()}


@pytest.mark.parametrize("name", TUNERS)
def test_a_tuning_method_returns_another_network_that_still_works(backdoored, pictures, name, figures):
    victim, before = backdoored.victim, weights(backdoored.victim)
    tuned = TUNERS[name](victim, pictures, CONFIG)
    acc, asr = figures(tuned)
    assert acc >= 0.9 and asr <= LEFT.get(name, 1.0)
    assert all(torch.equal(before[key], value) for key, value in victim.model.state_dict().items())
    x = torch.rand(5, 1, 8, 8)
    gates = torch.ones(tuned.units)
    assert torch.allclose(gated_forward(tuned, x, gates), tuned.model(x), atol=1e-5), "graph and network are one"
    assert not torch.allclose(tuned.model(x), victim.model(x), atol=1e-4)
    assert not tuned.model.training and not any(p.requires_grad for p in tuned.model.parameters())


def test_the_hypergradient_is_the_slope_of_the_outer_loss(rng):
    """Against finite differences through the fixed-point iterations themselves, in float64."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Softplus(), torch.nn.Linear(3, 2)).double()
    x, y = torch.rand((6, 1, 2, 2), generator=rng).double(), torch.randint(2, (6,), generator=rng)
    delta, triggered = torch.rand((1, 1, 2, 2), generator=rng).double(), torch.ones(6).double()
    parameters = list(model.parameters())
    found = torch.cat([g.flatten() for g in ibau.hypergradient(model, delta, x, y, triggered)])

    def outer(theta, start):
        """Outer loss after as many inner steps from the given perturbation as there are fixed-point iterations."""
        torch.nn.utils.vector_to_parameters(theta, parameters)
        moved = start
        for _ in range(ibau.FIXED_POINT):
            moved = moved.detach().requires_grad_(True)
            moved = moved - ibau.INNER_RATE * torch.autograd.grad(ibau.inner_loss(model, moved, x), moved)[0]
        return F.cross_entropy(model(x + moved), y).item()

    theta = torch.nn.utils.parameters_to_vector(parameters).detach()
    # Steps from a perturbation where the inner slope is not 0 leave it; the iteration assumes that they stay.
    direct = torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(x + delta), y), parameters)])
    slopes = []
    for index in range(len(theta)):
        step = torch.zeros_like(theta)
        step[index] = 1e-5
        slopes.append((outer(theta + step, delta) - outer(theta - step, delta)) / 2e-5)
    torch.nn.utils.vector_to_parameters(theta, parameters)
    slopes = torch.tensor(slopes).double()
    similar = F.cosine_similarity(found, slopes, dim=0)
    assert similar > 0.97 and similar > F.cosine_similarity(direct, slopes, dim=0)


def test_sau_measures_a_symmetric_divergence(rng):
    first, second = torch.randn((4, 5), generator=rng), torch.randn((4, 5), generator=rng)
    p, q = first.softmax(1), second.softmax(1)
    middle = (p + q) / 2
    expected = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    assert torch.allclose(sau.divergence(first, second), expected, atol=1e-6)
    assert float(sau.divergence(first, first).abs().max()) < 1e-6


def test_shared_examples_stay_close(backdoored):
    model = backdoored.victim.model
    moved = sau.shared_examples(model, model, backdoored.score.images, backdoored.score.labels)
    assert float((moved - backdoored.score.images).abs().max()) <= sau.BOUND + 1e-6


def test_npd_starts_as_the_identity_and_trains_its_layer_only(backdoored, pictures):
    victim = backdoored.victim
    model = common.trainable(victim).eval().requires_grad_(False)
    npd.insert(victim, model)
    assert torch.allclose(model(backdoored.score.images), victim.model(backdoored.score.images), rtol=1e-3, atol=1e-3)
    tuned = npd.tune(victim, pictures, CONFIG)
    kept = {key: value for key, value in tuned.model.state_dict().items() if key in victim.model.state_dict()}
    assert kept and all(torch.equal(value, victim.model.state_dict()[key]) for key, value in kept.items())


@pytest.mark.parametrize(
    ("network", "size", "places"),
    [
        (lambda: build_network("vgg11_bn:width=4"), 16, ("features.6", "features.13", "features.20")),
        (lambda: build_network("resnet18:width=4"), 16, ("layer2", "layer3", "layer4")),
        (lambda: build_network("preact_resnet18:width=4"), 16, ("layer2", "layer3", "layer4")),
        (lambda: build_network("preact_resnet18:width=4"), 8, ("layer1", "layer2", "layer3")),
        (lambda: odd_networks.ResNet(bottleneck=True), 9, ("blocks.0", "blocks")),
        (lambda: large_networks.resnet50(0.125, 5), 64, ("8", "14", "17")),
    ],
)
def test_nad_compares_what_leaves_the_blocks_and_no_map_of_one_pixel(network, size, places):
    torch.manual_seed(0)
    victim = victim_from_module(network(), Normalisation.parse("none"), (3, size, size))
    assert nad.map_modules(victim) == places
    with nad.outputs(victim.model, places) as maps:
        victim.model(torch.rand(3, 3, size, size))
    assert min(nad.attention(maps[place]).shape[1] for place in places) > 1
    assert not any(module._forward_hooks for module in victim.model.modules())


def test_nad_says_where_there_is_nothing_to_compare():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(6, 4))
    with pytest.raises(InputError, match="no feature maps of more than one pixel"):
        nad.map_modules(victim_from_module(network, Normalisation.parse("none"), (1, 3, 3)))


def test_attention_is_the_sum_of_squares_with_length_one():
    maps = torch.tensor([[[[1.0, 0.0], [0.0, -2.0]], [[1.0, 0.0], [0.0, 0.0]]]])
    assert torch.allclose(nad.attention(maps), torch.tensor([[2.0, 0.0, 0.0, 4.0]]) / 20**0.5)


def test_batches_spend_no_more_than_allowed(backdoored, pictures):
    def count(**options):
        return [
            len(y)
            for _, _, y in common.batches(
                backdoored.victim, pictures, DefenceConfig(passes=1000), common.Schedule("test", **options)
            )
        ]

    assert count(epochs=2) == [32, 128, 32, 128]
    assert len(count(epochs=50)) == 1000 // 128 and len(count(steps=500, passes=3)) == 1000 // 384


def test_a_tuned_checkpoint_is_what_was_measured(backdoored, pictures, tmp_path):
    arch, path = "resnet18:width=4,classes=4,channels=1", tmp_path / "half.safetensors"
    state = build_network(arch).state_dict()
    save_file({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, path)
    victim = load_victim(path, arch, Normalisation.parse("none"), (1, 8, 8))
    tuned = TUNERS["ft"](victim, pictures, replace(CONFIG, passes=500))
    save_checkpoint(tuned, tmp_path / "tuned.safetensors")
    stored = load_file(tmp_path / "tuned.safetensors")
    assert stored["linear.weight"].dtype == torch.float16
    again = load_victim(tmp_path / "tuned.safetensors", arch, Normalisation.parse("none"), (1, 8, 8))
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(again.model(x), tuned.model(x)) and not torch.equal(tuned.model(x), victim.model(x))


@pytest.mark.parametrize("name", TUNING_METHODS)
def test_what_was_pruned_stays_pruned(backdoored, pictures, name):
    victim = backdoored.victim
    keep = torch.ones(victim.units, dtype=torch.bool)
    keep[::5] = False
    mask = Mask.of(victim, keep)
    tuned = tune_pruned(prune(victim, mask), mask, name, pictures, replace(CONFIG, passes=1500))
    state = tuned.model.state_dict()
    for layer, view in zip(tuned.layers, mask.by_layer().values(), strict=True):
        assert not state[layer.weight][~view].any() and bool(state[layer.weight][view].flatten(1).any(1).all())
        assert not any(state[key][~view].any() for key in layer.norm)


@pytest.mark.parametrize("name", TUNING_METHODS)
def test_what_leaves_the_tuning_is_what_was_trained(pictures, name, monkeypatch):
    """In a residual network, where the shift of a norm reaches the sum even if its conv is zero."""
    torch.manual_seed(0)
    network = build_network("resnet18:width=4,classes=4,channels=1")
    victim = victim_from_module(network, Normalisation.parse("none"), (1, 8, 8))
    keep = torch.ones(victim.units, dtype=torch.bool)
    keep[::3] = False
    mask, trained, method = Mask.of(victim, keep), [], TUNING_METHODS[name]
    monkeypatch.setitem(TUNING_METHODS, name, lambda *given: trained.append(method(*given)) or trained[0])
    tuned = tune_pruned(prune(victim, mask), mask, name, pictures, replace(CONFIG, passes=1500))
    after, state = tuned.model.state_dict(), trained[0].model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in after.items())
    assert not any(after[key][rows].any() for key, rows in pruned_rows(victim, mask).items())
    assert not torch.equal(after["layer4.1.bn2.bias"], victim.model.state_dict()["layer4.1.bn2.bias"])


def test_tunings_that_cannot_be_are_refused(backdoored):
    check_tuning(None, backdoored.victim)
    check_tuning("ft", backdoored.victim)
    with pytest.raises(InputError, match="npd"):
        check_tuning("npd", backdoored.victim)
