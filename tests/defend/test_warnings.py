"""What a report warns of."""

from pathlib import Path

import torch
from helpers.made_findings import figures, findings, images, repair, repairs

from onp.data.images import ImageSet
from onp.defend.report.warnings import (
    class_accuracy_loss,
    evaluation_overlap,
    few_images,
    further_copies,
    over_budget,
    warning,
    weak_trigger,
)
from onp.engine.metrics import Share
from onp.model.checkpoint import Checkpoint
from onp.model.state_dicts import Copy


def test_the_class_that_lost_most_accuracy_is_named():
    labels = torch.arange(4).repeat_interleave(50)
    images = ImageSet(torch.zeros(200, 1, 2, 2, dtype=torch.uint8), labels, ("ant", "bee", "cow", "doe"))
    before, after = labels.clone(), labels.clone()
    before[:5] = 1  # ant was right on 45 of 50
    after[:5], after[5:18] = 1, 2  # and is on 32
    after[50:53] = 0  # bee lost 3, which may be chance
    before[100:110], after[110:120] = 3, 3  # cow lost as many as it won
    assert class_accuracy_loss(before, after, images).startswith(
        "The accuracy of class ant fell from 90.0 % to 64.0 % (n = 50)"
    )
    after[5:18] = 0
    assert class_accuracy_loss(before, after, images) is None


def test_few_images_or_classes():
    assert few_images(200, 10) is None
    sentence = few_images(60, 4)
    assert sentence.startswith("With only 60 clean images and 4 classes a class can") and sentence.endswith(
        "at least 200 images."
    )
    assert few_images(500, 3).startswith("With only 3 classes")


def test_a_trigger_that_hardly_works():
    assert weak_trigger(Share(90, 100)) is None
    assert "an ASR of only 3.0 %" in weak_trigger(Share(3, 100))


def test_a_loss_beyond_the_budget():
    assert over_budget(Share(90, 100), Share(89, 100), 0.01) is None
    sentence = over_budget(Share(180, 200), Share(175, 200), 0.01)
    assert "lost 2.5 points" in sentence and "n = 200" in sentence and "budget of 1;" in sentence


def test_evaluation_images_that_the_repair_was_given():
    images = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8)
    clean, other = (ImageSet(part, torch.zeros(len(part), dtype=torch.int64), ("a",)) for part in images.split((40, 20)))
    assert evaluation_overlap(clean, other) is None
    mixed = ImageSet(torch.cat((images[35:40], other.images)), torch.zeros(25, dtype=torch.int64), ("a",))
    assert evaluation_overlap(clean, mixed).startswith("5 of the 25 images of --eval-data are also in --data")


def test_further_copies_of_the_weights():
    checkpoint = Checkpoint(Path("a.pth"), "torch", {}, copies=(Copy(("model_ema",), "module.", {}),))
    assert further_copies(None, "repaired") == further_copies(Checkpoint(Path("a.pth"), "torch", {}), "repaired") == ()
    assert "(model_ema): the repaired weights replace all copies" in further_copies(checkpoint, "repaired")[0]
    assert further_copies(checkpoint, "not-repairable")[0].endswith("; to scan it, give --model a.pth::model_ema.")


def test_triggers_that_survive_are_the_first_warning():
    left = figures({"patch": 53, "warp": 40})
    found = findings("partly-repaired", figures({"patch": 98, "warp": 98}), left, repairs=repairs(repair(0)))
    text = warning(found, images(60), 0.01)
    assert text.startswith("After the repair, fresh triggers still reach more than on clean networks: patch 53.0 %")
    assert "warp" not in text and "With only 60 clean images" in text
    assert warning(findings("repaired", figures({"patch": 98}), left), images(500), 0.01).startswith("With only 4 classes")


def test_a_missed_trigger_and_one_that_outlives_the_repair():
    missed = warning(findings("no-backdoor-evidence", figures({}, 88)), images(500), 0.01)
    assert "works on 88.0 % of the images (n = 100)" in missed and "found no class" in missed
    outlived = warning(findings("repaired", figures({"patch": 98}, 97), figures({"patch": 3}, 90)), images(500), 0.01)
    assert "still works on 90.0 % of the images (n = 100) after the repair" in outlived and "--triggered-data" in outlived
    stopped = warning(findings("repaired", figures({"patch": 98}, 97), figures({"patch": 3}, 2)), images(500), 0.01)
    assert "trigger" not in stopped
