"""Edits of a network's tensors and of its checkpoint alongside."""

import torch
from helpers.small_backdoor import victim_of
from safetensors.torch import load_file, save_file
from torch import nn

from onp.data.normalisation import Normalisation
from onp.model.archs import build_network
from onp.model.edit import edited, with_tensors
from onp.model.victim import load_victim

ARCH = "resnet18:width=4,classes=3"


def stored(tmp_path, dtype=torch.float32):
    """A victim whose checkpoint has tensors of another dtype than the network."""
    torch.manual_seed(0)
    state = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in build_network(ARCH).state_dict().items()
    }
    save_file(state, tmp_path / "model.safetensors")
    return load_victim(tmp_path / "model.safetensors", ARCH, Normalisation.parse("none"), (3, 32, 32)), state


def test_an_edit_is_made_in_the_dtype_of_the_checkpoint(tmp_path):
    victim, state = stored(tmp_path, torch.float16)
    key = next(name for name in state if name.endswith("fc.weight") or name == "linear.weight")
    halved = edited(victim, {key: lambda tensor: tensor / 3})
    expected = (state[key] / 3).half()
    assert torch.equal(halved.checkpoint.state[key], expected), "of the stored numbers"
    assert torch.equal(halved.model.state_dict()[key], expected.float()), "what is measured is what is stored"
    assert torch.equal(victim.model.state_dict()[key], state[key].float()), "the victim is not changed"
    path = tmp_path / "edited.safetensors"
    path.write_bytes(halved.checkpoint.to_bytes())
    changed = {name for name, tensor in load_file(path).items() if not torch.equal(tensor, state[name])}
    assert changed == {key}


def test_edits_of_one_tensor_under_two_names_add_up():
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    start, end = nn.Conv2d(1, 4, 3, padding=1), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    model = nn.Sequential(start, shared, nn.ReLU(), shared, *end)
    victim = victim_of(model.eval())
    before = shared.weight.detach().clone()

    def without(row):
        def edit(tensor):
            left = tensor.clone()
            left[row] = 0
            return left

        return edit

    after = edited(victim, {"1.weight": without(0), "3.weight": without(2)}).model.state_dict()
    expected = before.clone()
    expected[[0, 2]] = 0
    assert torch.equal(after["1.weight"], expected) and torch.equal(after["3.weight"], expected)


def test_tensors_are_replaced_and_equal_ones_stay_as_they_are_stored(tmp_path):
    victim, state = stored(tmp_path, torch.bfloat16)
    keys = [name for name in state if name.endswith("weight")][:2]
    own = victim.model.state_dict()
    new = with_tensors(victim, {keys[0]: own[keys[0]] + 1, keys[1]: own[keys[1]]})
    assert torch.equal(new.checkpoint.state[keys[0]], (own[keys[0]] + 1).bfloat16())
    assert torch.equal(new.model.state_dict()[keys[0]], (own[keys[0]] + 1).bfloat16().float())
    assert torch.equal(new.checkpoint.state[keys[1]], state[keys[1]])
