"""The decision of a run, and the exit code that goes with it."""

from __future__ import annotations

from typing import Literal, get_args

Decision = Literal["no-backdoor-evidence", "inconclusive", "backdoor-evidence", "repaired", "partly-repaired", "not-repairable"]
"""What a run came to. `backdoor-evidence`: nothing was to be repaired, as in a scan; `partly-repaired`: units were pruned, and
triggers of a family still work better than on clean networks; `inconclusive`: the probability of a backdoor lies between the
two thresholds."""

DECISIONS: tuple[Decision, ...] = get_args(Decision)

REPAIRS: tuple[Decision, ...] = ("repaired", "partly-repaired")
"""Those that come with a mask and a repaired network."""

FAIL_ON = ("evidence", "inconclusive", "never")
"""From which decision on a run ends with an exit code that stops a pipeline."""

NOTHING, EVIDENCE, UNUSABLE, NOT_REPAIRABLE, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes of all commands: no finding, a finding, unusable input, a finding that was to be repaired and could not be."""


def exit_code(decision: Decision, fail_on: str = "evidence") -> int:
    """The exit code of a run.

    Args:
        decision: of the run.
        fail_on: "evidence": evidence of a backdoor, repaired or not, is not 0; "inconclusive": nor is an inconclusive run;
            "never": every decision is 0.

    Example:
        >>> exit_code("repaired"), exit_code("not-repairable"), exit_code("inconclusive")
        (1, 3, 0)
    """
    if fail_on == "never" or decision == "no-backdoor-evidence":
        return NOTHING
    if decision == "not-repairable":
        return NOT_REPAIRABLE
    if decision == "inconclusive" and fail_on != "inconclusive":
        return NOTHING
    return EVIDENCE
