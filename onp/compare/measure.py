"""The figures of a table: test images and the true trigger, which no defence sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onp.attack.triggers import Trigger
from onp.compare.defences import Curve, Pruning
from onp.data.images import ImageSet
from onp.engine.evaluator import Evaluator
from onp.engine.metrics import measure
from onp.engine.scoring import Batch, TriggeredBatch
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Evaluation images of one victim, with and without its trigger; on the victim's device."""

    clean: Tensor  #: float32 `[N, C, H, W]`, normalised
    labels: Tensor  #: int64 `[N]`
    triggered: Tensor | None  #: float32 `[N, C, H, W]`, normalised: the same images with the trigger; None without one
    goals: Tensor  #: int64 `[N]`, the class that the trigger leads each image to

    def figures(self, model: nn.Module) -> dict[str, float]:
        """ACC; with a trigger ASR and RA on the images whose class is not the goal, and the ASR without the trigger."""
        clean, goals = [Batch(self.clean, self.labels)], None if self.triggered is None else self.goals
        measured = measure(model, clean, goals, self._attacks())
        figures = {"acc": measured.acc.value}
        if measured.asr is not None and measured.ra is not None and measured.asr_clean is not None:
            figures |= {"asr": measured.asr.value, "ra": measured.ra.value, "asr_untriggered": measured.asr_clean.value}
        return figures

    def along(self, victim: Victim, curve: Curve) -> tuple[list[float], list[float]]:
        """Test ACC and ASR of every mask of a curve; no ASR without a trigger."""
        attacks = self._attacks()
        scores = Evaluator(victim, Batch(self.clean, self.labels), attacks).score(curve.masks)
        return scores.acc.tolist(), scores.asr[:, 0].tolist() if attacks else []

    def _attacks(self) -> list[TriggeredBatch]:
        if self.triggered is None:
            return []
        return [TriggeredBatch("trigger", self.triggered, self.labels, self.goals)]


def ground_truth(victim: Victim, images: ImageSet, trigger: Trigger | None, target: int) -> GroundTruth:
    """The evaluation images of `victim`, and the same with its trigger, which leads to `target` or to the next class."""
    pixels, labels = images.pixels(), images.labels.to(victim.device)
    clean = victim.normalisation(pixels.to(victim.device))
    if trigger is None:
        return GroundTruth(clean, labels, None, torch.full_like(labels, target))
    with torch.no_grad():
        triggered = torch.cat([trigger(part) for part in pixels.split(500)])
    goals = trigger.goals(images.labels, target, victim.classes)
    return GroundTruth(clean, labels, victim.normalisation(triggered.to(victim.device)), goals.to(victim.device))


def oracle_threshold(victim: Victim, truth: GroundTruth, pruning: Pruning, max_acc_drop: float) -> dict[str, Any]:
    """The curve of a pruning on test images, and its oracle: the lowest test ASR at a test ACC within the budget.

    No defence may choose its threshold like this; it shows what the rule that sees clean images alone loses.

    Returns:
        Columns of a table's row; those of the oracle are missing without a trigger.
    """
    curve = pruning.curve
    assert curve is not None
    acc, asr = truth.along(victim, curve)
    row: dict[str, Any] = {
        "threshold": None if pruning.chosen is None else curve.thresholds[pruning.chosen],
        "curve": {
            "threshold": curve.thresholds,
            "pruned": (~curve.masks).sum(1).tolist(),
            "acc_held_out": pruning.acc,
            "acc": acc,
            "asr": asr,
        },
    }
    if asr:
        unpruned = truth.figures(victim.model)
        points: list[tuple[float, float, float | None]] = [(unpruned["asr"], unpruned["acc"], None)]
        points += [
            (asr[i], acc[i], t) for i, t in enumerate(curve.thresholds) if unpruned["acc"] - acc[i] <= max_acc_drop + 1e-9
        ]
        row["asr_oracle"], row["acc_oracle"], row["threshold_oracle"] = min(points, key=lambda point: point[0])
    return row
