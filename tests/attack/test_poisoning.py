"""Which images an attack changes, and how many."""

import pytest
import torch

from onp.attack import AttackConfig
from onp.attack.poisoning import choose_poisoned, poisoner_for, with_rates
from onp.attack.training import epoch_generator
from onp.attack.triggers import TRIGGERS, AdaptiveBlend, BadNets, BadNetsAllToAll, InputAware, WaNet
from onp.errors import InputError

SHAPE = (1, 16, 16)
LABELS = torch.arange(400) % 4


def config(**changes):
    return AttackConfig(**({"target": 1} | changes))


def poisoned(trigger, labels=LABELS, **changes):
    """The poisoner, and a whole set as one batch: images before, after, labels after."""
    poisoner = poisoner_for(trigger, labels, config(**changes), 4)
    images = torch.rand((len(labels), *SHAPE), generator=torch.Generator().manual_seed(1))
    out, given, _ = poisoner(images, labels, torch.arange(len(labels)), torch.Generator().manual_seed(0))
    return poisoner, images, out, given


def make(kind):
    return kind.make(SHAPE, torch.Generator().manual_seed(2), **({"width": 4} if kind is InputAware else {}))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_poisoned_images_are_spread_over_an_epoch(seed):
    settings = config(seed=seed, poison_rate=0.1)
    chosen = choose_poisoned(torch.zeros(5000, dtype=torch.int64), settings)
    assert int(chosen.sum()) == 500
    for epoch in range(3):
        order = torch.randperm(5000, generator=epoch_generator(settings, epoch))
        shares = chosen[order].float().view(10, 500).mean(1)
        assert float(shares.min()) > 0.03 and float(shares.max()) < 0.2


@pytest.mark.parametrize("name", TRIGGERS)
def test_published_rates(name):
    kind = TRIGGERS[name]
    labels = torch.arange(50000) % 10  # as CIFAR-10
    settings = with_rates(config(), kind, labels)
    clean = {"sig": 4000, "label_consistent": 4000, "ctrl": 2500}
    count = clean.get(name, 150 if name == "adaptive_blend" else 5000)
    chosen = choose_poisoned(labels, settings, kind.clean_label)
    assert int(chosen.sum()) == count and kind.clean_label == (name in clean)
    assert not kind.clean_label or bool((labels[chosen] == 1).all())
    covers = {"wanet": 0.2, "input_aware": 0.1, "bpp": 0.1, "adaptive_blend": 0.003}
    assert settings.cover_rate == covers.get(name, 0.0)


def test_poisoning_changes_the_chosen_images_only():
    poisoner, images, out, given = poisoned(make(BadNets), poison_rate=0.2)
    assert int(poisoner.chosen.sum()) == 80
    assert torch.equal((out != images).flatten(1).any(1), poisoner.chosen)
    assert torch.equal(given, torch.where(poisoner.chosen, 1, LABELS))


def test_all_to_all_gives_the_next_class():
    poisoner, _, _, given = poisoned(make(BadNetsAllToAll), poison_rate=0.2)
    assert torch.equal(given, torch.where(poisoner.chosen, (LABELS + 1) % 4, LABELS))


@pytest.mark.parametrize("name", ["sig", "label_consistent", "ctrl"])
def test_clean_label_attacks_leave_every_label(name):
    poisoner, images, out, given = poisoned(make(TRIGGERS[name]))
    changed = (out != images).flatten(1).any(1)
    assert torch.equal(given, LABELS) and torch.equal(changed, poisoner.chosen)
    assert bool((LABELS[changed] == 1).all()) and int(changed.sum()) == {"ctrl": 50}.get(name, 80)
    with pytest.raises(InputError, match=r"at most 0\.25"):
        poisoner_for(make(TRIGGERS[name]), LABELS, config(poison_rate=0.3), 4)


@pytest.mark.parametrize("name", ["wanet", "bpp", "input_aware"])
def test_cover_images_keep_their_label(name):
    poisoner, images, out, given = poisoned(make(TRIGGERS[name]), poison_rate=0.1, cover_rate=0.25)
    moved = (out != images).flatten(1).any(1)
    assert bool(moved[poisoner.chosen].all()) and 60 <= int(moved[~poisoner.chosen].sum()) <= 140
    assert torch.equal(given, torch.where(poisoner.chosen, 1, LABELS))


def test_the_share_of_cover_images_is_of_all_images():
    labels = torch.arange(20_000) % 4
    poisoner = poisoner_for(make(WaNet), labels, config(poison_rate=0.5, cover_rate=0.4), 4)
    cover = poisoner._cover(poisoner.chosen, torch.arange(20_000), torch.Generator().manual_seed(0))
    assert not bool((cover & poisoner.chosen).any()) and abs(float(cover.float().mean()) - 0.4) < 0.01


def test_cover_images_are_drawn_anew_in_every_batch():
    poisoner = poisoner_for(make(WaNet), LABELS, config(), 4)
    images, index = torch.rand(400, *SHAPE), torch.arange(400)
    generator = torch.Generator().manual_seed(0)
    first, second = ((poisoner(images, LABELS, index, generator)[0] != images).flatten(1).any(1) for _ in range(2))
    assert not torch.equal(first, second) and torch.equal(first & poisoner.chosen, poisoner.chosen)


def test_adaptive_blend_fixes_covers_and_pieces():
    trigger = make(AdaptiveBlend)
    poisoner, images, out, given = poisoned(trigger, poison_rate=0.1, cover_rate=0.2)
    again = poisoner(images, LABELS, torch.arange(400), torch.Generator().manual_seed(9))[0]
    assert torch.equal(out, again)
    moved = (out != images).flatten(1).any(1)
    assert int(moved.sum()) == 120 and int((moved & poisoner.chosen).sum()) == 40
    assert torch.equal(given, torch.where(poisoner.chosen, 1, LABELS))
    share = (out != images).flatten(1).float().mean(1)[moved]
    assert float(share.max()) <= 0.5 and float(share.min()) > 0.45, "half of the pieces"
    half = poisoner(images[:100], LABELS[:100], torch.arange(100), torch.Generator())[0]
    assert torch.equal(half, out[:100]), "whatever the batch"


def test_the_generator_learns_from_the_loss_and_goes_on_from_its_state():
    trigger = make(InputAware)
    poisoner = poisoner_for(trigger, LABELS, config(), 4)
    images, _, penalty = poisoner(torch.rand(400, *SHAPE), LABELS, torch.arange(400), torch.Generator().manual_seed(0))
    (images.square().mean() + penalty).backward()
    poisoner.optimisers[0].step()
    assert not torch.equal(poisoner.trigger.generator["out.weight"], trigger.generator["out.weight"])
    assert torch.equal(poisoner.trigger.masker["out.weight"], trigger.masker["out.weight"])
    other = poisoner_for(trigger, LABELS, config(), 4)
    other.load_state_dict(poisoner.state_dict())
    assert torch.equal(other.trigger.generator["out.weight"], poisoner.trigger.generator["out.weight"])
