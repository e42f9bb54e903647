"""Capture, pairing and groups: on every kind of network, gating `mask_nodes` must equal editing the weights."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from helpers.odd_networks import NETWORKS, Vgg
from torch import nn

from onp.data.normalisation import Normalisation
from onp.engine.differentiable import fused_forward
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.victim import Victim, victim_from_module

SIZE = 12


def randomised(network: nn.Module) -> nn.Module:
    """Norms as after training: scale, shift and running statistics away from 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return network


def make(network: nn.Module) -> Victim:
    return victim_from_module(randomised(network), Normalisation.parse("half"), (3, SIZE, SIZE), 5)


@pytest.fixture(scope="module")
def victims():
    cache: dict[str, Victim] = {}

    def get(name: str) -> Victim:
        if name not in cache:
            cache[name] = make(NETWORKS[name]())
        return cache[name]

    return get


def run_gated(victim: Victim, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The captured graph in float64, with the output of every mask node multiplied by its layer's gate."""
    gates = {}
    for layer in victim.layers:
        gate = keep[layer.offset : layer.offset + layer.units].double()
        for node in layer.mask_nodes:
            gates[node] = gate.view(-1, 1, 1) if layer.kind == "conv" else gate
    values = {}
    for node in victim.program.graph.nodes:
        if node.op == "output":
            return values[node.args[0]]
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "get_attr":
            attribute = operator.attrgetter(node.target)(victim.program)
            values[node] = attribute.double() if attribute.is_floating_point() else attribute
        else:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
        if node.name in gates:
            values[node] = values[node] * gates[node.name]
    raise AssertionError("no output node")


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_equal_weight_edits(victims, name):
    victim = victims(name)
    x = torch.randn(5, 3, SIZE, SIZE, dtype=torch.float64)
    original = copy.deepcopy(victim.model).double()(x)
    torch.testing.assert_close(run_gated(victim, x, torch.ones(victim.units)), original, rtol=1e-10, atol=1e-10)
    for density in (0.3, 0.7, 0.9):
        keep = torch.rand(victim.units) < density
        repaired = prune(victim, Mask.of(victim, keep))
        edited = repaired.model.double()(x)
        torch.testing.assert_close(run_gated(victim, x, keep), edited, rtol=1e-10, atol=1e-10)
        if density == 0.3:
            assert not torch.allclose(edited, original)


@pytest.mark.parametrize("name", ["vgg", "preact", "squeeze_excite", "grouped", "vit", "functional"])
def test_each_unit_alone(victims, name):
    """One unit at a time, so that errors of one layer cannot hide behind another."""
    victim = victims(name)
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    for layer in victim.layers:
        keep = torch.ones(victim.units, dtype=torch.bool)
        keep[layer.offset + int(torch.randint(layer.units, ()))] = False
        edited = prune(victim, Mask.of(victim, keep)).model.double()(x)
        torch.testing.assert_close(run_gated(victim, x, keep), edited, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_program_is_clean_and_shares_the_weights(victims, name):
    victim = victims(name)
    state = victim.model.state_dict()
    kinds = [node.op for node in victim.program.graph.nodes]
    assert kinds.count("placeholder") == kinds.count("output") == 1
    for node in victim.program.graph.nodes:
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        if node.op == "get_attr" and node.target in state:
            assert operator.attrgetter(node.target)(victim.program).data_ptr() == state[node.target].data_ptr()
        if isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable
            assert "dropout" not in str(node.target)
    for batch in (1, 4):
        x = torch.randn(batch, 3, SIZE, SIZE)
        torch.testing.assert_close(victim.program(x), victim.model(x), rtol=1e-4, atol=1e-5)
    assert not any(tensor.requires_grad for tensor in victim.program.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_tile_the_mask_and_the_rest_is_listed(victims, name):
    victim = victims(name)
    ends = [layer.offset + layer.units for layer in victim.layers]
    assert [layer.offset for layer in victim.layers] == [0, *ends[:-1]]
    assert victim.units == ends[-1]
    layers = {n for n, m in victim.model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    listed = {layer.name for layer in victim.layers} | {name for name, _ in victim.skipped}
    assert layers <= listed
    state = victim.model.state_dict()
    for layer in victim.layers:
        assert state[layer.weight].shape[0] == layer.units
        assert all(state[key].shape == (layer.units,) for key in (*layer.norm, *layer.norm_stats))


def by_name(victim: Victim):
    return {layer.name: layer for layer in victim.layers}


def test_preactivation_pairs_by_the_graph(victims):
    layers = by_name(victims("preact"))
    assert layers["layer1.conv1"].norm == ("layer1.bn2.weight", "layer1.bn2.bias")
    assert layers["layer1.conv2"].norm == ()
    assert layers["layer1.conv2"].mask_nodes == (layers["layer1.conv2"].node,)
    # The stem feeds bn1 and the residual sum: both are gated.
    stem = layers["conv1"]
    assert stem.norm == ("layer1.bn1.weight", "layer1.bn1.bias")
    assert stem.mask_nodes[0] == stem.node
    assert len(stem.mask_nodes) == 2
    assert victims("preact").skipped == (("linear", "produces the logits"),)


def test_groups_and_stages(victims):
    resnet = by_name(victims("resnet"))
    assert resnet["module.0"].group == resnet["blocks.0.convs.1"].group
    assert resnet["blocks.1.convs.1"].group == resnet["blocks.1.downsample.0"].group == resnet["blocks.2.convs.1"].group
    names = ("module.0", "blocks.0.convs.0", "blocks.1.convs.0", "blocks.1.convs.1")
    assert len({resnet[name].group for name in names}) == 4
    assert [resnet[name].stage for name in names] == [0, 0, 0, 1]
    inverted = by_name(victims("inverted"))
    assert inverted["expand.0"].group == inverted["depthwise.0"].group
    assert inverted["stem"].group == inverted["project.0"].group
    assert inverted["multiply"].group not in {inverted[name].group for name in ("stem", "expand.0")}
    dense = by_name(victims("dense"))
    assert len({layer.group for layer in dense.values()}) == len(dense) == 3
    excite = by_name(victims("squeeze_excite"))
    # The unpadded conv makes the map smaller, and so does the pooling of the excitation branch, but only in the branch.
    assert [excite[name].stage for name in ("conv", "squeeze", "last")] == [0, 2, 1]
    vit = by_name(victims("vit"))
    assert vit["patch"].group == vit["fc2"].group == vit["encoder.linear2"].group != vit["fc1"].group


def test_norms_that_mix_channels_or_have_no_scale_are_not_paired(victims):
    grouped = by_name(victims("grouped"))
    assert grouped["convs.0"].norm == ()
    assert grouped["convs.3"].norm == ("convs.4.weight", "convs.4.bias")
    assert grouped["convs.6"].norm == ()
    assert grouped["convs.6"].mask_nodes == (grouped["convs.6"].node,)
    vgg = by_name(victims("vgg"))
    assert vgg["hidden"].norm == ("norm.weight", "norm.bias")
    assert vgg["hidden"].norm_stats == ("norm.running_mean", "norm.running_var")
    assert by_name(victims("functional"))["conv2"].norm == ("a.weight", "a.bias", "b.weight", "b.bias")


def test_gates_and_heads_are_left_out(victims):
    skipped = dict(victims("squeeze_excite").skipped)
    assert skipped.keys() == {"excite", "excite2", "fc"}
    assert "scales other channels" in skipped["excite"]
    assert "scales other channels" in skipped["excite2"]
    assert dict(victims("inverted").skipped) == {"head": "produces the logits"}


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.standardised = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3))
        self.up = nn.ConvTranspose2d(6, 6, 2)
        self.unused = nn.Linear(3, 3)
        self.shared_norm = nn.BatchNorm2d(6)
        self.one, self.two = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.alias = nn.ModuleList([self.two])
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.shared(F.relu(self.shared(F.relu(self.plain(x)))))
        x = self.up(F.relu(self.standardised(x)))
        x = self.shared_norm(self.one(x)) + self.shared_norm(self.alias[0](x))
        return self.fc(x.mean((2, 3)))


def test_what_weights_alone_cannot_prune_is_listed():
    victim = make(Odd())
    skipped = dict(victim.skipped)
    assert "2 operations share" in skipped["shared"]
    assert "computes" in skipped["standardised"]
    assert "conv_transpose2d" in skipped["up"]
    assert "not used" in skipped["unused"]
    layers = by_name(victim)
    assert layers.keys() == {"plain", "one", next(name for name in layers if name in ("two", "alias.0"))}
    # A norm with two callers is not part of either conv's units, and the edit is exact all the same.
    assert layers["one"].norm == ()
    x = torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    keep = torch.rand(victim.units) < 0.5
    edited = prune(victim, Mask.of(victim, keep)).model.double()(x)
    torch.testing.assert_close(run_gated(victim, x, keep), edited, rtol=1e-10, atol=1e-10)


def test_a_batch_can_be_cut_anywhere_when_the_size_is_only_used_to_flatten(victims):
    names = [str(node.target) for node in victims("vgg").program.graph.nodes]
    assert "aten.sym_size.int" not in names


class ByBatch(Vgg):
    def forward(self, x):
        return super().forward(x) if len(x) < 4 else super().forward(x.flip(0)).flip(0)


def test_a_branch_on_the_batch_size_is_captured_when_it_does_not_matter():
    victim = make(ByBatch())
    x = torch.randn(7, 3, SIZE, SIZE)
    torch.testing.assert_close(victim.program(x), victim.model(x), rtol=1e-4, atol=1e-5)


def test_the_given_module_is_not_touched():
    network = Vgg().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    make_state = victim_from_module(network, Normalisation.parse("half"), (3, SIZE, SIZE))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert make_state.classes == 5
    images = torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    make_state.logits(images).sum().backward()
    assert images.grad is not None


class Swaps(nn.Module):
    """Writes to parts of a tensor, which export turns into copies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)

    def forward(self, x):
        x = self.first(x).relu()
        y = x.clone()
        y[:, :4] = x[:, 4:8] * 0.5
        y[:, 5] = y[:, 6:7].mean((1, 2, 3))[:, None, None]
        return self.head(self.second(y).relu().mean((2, 3)))


def test_writing_to_parts_of_a_tensor_has_gradients():
    victim = victim_from_module(Swaps(), Normalisation.parse("none"), (3, 9, 9))
    images = torch.rand(3, 3, 9, 9, requires_grad=True)
    expected = victim.logits(images)
    for logits in (victim.program(images), fused_forward(victim)(images)[0]):
        torch.testing.assert_close(logits, expected)
        found, wanted = (torch.autograd.grad(each.square().sum(), images, retain_graph=True)[0] for each in (logits, expected))
        torch.testing.assert_close(found, wanted)


class ChannelsLastHead(nn.Module):
    """A linear layer over the last dimension, and a norm over another of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.head = nn.Linear(3, SIZE), nn.BatchNorm2d(SIZE), nn.Linear(SIZE, 5)

    def forward(self, x):
        return self.head(self.norm(self.mix(x.permute(0, 2, 3, 1))).mean((1, 2)))


def test_a_norm_over_another_dimension_is_no_layers_own():
    victim = make(ChannelsLastHead())
    assert by_name(victim)["mix"].norm == ()
