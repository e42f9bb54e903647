"""The built-in networks and their specs."""

import pytest
import torch

from onp.data.normalisation import Normalisation
from onp.engine.evaluator import Evaluator
from onp.engine.scoring import Batch, TriggeredBatch
from onp.errors import InputError
from onp.model.archs import NETWORKS, build_network
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.victim import victim_from_module


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 28, 7)])
def test_networks_give_logits_at_any_width(name, channels, size, classes):
    network = build_network(f"{name}:width=8,classes={classes},channels={channels}").eval()
    logits = network(torch.randn(2, channels, size, size))
    assert logits.shape == (2, classes) and bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", ["vgg11_gn", "convnext"])
def test_networks_without_batch_norms_store_no_statistics_and_have_prunable_units(name):
    torch.manual_seed(0)
    network = build_network(f"{name}:width=8").eval()
    assert not list(network.buffers())
    victim = victim_from_module(network, Normalisation.parse("none"), (3, 32, 32), 10)
    images, labels = torch.rand(6, 3, 32, 32), torch.randint(10, (6,))
    evaluator = Evaluator(victim, Batch(images, labels), [])
    keep = torch.ones(1, victim.units, dtype=torch.bool)
    keep[0, ::5] = False
    pruned = prune(victim, Mask.of(victim, keep[0]))
    with torch.no_grad():
        right = (pruned.logits(images).argmax(1) == labels).float().mean()
    assert float(evaluator.score(keep).acc[0]) == pytest.approx(float(right))


def test_published_sizes():
    # kuangliu/pytorch-cifar and the papers: 11.17 M for ResNet-18 with a 3x3 stem, 2.3 M for MobileNetV2 at ten classes.
    def millions(spec):
        return sum(parameter.numel() for parameter in build_network(spec).parameters()) / 1e6

    assert millions("preact_resnet18") == pytest.approx(11.17, abs=0.01)
    assert millions("resnet18") == pytest.approx(11.17, abs=0.01)
    assert millions("mobilenet_v2") == pytest.approx(2.24, abs=0.06)
    assert millions("vgg11_bn") == pytest.approx(9.23, abs=0.01)


@pytest.mark.parametrize(
    "spec",
    [
        "resnet19",
        "resnet18:width",
        "resnet18:width=x",
        "resnet18:width=0",
        "resnet18:depth=3",
        "resnet18:width=-4",
        "vit:width=6",
    ],
)
def test_bad_specs_are_refused(spec):
    with pytest.raises(InputError):
        build_network(spec)


def test_the_hidden_units_of_the_vision_transformer_are_prunable():
    torch.manual_seed(0)
    network = build_network("vit:width=8,classes=3,channels=1").eval()
    victim = victim_from_module(network, Normalisation.parse("none"), (1, 28, 28), 3)
    hidden = [layer for layer in victim.layers if layer.name.endswith("fc1")]
    assert [layer.units for layer in hidden] == [32] * 6 and len({layer.group for layer in hidden}) == 6
    images, labels = torch.rand(40, 1, 28, 28), torch.randint(3, (40,))
    evaluator = Evaluator(victim, Batch(images, labels), [TriggeredBatch("x", images, labels, (labels + 1) % 3)])
    keep = torch.rand(4, victim.units) > 0.3
    scores = evaluator.score(keep)
    for index, row in enumerate(keep):
        with torch.no_grad():
            guess = prune(victim, Mask.of(victim, row)).model(images).argmax(1)
        assert abs(float(scores.acc[index]) - float((guess == labels).float().mean())) <= 1 / 40
