"""On trained victims every backend gives the labels of the network itself in float32."""

import os

import pytest
import torch

from onp.data.normalisation import Normalisation
from onp.defend.demos import ARCH, DEMOS, NORM, demo, eval_images
from onp.engine.backend import Machine
from onp.engine.evaluator import Evaluator
from onp.engine.scoring import Batch
from onp.engine.settings import EvaluatorSettings
from onp.model.interpret import gated_forward
from onp.model.victim import load_victim

IMAGES = 250


GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "0"
DEVICES = ["cpu", *(["cuda"] if GPU else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DEMOS)
def test_labels_are_those_of_the_network_in_float32(name, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    victim = load_victim(demo(name).model, ARCH, Normalisation.parse(NORM), (1, 28, 28), device)
    images = victim.normalisation(eval_images().pixels()[:IMAGES].to(device))
    kept = torch.ones(victim.units, dtype=torch.bool)
    for mask in (kept, torch.rand(victim.units) > 0.03):
        with torch.no_grad():
            logits = victim.model(images) if mask is kept else gated_forward(victim, images, mask.float().to(device))
        top = logits.topk(2, 1).values
        ties = int((top[:, 0] - top[:, 1] < 1e-4).sum())
        batch = Batch(images, logits.argmax(1))
        for backend in ("onednn" if device == "cpu" else "triton", "torch"):
            exact = Evaluator(victim, batch, [], settings=EvaluatorSettings(backend=backend, precision="float32")).score(
                mask[None]
            )
            assert exact.acc_count[0] >= IMAGES - ties
            if mask is kept and (backend != "onednn" or Machine.here().bfloat16):
                rough = Evaluator(victim, batch, [], settings=EvaluatorSettings(backend=backend, precision="bfloat16")).score(
                    mask[None]
                )
                assert rough.acc[0] >= 0.995
