"""What a report warns of."""

from pathlib import Path
from types import SimpleNamespace

import torch

from onp.data.images import ImageSet
from onp.defend.report.warnings import further_copies, hardly_triggered, little_seen, measured_twice, paying
from onp.engine.metrics import Share
from onp.model.checkpoint import Checkpoint
from onp.model.state_dicts import Copy


def test_a_class_that_pays_for_the_repair_is_named():
    labels = torch.arange(4).repeat_interleave(50)
    images = ImageSet(torch.zeros(200, 1, 2, 2, dtype=torch.uint8), labels, ("ant", "bee", "cow", "doe"))
    before, after = labels.clone(), labels.clone()
    before[:5] = 1  # ant was right on 45 of 50
    after[:5], after[5:18] = 1, 2  # and is on 32
    after[50:53] = 0  # bee lost 3, which may be chance
    before[100:110], after[110:120] = 3, 3  # cow lost as many as it won

    def probabilities(answers):
        return torch.nn.functional.one_hot(answers, 4).float()

    said = paying(probabilities(before), probabilities(after), images)
    assert said == "Class ant pays for the repair: 64.0 % of its images are right, 90.0 % were before (n = 50)."
    after[5:18] = 0
    assert paying(probabilities(before), probabilities(after), images) is None


def test_little_evidence_is_said():
    assert little_seen(200, 10) is None
    said = little_seen(60, 4)
    assert said.startswith("With 60 clean images and 4 classes the evidence is weak") and said.endswith("give 200 or more.")
    assert little_seen(500, 3).startswith("With 3 classes the evidence is weak")


def test_a_trigger_that_does_nothing_is_said():
    assert hardly_triggered(SimpleNamespace(asr=None)) is None
    assert hardly_triggered(SimpleNamespace(asr=Share(90, 100))) is None
    assert "leads only 3.0 % of the images" in hardly_triggered(SimpleNamespace(asr=Share(3, 100)))


def test_images_measured_on_that_the_repair_saw_are_said():
    images = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8)
    clean, other = (ImageSet(part, torch.zeros(len(part), dtype=torch.int64), ("a",)) for part in images.split((40, 20)))
    assert measured_twice(clean, other) is None
    mixed = ImageSet(torch.cat((images[35:40], other.images)), torch.zeros(25, dtype=torch.int64), ("a",))
    assert measured_twice(clean, mixed).startswith("5 of the 25 images of --eval-data are among those of --data")


def test_what_became_of_further_copies_is_said():
    checkpoint = Checkpoint(Path("a.pth"), "torch", {}, copies=(Copy(("model_ema",), "module.", {}),))
    assert further_copies(None, "repaired") == further_copies(Checkpoint(Path("a.pth"), "torch", {}), "repaired") == ()
    assert "(model_ema): the repaired ones stand in place" in further_copies(checkpoint, "repaired")[0]
    assert further_copies(checkpoint, "not-repairable")[0].endswith("; --model a.pth::model_ema asks about it.")
