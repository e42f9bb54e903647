"""What detection alone answers, for a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from onp.defend.case import Case
from onp.defend.decision import Decision
from onp.defend.report.probabilities import in_words, rests_on
from onp.defend.verdict import detected
from onp.detect.targets import Detection
from onp.errors import printable

SHOWN_CLASSES = 5  # in a notebook, the most probable targets first

ADVICE: dict[Decision, str] = {
    "backdoor-evidence": "do not deploy this model; onp.mitigate repairs a copy of it.",
    "inconclusive": 'detect again with preset="thorough", with other seeds or with more clean images.',
    "no-backdoor-evidence": "nothing was found, which is no proof; onp.mitigate(..., trigger=...) tries a known trigger.",
}


@dataclass(frozen=True, repr=False)
class Evidence:
    """The answer of `detect`; only clean images decide."""

    backdoored: bool  #: whether the probability of a backdoor reaches `backdoor_from`
    predicted_target: int  #: the class that is most probably a target
    probability: float  #: that the network has a backdoor
    per_class: tuple[float, ...]  #: probability that the class is the target of one
    evidence: tuple[dict[str, float], ...]  #: per class: what each detector adds to its log odds
    anomaly_index: dict[str, tuple[float, ...]]  #: detector -> per class, in robust standard deviations; nan: not measured
    backdoor_from: float  #: probability from which a backdoor is evident
    none_below: float  #: probability below which there is no evidence of one
    class_names: tuple[str, ...]  #: by class; the number of a class that has no name
    decision: Decision  #: no-backdoor-evidence, inconclusive (the probability is between the thresholds) or backdoor-evidence

    @staticmethod
    def of(detection: Detection, case: Case) -> Evidence:
        """From the detection of a case."""
        probabilities, verdict = detection.probabilities, detection.verdict
        return Evidence(
            backdoored=detection.backdoored,
            predicted_target=detection.predicted_target,
            probability=probabilities.backdoor,
            per_class=probabilities.per_class,
            evidence=probabilities.evidence,
            anomaly_index=detection.scores.anomaly_index,
            backdoor_from=verdict.backdoor_from,
            none_below=verdict.none_below,
            class_names=tuple(case.name(label) for label in range(case.victim.classes)),
            decision=detected(detection),
        )

    @property
    def ranking(self) -> tuple[int, ...]:
        """The classes, the most probable target first."""
        return tuple(sorted(range(len(self.per_class)), key=lambda k: -self.per_class[k]))

    def __str__(self) -> str:
        """Decision, probability, the most probable target and what speaks for it, the next one, and what to do: a line each."""
        first, second = self.ranking[:2]
        lines = (
            f"Decision: {self.decision}",
            f"The probability of a backdoor is {in_words(self.probability)}; {self._thresholds()}.",
            f"Most probable target: class {self._named(first)}, {in_words(self.per_class[first])}; log odds "
            f"{rests_on(self.evidence[first])}.",
            f"Next: class {self._named(second)}, {in_words(self.per_class[second])}, of {len(self.per_class)} classes.",
            f"What to do: {ADVICE[self.decision]}",
        )
        return "\n  ".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same as a table of the most probable targets."""
        rows = [
            f"<tr><td>{escape(self._named(k))}</td><td style='text-align: right'>{in_words(self.per_class[k])}</td>"
            f"<td style='text-align: left'>{escape(rests_on(self.evidence[k]))}</td></tr>"
            for k in self.ranking[:SHOWN_CLASSES]
        ]
        return (
            f"<p><strong>{self.decision}</strong>: the probability of a backdoor is {in_words(self.probability)}; "
            f"{self._thresholds()}; {escape(ADVICE[self.decision])}</p>"
            f"<table><thead><tr><th>target</th><th>probability</th><th style='text-align: left'>log odds, by detector</th></tr>"
            f"</thead><tbody>{''.join(rows)}</tbody></table>"
        )

    def _thresholds(self) -> str:
        return f"evidence from {in_words(self.backdoor_from)} on, none below {in_words(self.none_below)}"

    def _named(self, label: int) -> str:
        name = printable(self.class_names[label], 60)
        return name if name == str(label) else f"{name} ({label})"
