"""The figures of a table against networks that are really pruned."""

from pathlib import Path

import pytest
import torch

from onp.attack.triggers import load_trigger
from onp.compare.datasets import Datasets
from onp.compare.defences import Curve
from onp.compare.measure import ground_truth
from onp.compare.victims import read_card
from onp.data.images import load_images
from onp.data.normalisation import Normalisation
from onp.engine.metrics import predictions
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.victim import load_victim


def test_the_curve_on_test_images_is_what_repaired_networks_do(config, rows):
    folder = Path(config.out) / "victims" / rows[0]["victim"]
    card = read_card(folder)
    victim = load_victim(folder / "model.safetensors", card["arch"], Normalisation.parse(card["norm"]), (1, 16, 16))
    _, evaluation = Datasets(config, Path(config.out)).split(config.test_data[0], 1)
    truth = ground_truth(victim, load_images(evaluation), load_trigger(folder / "trigger.safetensors"), card["target"])
    keep = torch.ones((2, victim.units), dtype=torch.bool)
    keep[1, ::3] = False
    acc, asr = truth.along(victim, Curve((0.0, 1.0), keep))
    for row, mask in enumerate(keep):
        figures = truth.figures(prune(victim, Mask.of(victim, mask)).model)
        # An image of 100 may differ where the evaluator computes in bfloat16.
        assert (acc[row], asr[row]) == pytest.approx((figures["acc"], figures["asr"]), abs=0.011)
    images = load_images(evaluation)
    others = images.subset(images.labels != 0)
    answers = predictions(victim.model, victim.normalisation(load_trigger(folder / "trigger.safetensors")(others.pixels())))
    assert truth.figures(victim.model)["asr"] == pytest.approx(float((answers == 0).double().mean()))
