"""What a report warns of."""

from __future__ import annotations

from collections.abc import Sequence

from onp.data import ImageSet
from onp.metrics import Share

CLOSE = 1.0  # suspicion by which two classes are told apart


def over_budget(before: Share, after: Share, max_acc_drop: float) -> str | None:
    """A sentence where images that the search never saw lost more accuracy than allowed; None where they did not."""
    lost = before.value - after.value
    if lost <= max_acc_drop + 1e-9:
        return None
    return (
        f"Images that the search never saw lost {100 * lost:.1f} points of accuracy (n = {after.n}), more than the allowed "
        f"{100 * max_acc_drop:g}; give more clean images or lower --max-acc-drop."
    )


def undecided(suspicion: Sequence[float], threshold: float, images: ImageSet) -> str | None:
    """A sentence where another class stands out nearly as much as the suspected one; None where none does."""
    order = sorted(range(len(suspicion)), key=lambda k: -suspicion[k])
    close = [k for k in order[1:] if suspicion[k] >= max(threshold, suspicion[order[0]] - CLOSE)]
    if not close:
        return None
    others = ", ".join(f"{images.name(k)} ({suspicion[k]:.1f})" for k in close[:3])
    return f"Other classes stand out nearly as much: {others}; one of them may be the target, and the backdoor still be there."
