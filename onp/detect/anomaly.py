"""Suspicion: how much every witness says against every class, and what they come to together.

A witness gives each class an effort; a class is suspected where its effort lies anomalously far below that of the others, which
needs no threshold in the witness's own unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DRIFT = "drift"
MEMORY = "memory"
MIX = "mix"
LATENT = "latent"
UNFITTED = (LATENT, MEMORY, MIX)  # the same however long triggers are fitted, and whatever the seed
LEAST_SPREAD = 0.1  # ten per cent: classes of one network differ by that much without a reason
# And by a factor of e in how many changed images they attract, by a fifth of the logits' spread in what is remembered, and by
# one in 25 of the images in how many were remembered as a class. What triggers cost differs more: with 0.1 for all, 9 of 23
# looks at twelve clean networks accused a class; the spread of nine classes alone may be small by chance.
LEAST_SPREAD_OF = {DRIFT: 1.0, MEMORY: 0.2, MIX: 0.04, "patch": 0.25, "blend": 0.15, "smooth": 0.25, "warp": 0.45}
QUIET = 1.0  # evidence below this is noise: without a backdoor one class in seven has that much
LOUDEST = 6.0  # a witness is not heard beyond this many robust standard deviations
ALONE = 2.5  # most that one witness adds to the suspicion of a class: alone, one came to 6.2 on a clean network


@dataclass(frozen=True)
class Scan:
    """How much effort it takes to reach each class, by every witness (`latent`, `drift`, `memory`, `mix`, the families)."""

    efforts: dict[str, tuple[float, ...]]  #: log of cost over success, per class; of `memory`: the pull, of `mix`: it, negated

    @property
    def witnesses(self) -> dict[str, tuple[float, ...]]:
        """Evidence per class: positive where a class is anomalously cheap."""
        return {
            name: tuple(evidence(effort, k, least=least_spread(name)) for k in range(len(effort)))
            for name, effort in self.efforts.items()
        }

    @property
    def suspicion(self) -> tuple[float, ...]:
        """What all witnesses say above the noise (`loudness`), added up per class, of each at most `ALONE`.

        Several that say a little convict as well as two that are loud; one never does. The mean of the two loudest told a class
        that five witnesses named (a colour filter's target) no better from the worst of clean networks than noise would.
        `mix` is heard as far as `latent` or `memory` agree with it: a training set that had more of a class says the same.
        """
        heard = dict(self.witnesses)
        mix, agreeing = heard.pop(MIX, None), [heard[name] for name in (LATENT, MEMORY) if name in heard]
        if mix is not None and agreeing:
            heard[MIX] = tuple(map(min, mix, map(max, *agreeing) if len(agreeing) > 1 else agreeing[0]))
        return tuple(sum(min(loudness(each), ALONE) for each in said) for said in zip(*heard.values(), strict=True))

    @property
    def unfitted(self) -> Scan | None:
        """What a longer look would find again, by two witnesses or more; None where there are fewer."""
        found = {name: self.efforts[name] for name in UNFITTED if name in self.efforts}
        return Scan(found) if len(found) > 1 else None

    @property
    def suspect(self) -> int:
        """The class with the highest suspicion."""
        suspicion = self.suspicion
        return max(range(len(suspicion)), key=suspicion.__getitem__)


def efforts(cost: Tensor, success: Tensor) -> tuple[float, ...]:
    """log(cost / success) per class, float `[classes]` each: what a class costs, more where the trigger seldom works."""
    effort = torch.log(cost.double().clamp_min(1e-6)) - torch.log(success.double().clamp(0.02, 1))
    return tuple(effort.tolist())


def least_spread(name: str) -> float:
    """The least deviation between classes that `evidence` of witness `name` is counted in."""
    return LEAST_SPREAD_OF.get(name, LEAST_SPREAD)


def evidence(effort: Sequence[float], k: int, changed: float | None = None, least: float = LEAST_SPREAD) -> float:
    """How anomalously cheap class k is: distance of its effort below the other classes' median, in robust deviations.

    Median and median absolute deviation over the *other* classes (the anomaly index of Neural Cleanse), of the logarithm so
    that the family's unit does not matter. `changed` is asked about instead of class k's own effort; deviations below `least`
    count as `least`.
    """
    rest = torch.tensor([value for index, value in enumerate(effort) if index != k], dtype=torch.float64)
    middle = rest.median()
    spread = max(1.4826 * float((rest - middle).abs().median()), least)
    return (float(middle) - (effort[k] if changed is None else changed)) / spread


def loudness(said: float) -> float:
    """How much a witness counts, 0 to `LOUDEST`, that gives so much evidence."""
    return min(max(said - QUIET, 0.0), LOUDEST)
