"""The section of onp/pretrained/README.md on the verdict."""

from __future__ import annotations

from typing import Any

from onp.detect.probability import LearnedVerdict

BEGIN, END = "<!-- verdict: written by onp zoo learn -->\n", "<!-- end of verdict -->\n"


def updated_card(text: str, verdict: LearnedVerdict, figures: dict[str, Any]) -> str:
    """A README with the section anew, at its end where there was none."""
    section = BEGIN + _section(verdict, figures) + END
    before, begin, rest = text.partition(BEGIN)
    if not begin:
        return (text.rstrip("\n") + "\n\n" if text else "") + section
    return before + section + rest.partition(END)[2]


def _section(verdict: LearnedVerdict, figures: dict[str, Any]) -> str:
    zoo, ours, by_hand = figures["zoo"], figures["models"]["tails"], figures["models"]["hand_made"]
    decided, share = figures["decisions"], 100 * zoo["backdoored"] / (zoo["backdoored"] + zoo["clean"])
    rows = "\n".join(
        f"| {title} | {_cell(ours[key], percent)} | {_cell(by_hand[key], percent)} |"
        for key, title, percent in (
            ("auc", "ROC-AUC", False),
            ("tpr", "found at 1 % false positives", True),
            ("cross_entropy", "cross-entropy, nats", False),
            ("calibration_error", "expected calibration error", True),
            ("right_class", "right class named, of those found", True),
        )
    )
    return f"""# Learned verdict

`verdict.json`: from the scores of all detectors to the probability that a class is the target of a backdoor, and that the
network has one (`onp.detect.probability`). Version {verdict.version}. The prior is the share of backdoored networks in the zoo, {share:.0f} %.

| | |
|---|---|
| `floors` | per detector: median spread of the log costs among the classes of a clean network |
| `groups` | networks whose batch norms have a say and the others: what each detector says of a class by its anomaly index and, where networks share a unit, by its cost, as corners of rising piecewise linear functions (`onp.zoo.learn.tails`); their geometric mean counts, and the norm over each kind of detectors is added to the log odds |
| `pair` | weight of two targets against two independent backdoors |
| `backdoor_from`, `none_below` | {verdict.backdoor_from} and {verdict.none_below}: at most 1 % of clean networks are at or above the first; at most 2 % of backdoored ones are below the second, but it is no lower than leaves 80 % of the clean ones below |

Learned from {zoo["networks"]} networks of the zoo (docs/detection.md), {zoo["clean"]} clean and {zoo["backdoored"]} with a backdoor that works, with {zoo["rows"]} splits
of clean images; {zoo["left_out"]} are left out (a backdoor that does not work, or chance accuracy). Judged by models that saw neither the attack family nor the
architecture of a network, 95 % interval over networks:

| | learned | hand-made rule |
|---|---|---|
{rows}

At the two thresholds {_cell(decided["clean_as_backdoor"], True)} of clean networks count as backdoored and {_cell(decided["clean_inconclusive"], True)} are inconclusive;
{_cell(decided["backdoored_missed"], True)} of backdoored ones are missed and {_cell(decided["backdoored_inconclusive"], True)} are inconclusive. None of the embedded networks and none of the
CIFAR-10 victims of docs/cifar10.md is in the zoo. Made again by `onp zoo learn` from `bench/dossiers/detection.jsonl.gz`.

Limits: small networks of images up to 32x32 pixels with 10 to 43 classes. A kind of trigger that no detector measures is not seen, however
certain the probability looks.
"""  # noqa: E501


def _cell(value: list[float], percent: bool) -> str:
    """A figure with its interval."""
    if percent:
        return f"{100 * value[0]:.1f} % ({100 * value[1]:.1f} to {100 * value[2]:.1f})"
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
