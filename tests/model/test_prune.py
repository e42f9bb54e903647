"""repair: a new victim with zero rows where the mask prunes, the old one untouched, sharing kept."""

import operator

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.prune import prune, save_checkpoint
from onp.model.victim import load_victim, victim_from_module

NORM = Normalisation.parse("half")
SHAPE = (3, 10, 10)


class Net(nn.Module):
    """One conv is registered under two names, so that its tensors are in the state dict twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 7, 3)
        self.again = nn.ModuleList([self.second])
        self.fc = nn.Linear(7, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.second(torch.relu(self.norm(self.first(x))))).mean((2, 3)))


@pytest.fixture(scope="module")
def victim():
    return victim_from_module(Net(), NORM, SHAPE, 4)


def tensors(module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_only_the_pruned_rows_change(victim):
    before = tensors(victim.model)
    keep = torch.ones(13, dtype=torch.bool)
    keep[[1, 4, 6, 12]] = False
    repaired = prune(victim, Mask.of(victim, keep))
    after = tensors(repaired.model)
    rows = {"first.weight": [1, 4], "first.bias": [1, 4], "norm.weight": [1, 4], "norm.bias": [1, 4]}
    rows |= {f"{name}.{part}": [0, 6] for name in ("second", "again.0") for part in ("weight", "bias")}
    for name, tensor in before.items():
        expected = tensor.clone()
        if name in rows:
            expected[rows[name]] = 0
        assert torch.equal(after[name], expected), name
    assert all(torch.equal(before[name], tensor) for name, tensor in victim.model.state_dict().items())


def test_the_new_program_shares_the_new_model(victim):
    repaired = prune(victim, Mask.of(victim, torch.rand(13) < 0.5))
    old, new = victim.model.state_dict(), repaired.model.state_dict()
    assert [node.name for node in repaired.program.graph.nodes] == [node.name for node in victim.program.graph.nodes]
    for node in repaired.program.graph.nodes:
        if node.op == "get_attr":
            tensor = operator.attrgetter(node.target)(repaired.program)
            assert tensor.data_ptr() == new[node.target].data_ptr() != old[node.target].data_ptr()
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(repaired.program(x), repaired.model(x))
    assert repaired.layers == victim.layers
    assert not any(parameter.requires_grad for parameter in repaired.model.parameters())


def test_repairs_add_up(victim):
    first, second = (torch.rand(13) < 0.7 for _ in range(2))
    one = prune(prune(victim, Mask.of(victim, first)), Mask.of(victim, second))
    both = prune(victim, Mask.of(victim, first & second))
    expected = tensors(both.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(one.model).items())


def test_keeping_everything_changes_nothing(victim):
    repaired = prune(victim, Mask.of(victim))
    images = torch.rand(2, *SHAPE)
    assert torch.equal(repaired.logits(images), victim.logits(images))


def test_a_mask_of_another_model_is_refused(victim):
    with pytest.raises(InputError, match="for another model"):
        prune(victim, Mask(torch.ones(6, dtype=torch.bool), (("first", 6),)))


def test_a_tensor_stored_under_two_names_is_edited_under_both(tmp_path, monkeypatch):
    monkeypatch.setattr("onp.model.victim.network_for", lambda *_: Net())
    save_file({name: t.clone() for name, t in Net().state_dict().items()}, tmp_path / "a.safetensors")
    victim = load_victim(tmp_path / "a.safetensors", "net", NORM, SHAPE)
    keep = torch.ones(13, dtype=torch.bool)
    keep[[0, 8]] = False
    repaired = prune(victim, Mask.of(victim, keep))
    save_checkpoint(repaired, tmp_path / "b.safetensors")
    after = load_file(tmp_path / "b.safetensors")
    assert not after["second.weight"][2].any()
    assert not after["again.0.weight"][2].any()
    images = torch.rand(2, *SHAPE)
    again = load_victim(tmp_path / "b.safetensors", "net", NORM, SHAPE)
    assert torch.equal(again.logits(images), repaired.logits(images))


def test_a_live_network_is_written_as_its_state_dict(victim, tmp_path):
    save_checkpoint(victim, tmp_path / "a.safetensors")
    written, state = load_file(tmp_path / "a.safetensors"), victim.model.state_dict()
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
