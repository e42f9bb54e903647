"""The final figures, against a count by hand on a victim with a real backdoor."""

import pytest
import torch

from onp.attack.triggers import BadNets, BadNetsAllToAll
from onp.data.images import ImageSet
from onp.defend.report.audit import TrueAttack, TrueImages, figures, find_target
from onp.detect.known_trigger import given_trigger
from onp.errors import InputError


def test_figures_count_what_they_say(backdoored):
    victim, batch = backdoored.victim, backdoored.score
    images = ImageSet((batch.images * 255).round().to(torch.uint8), batch.labels, ("a", "b", "c", "d"))
    trigger = BadNets.make((1, 8, 8), torch.Generator().manual_seed(0), None)
    measured = figures(victim, images, backdoored.score_triggered, 2, None, None)
    with torch.no_grad():
        clean = victim.model(images.pixels()).argmax(1)
        patched = victim.model(backdoored.score_triggered[0].images).argmax(1)
    others = images.labels != 2
    assert measured.acc.hits == int((clean == images.labels).sum()) and measured.acc.n == 100
    assert measured.asr_clean.hits == int((clean[others] == 2).sum()) and measured.asr_clean.n == int(others.sum())
    led = patched[backdoored.score_triggered[0].labels != 0] == 0
    assert measured.asr_surrogate["patch"].hits == int(led.sum()) and measured.asr is None and measured.ra is None

    measured = figures(victim, images, [], None, images, TrueAttack(trigger, 1))
    with torch.no_grad():
        stamped = victim.model(trigger(images.pixels())).argmax(1)
    others = images.labels != 1
    assert measured.asr.hits == int((stamped[others] == 1).sum()) and measured.ra.n == int(others.sum())
    assert measured.asr_clean.n == int(others.sum()), "the class of the true attack, where one is given"
    assert figures(victim, images, [], None, None, None).asr_clean is None

    (triggered,) = backdoored.score_triggered
    given = ImageSet((triggered.images * 255).round().to(torch.uint8), triggered.labels, images.class_names)
    target = find_target(victim, given.labels, given.pixels())
    again = figures(victim, images, [], None, None, TrueImages(given, target))
    assert target == 0 and again.acc == measured.acc and again.asr_clean.n == int((images.labels != 0).sum())
    assert again.asr.hits == int(led.sum()) > 0.8 * again.asr.n


def test_an_all_to_all_trigger_leads_each_class_to_the_next(backdoored):
    victim, batch = backdoored.victim, backdoored.score
    images = ImageSet((batch.images * 255).round().to(torch.uint8), batch.labels, ("a", "b", "c", "d"))
    trigger = BadNetsAllToAll.make((1, 8, 8), torch.Generator())
    measured = figures(victim, images, [], None, images, TrueAttack(trigger, 0))
    with torch.no_grad():
        stamped, clean = victim.model(trigger(images.pixels())).argmax(1), victim.model(images.pixels()).argmax(1)
    goals = (images.labels + 1) % 4
    assert measured.asr.hits == int((stamped == goals).sum()) and measured.asr.n == len(images)
    assert measured.ra.hits == int((stamped == images.labels).sum())
    assert measured.asr_clean.hits == int((clean == goals).sum())
    with pytest.raises(InputError, match="one target"):
        given_trigger(trigger, 0)
