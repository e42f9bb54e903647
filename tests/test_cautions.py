"""What a report warns of."""

import torch

from onp.cautions import little_seen, paying
from onp.data import ImageSet


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
