"""What detection alone answers, for a notebook."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from onp.defend.case import Case
from onp.defend.decision import Decision
from onp.defend.verdict import detected
from onp.detect.targets import Detection
from onp.errors import printable

SHOWN_CLASSES = 5  # in a notebook, the highest scores first
SHOWN_DETECTORS = 4

ADVICE: dict[Decision, str] = {
    "backdoor-evidence": "do not deploy this model; onp.mitigate repairs a copy of it.",
    "inconclusive": 'detect again with preset="thorough", with other seeds or with more clean images.',
    "no-backdoor-evidence": "nothing was found, which is no proof; onp.mitigate(..., trigger=...) tries a known trigger.",
}


@dataclass(frozen=True, repr=False)
class Evidence:
    """The answer of `detect`; only clean images decide."""

    backdoored: bool  #: whether the score of a class reaches the threshold
    predicted_target: int  #: the class with the highest score
    score: tuple[float, ...]  #: per class: the clipped anomaly indices of all detectors, summed; nan where it has no images
    anomaly_index: dict[str, tuple[float, ...]]  #: detector -> per class, in robust standard deviations
    threshold: float  #: of the score
    class_names: tuple[str, ...]  #: by class; the number of a class that has no name
    decision: Decision  #: no-backdoor-evidence, inconclusive (the highest score is close to the threshold) or backdoor-evidence

    @staticmethod
    def of(detection: Detection, case: Case) -> Evidence:
        """From the detection scores of a case."""
        scores = detection.scores
        return Evidence(
            detection.backdoored,
            scores.predicted_target,
            scores.score,
            scores.anomaly_index,
            detection.config.threshold,
            tuple(case.name(label) for label in range(case.victim.classes)),
            detected(detection),
        )

    @property
    def ranking(self) -> tuple[int, ...]:
        """The classes by their scores, the highest first; those without a score last."""
        scores = [-math.inf if math.isnan(score) else score for score in self.score]
        return tuple(sorted(range(len(scores)), key=lambda k: -scores[k]))

    def __str__(self) -> str:
        """Decision, class, its detectors, the class that comes next, and what to do: a line each."""
        first, second = self.ranking[:2]
        highest, threshold = f"{self.score[first]:.1f}", f"{self.threshold:g}"
        lines = (
            f"Decision: {self.decision}",
            f"Class {self._named(first)} has the highest score, {highest}; the threshold is {threshold}.",
            f"Detectors that find it most anomalous: {self._detectors(first)}.",
            f"Next: class {self._named(second)} with {self.score[second]:.1f}, of {len(self.score)} classes.",
            f"What to do: {ADVICE[self.decision]}",
        )
        return "\n  ".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same as a table of the highest scores."""
        rows = [
            f"<tr><td>{escape(self._named(k))}</td><td style='text-align: right'>{self.score[k]:.1f}</td>"
            f"<td style='text-align: left'>{escape(self._detectors(k))}</td></tr>"
            for k in self.ranking[:SHOWN_CLASSES]
        ]
        return (
            f"<p><strong>{self.decision}</strong>: the threshold of the score is {self.threshold:g}; "
            f"{escape(ADVICE[self.decision])}</p>"
            f"<table><thead><tr><th>class</th><th>score</th><th style='text-align: left'>strongest detectors</th></tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )

    def _named(self, label: int) -> str:
        name = printable(self.class_names[label], 60)
        return name if name == str(label) else f"{name} ({label})"

    def _detectors(self, label: int) -> str:
        """The detectors that find a class most anomalous, with their indices."""
        indices = [(name, values[label]) for name, values in self.anomaly_index.items() if not math.isnan(values[label])]
        highest = sorted(indices, key=lambda found: -found[1])[:SHOWN_DETECTORS]
        return ", ".join(f"{name} {index:.1f}" for name, index in highest)
