"""The figures of a table: test images and the true trigger, which no defence sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onp.attack.triggers import Trigger
from onp.compare.defences.pruning import Curve
from onp.data.images import ImageSet
from onp.engine.evaluator import Evaluator
from onp.engine.metrics import predictions
from onp.engine.scoring import Batch, TriggeredBatch
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class Truth:
    """Evaluation images of one victim, normalised: clean [N, C, H, W], and the same images with the trigger, if there is one.

    labels, goals int64 [N]: true classes, and the classes that the trigger leads to.
    """

    clean: Tensor
    labels: Tensor
    triggered: Tensor | None
    goals: Tensor

    def measure(self, model: nn.Module) -> dict[str, float]:
        """ACC; with a trigger ASR and RA on the images whose class is not the goal, and the ASR of no trigger at all."""
        answers = predictions(model, self.clean)
        figures = {"acc": _share(answers == self.labels)}
        if self.triggered is not None:
            others = self.goals != self.labels
            led = predictions(model, self.triggered)
            figures["asr"] = _share((led == self.goals)[others])
            figures["ra"] = _share((led == self.labels)[others])
            figures["asr_untriggered"] = _share((answers == self.goals)[others])
        return figures

    def along(self, victim: Victim, curve: Curve) -> tuple[list[float], list[float]]:
        """Test ACC and ASR of every mask of a curve; no ASR without a trigger."""
        batches = []
        if self.triggered is not None:
            batches.append(TriggeredBatch("trigger", self.triggered, self.labels, self.goals))
        scores = Evaluator(victim, Batch(self.clean, self.labels), batches).score(curve.masks)
        return scores.acc.tolist(), scores.asr[:, 0].tolist() if batches else []


def truth_of(victim: Victim, images: ImageSet, trigger: Trigger | None, target: int) -> Truth:
    """The evaluation images of `victim` and what its trigger makes of them."""
    pixels, labels = images.pixels(), images.labels.to(victim.device)
    clean = victim.normalisation(pixels.to(victim.device))
    if trigger is None:
        return Truth(clean, labels, None, torch.full_like(labels, target))
    with torch.no_grad():
        triggered = torch.cat([trigger(part) for part in pixels.split(500)])
    goals = trigger.goals(images.labels, target, victim.classes)
    return Truth(clean, labels, victim.normalisation(triggered.to(victim.device)), goals.to(victim.device))


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
