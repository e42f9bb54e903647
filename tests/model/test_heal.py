"""Healing gives triggered images their own class back, and leaves alone what it should."""

from dataclasses import replace

import pytest
import torch
from helpers.small_backdoor import backdoored, clean_images, pictures, stamp
from helpers.tiny_networks import ARCH, NORM, SHAPE, Tiny
from safetensors.torch import save_file

from onp.model.edit import with_tensors
from onp.model.graph_cut import GraphCut
from onp.model.heal import HealConfig, HealTask, HealTrigger, heal, heal_images
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.pruned import pruned_units
from onp.model.victim import load_victim

CONFIG = HealConfig(depth=0.4, steps=60, lr=0.05)
STAMP = HealTrigger(stamp, 1.0)


@pytest.fixture(scope="module")
def pruned():
    """The tiny victim without four of its units; its backdoor still works."""
    victim = backdoored().victim
    keep = torch.ones(victim.units, dtype=torch.bool)
    keep[[1, 20, 50, 51]] = False
    return prune(victim, Mask.of(victim, keep))


@pytest.fixture(scope="module")
def healed(pruned):
    return heal(HealTask(pruned, [STAMP], clean_images()), CONFIG)


def rates(victim):
    """ACC, ASR and RA on images that nothing has seen."""
    images, labels = pictures(400, torch.Generator().manual_seed(9))
    plain, triggered = (victim.model(each).argmax(1) for each in (images, stamp(images)))
    others = labels != 0
    return tuple(
        float(share.float().mean()) for share in (plain == labels, triggered[others] == 0, triggered[others] == labels[others])
    )


def test_triggered_images_are_given_their_own_class(pruned, healed):
    (acc, asr, _), (acc_after, asr_after, ra_after) = rates(pruned), rates(healed)
    assert asr > 0.5, "there is something to heal"
    assert asr_after < 0.1 and ra_after > 0.85 and acc_after > acc - 0.03


def test_a_step_in_parts_is_the_same_step(pruned):
    config = replace(CONFIG, steps=5)
    whole, parts = (heal(HealTask(pruned, [STAMP], clean_images()), replace(config, at_once=most)) for most in (256, 20))
    for key, weights in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[key], weights, rtol=1e-4, atol=1e-5)


def test_teachers_are_learned_from_by_their_mean_probabilities(pruned):
    given, config = backdoored().victim, replace(CONFIG, steps=5)
    own, named, both, twice = (
        heal(HealTask(pruned, [STAMP], clean_images(), teachers), config)
        for teachers in ((), (pruned,), (pruned, given), (pruned, given, pruned, given))
    )
    weights = [victim.model.state_dict() for victim in (own, named, both, twice)]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    for key, tensor in weights[2].items():
        torch.testing.assert_close(weights[3][key], tensor, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(tensor, weights[0][key]) for key, tensor in weights[2].items())


def test_early_weights_buffers_and_pruned_units_stay_as_they_are(pruned, healed):
    late = GraphCut.of(pruned.program, CONFIG.depth).late_parameters()
    before, after = pruned.model.state_dict(), healed.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == set(late) and 0 < len(late) < len(dict(pruned.model.named_parameters()))
    assert torch.equal(pruned_units(healed).keep, pruned_units(pruned).keep) and not pruned_units(pruned).keep.all()


def test_the_program_of_the_healed_network_is_that_of_its_model(healed):
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(healed.program(x), healed.model(x))


def test_the_same_seed_gives_the_same_weights_and_progress_counts_every_image(pruned):
    config = replace(CONFIG, steps=5)
    counted = []
    one, other = (heal(HealTask(pruned, [STAMP], clean_images()), config, counted.append) for _ in range(2))
    for key, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[key]), key
    assert sum(counted) == 2 * heal_images(200, config)


def test_a_large_network_keeps_fewer_copies_and_every_trigger_gets_its_share(pruned):
    given = {1: 0, 2: 0}

    def counting(number):
        def apply(images):
            given[number] += len(images)
            return images

        return HealTrigger(apply, number)

    config = replace(CONFIG, steps=1, values=1)
    done = []
    heal(HealTask(pruned, [counting(1), counting(2)], clean_images()), config, done.append)
    assert given[1] + given[2] == 200 and 100 < given[2] < 165
    assert sum(done) == 2 * 200 + 2 * config.batch


def test_a_checkpoint_in_half_precision_holds_what_is_measured(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({key: tensor.half() for key, tensor in Tiny().state_dict().items() if tensor.is_floating_point()}, path)
    victim = load_victim(path, ARCH, NORM, SHAPE)
    own = victim.model.state_dict()
    new = own["8.weight"] + 1e-4
    edited = with_tensors(victim, {"8.weight": new, "0.weight": own["0.weight"]})
    assert edited.checkpoint.edited == {"8.weight"} and edited.checkpoint.state["8.weight"].dtype == torch.float16
    assert torch.equal(edited.model.state_dict()["8.weight"], new.half().float())
    assert not torch.equal(own["8.weight"], new) and victim.checkpoint.edited == frozenset()
