"""Networks of which one pass is expensive on a CPU, where less has to do.

A ResNet-50 at 224x224 takes a core 0.2 s an image forwards and back, and a quick run on ten classes 20 000 such passes. What
counts is the number of operations and not the time, so that a run goes the same way every time.
"""

from onp.engine.plan import plan_of
from onp.model.victim import Victim

EXPENSIVE = 2e9  # FLOPs an image forwards: a PreActResNet-18 at 32x32 takes 1.2e9, a ResNet-18 at 224x224 4e9


def expensive(victim: Victim) -> bool:
    """Whether a pass of the victim is; never on a GPU."""
    return victim.device.type == "cpu" and sum(plan_of(victim).cost) >= EXPENSIVE
