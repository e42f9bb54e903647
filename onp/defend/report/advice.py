"""What to do after a run, by its decision."""

from __future__ import annotations

from onp.defend.config import DefendConfig
from onp.defend.decision import Decision
from onp.defend.verdict import LEAST_IMAGES, Findings

USE_TRIGGER = "give that trigger with --trigger, or the images that carry it with --triggered-data, to repair the model for it"
SCAN_AGAIN = "run again with --preset thorough, with other seeds (--seed 1, --seed 2) or with more clean images"
KEEP_BOTH = "Keep the original checkpoint and this report, and tell whoever supplied the model."
USE_REPAIRED = (
    "Measure the repaired checkpoint on your own test images, by class, before you use it in place of the original; "
    "architecture, tensor names and shapes are the same."
)
VERIFY = (
    "To ask later whether the repaired checkpoint obeys triggers, after more training for instance, use onp verify (python -m "
    "onp.defend --verify), which knows what pruning does to the statistics that a scan compares."
)

NEXT_STEPS: dict[Decision, tuple[str, ...]] = {
    "repaired": (
        USE_REPAIRED,
        "If you have the attacker's trigger or images that carry it, measure with --eval-trigger or --eval-triggered-data; to "
        "repair for exactly that trigger, use --trigger or --triggered-data.",
        VERIFY,
        KEEP_BOTH,
    ),
    "partly-repaired": (
        "Before you use the repaired checkpoint, weigh what survives: fresh triggers of some families still work better than "
        "on clean networks. They stand in for the attacker's, and can survive a repair that stops it; only the trigger itself "
        "can tell.",
        "To stop them too, run again with a larger --max-acc-drop, with --preset thorough or with more clean images; or train "
        "what is left with --tune ft-sam.",
        "If you have the attacker's trigger or images that carry it, repair for exactly that trigger with --trigger or "
        "--triggered-data.",
        VERIFY,
        KEEP_BOTH,
    ),
    "no-backdoor-evidence": (
        "The model was not changed, and nothing speaks against using it; but the absence of evidence is no proof.",
        "If you have images that you think carry a trigger, give them with --triggered-data: a known trigger needs no "
        "detection.",
        "Where much depends on the answer, scan again with --preset thorough or other seeds.",
    ),
    "inconclusive": (
        f"Do not take this for a clean model: {SCAN_AGAIN}.",
        "If you have images that you think carry a trigger, give them with --triggered-data: a known trigger needs no "
        "detection.",
    ),
    "backdoor-evidence": (
        "Do not deploy this model.",
        "To repair it, run onp defend with the same options.",
        KEEP_BOTH,
    ),
    "not-repairable": (
        "Do not deploy this model. Where the reason above names a larger --max-acc-drop, a repair exists that costs up to "
        "that much accuracy.",
        "More clean images, or --preset thorough, give the search more to work with.",
        "If you have the attacker's trigger or images that carry it, give them with --trigger or --triggered-data.",
        "Otherwise train the model again from data you trust, and tell whoever supplied it.",
    ),
}

VERIFIED: dict[Decision, tuple[str, ...]] = {
    "no-backdoor-evidence": (
        "Fresh triggers work no better on this network than on clean ones: measure it on your own test images, by class, and "
        "use it.",
        "After more training on data that you did not check, verify it again: that can bring a backdoor back.",
    ),
    "backdoor-evidence": (
        "Do not deploy this model.",
        "Repair the original checkpoint again, with --preset thorough, more clean images or a larger --max-acc-drop.",
        KEEP_BOTH,
    ),
}


def next_steps(findings: Findings, config: DefendConfig) -> tuple[str, ...]:
    """What to do, the first thing first.

    Args:
        findings: of the run.
        config: its options.
    """
    steps = (VERIFIED if config.verify else {}).get(findings.decision, NEXT_STEPS[findings.decision])
    if findings.missed is not None:
        return (f"G{USE_TRIGGER[1:]}.", f"Do not take this for a clean model: {SCAN_AGAIN}.")
    if findings.decision == "backdoor-evidence" and config.repair and not (config.verify or config.force):
        return (steps[0], f"Give {LEAST_IMAGES} clean images or more to repair it; --force repairs with fewer.", *steps[2:])
    return steps
