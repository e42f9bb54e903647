"""The final figures, against a count by hand on a victim with a real backdoor."""

import pytest
import torch

from onp.attack.triggers import BadNets, BadNetsAllToAll
from onp.data.images import ImageSet
from onp.defend.evaluation import Evaluation, TrueAttack, TrueImages, find_target
from onp.defend.report.audit import AuditSet, HeldOutTriggers, audit_repair, measure_figures
from onp.detect.known_trigger import KnownTrigger


@pytest.fixture(scope="module")
def images(backdoored):
    batch = backdoored.score
    return ImageSet((batch.images * 255).round().to(torch.uint8), batch.labels, ("a", "b", "c", "d"))


def test_figures_count_what_they_say(backdoored, images):
    victim, (triggered,) = backdoored.victim, backdoored.score_triggered
    trigger = BadNets.make((1, 8, 8), torch.Generator().manual_seed(0), None)
    held_out = HeldOutTriggers(KnownTrigger(trigger, 0), (triggered,))
    measured = measure_figures(victim, AuditSet(images, (held_out,), Evaluation()))
    with torch.no_grad():
        clean = victim.model(images.pixels()).argmax(1)
        patched = victim.model(triggered.images).argmax(1)
    others = images.labels != 0
    assert measured.acc.hits == int((clean == images.labels).sum()) and measured.acc.n == 100
    assert measured.asr_clean.hits == int((clean[others] == 0).sum()) and measured.asr_clean.n == int(others.sum())
    hits = int((patched[triggered.labels != 0] == 0).sum())
    assert measured.asr_surrogate["patch"].hits == hits and measured.asr is None and measured.ra is None

    measured = measure_figures(victim, AuditSet(images, (), Evaluation(images, TrueAttack(trigger, 1))))
    with torch.no_grad():
        stamped = victim.model(trigger(images.pixels())).argmax(1)
    others = images.labels != 1
    assert measured.asr.hits == int((stamped[others] == 1).sum()) and measured.ra.n == int(others.sum())
    assert measured.asr_clean.n == int(others.sum()), "the class of the true attack, where one is given"
    assert measure_figures(victim, AuditSet(images, (), Evaluation())).asr_clean is None

    given = ImageSet((triggered.images * 255).round().to(torch.uint8), triggered.labels, images.class_names)
    target = find_target(victim, given.labels, given.pixels())
    again = measure_figures(victim, AuditSet(images, (), Evaluation(None, TrueImages(given, target))))
    assert target == 0 and again.acc == measured.acc and again.asr_clean.n == int((images.labels != 0).sum())
    assert again.asr.hits == hits > 0.8 * again.asr.n


def test_an_all_to_all_trigger_leads_each_class_to_the_next(backdoored, images):
    victim = backdoored.victim
    trigger = BadNetsAllToAll.make((1, 8, 8), torch.Generator())
    measured = measure_figures(victim, AuditSet(images, (), Evaluation(images, TrueAttack(trigger, 0))))
    with torch.no_grad():
        stamped, clean = victim.model(trigger(images.pixels())).argmax(1), victim.model(images.pixels()).argmax(1)
    goals = (images.labels + 1) % 4
    assert measured.asr.hits == int((stamped == goals).sum()) and measured.asr.n == len(images)
    assert measured.ra.hits == int((stamped == images.labels).sum())
    assert measured.asr_clean.hits == int((clean == goals).sum())


def test_an_unchanged_network_is_measured_once_and_progress_counts_every_image(backdoored, images):
    victim, advanced = backdoored.victim, []
    data = AuditSet(images, (), Evaluation(images, TrueImages(images, 0)))
    audit = audit_repair(victim, victim, data, advanced.append)
    assert audit.before is audit.after and sum(advanced) == data.images == 2 * len(images)
