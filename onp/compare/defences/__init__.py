"""Baseline defences, each by its published recipe, on clean images alone; and defences of one's own.

Entry point: `defence(name)`, a function of (victim, clean, config) that returns a `Pruning`, or a `Victim` where it trains.
`PRUNERS` score units and take a threshold, `SEARCHES` search masks in place of onp's agent, `TUNERS` train. `custom` says what
`package.module:callable` may return. May import what `onp.compare` may.
"""

from collections.abc import Callable

from onp.compare.defences import anp, bnp, clp, fp, ims, npd, rnp, tsbd
from onp.compare.defences.config import DefenceConfig
from onp.compare.defences.custom import Defence, custom_defence
from onp.compare.defences.pruning import Curve, Pruner, Pruning
from onp.compare.defences.searches import Search, SearchBaseline
from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.tuning import TUNERS as TUNING_METHODS
from onp.model.victim import Victim
from onp.search.baselines import cma_es, greedy, random_search

PRUNERS: dict[str, Pruner] = {
    "fp": Pruner(fp.curve),
    "anp": Pruner(anp.curve),
    "clp": Pruner(clp.curve),
    "bnp": Pruner(bnp.curve),
    "rnp": Pruner(rnp.curve),
    "ims": Pruner(ims.curve),
    "tsbd": Pruner(tsbd.curve),
}
SEARCHES: dict[str, Search] = {
    "random": random_search.search,
    "taylor": greedy.search,
    "cma-es": cma_es.search,
}
TUNERS: dict[str, Callable[[Victim, ImageSet, DefenceConfig], Victim]] = {
    **TUNING_METHODS,
    "npd": npd.tune,
    "tsbd-ft": tsbd.tune,
}

__all__ = [
    "PRUNERS",
    "SEARCHES",
    "TUNERS",
    "Curve",
    "Defence",
    "DefenceConfig",
    "Pruner",
    "Pruning",
    "SearchBaseline",
    "defence",
    "defence_names",
]


def defence_names() -> tuple[str, ...]:
    """The names of all baseline defences."""
    return *PRUNERS, *SEARCHES, *TUNERS


def defence(name: str, preset: str = "default") -> Defence:
    """A baseline defence, or one of the user's own.

    Args:
        name: of a baseline defence, or `package.module:callable`, imported from the current folder too.
        preset: of `onp.defend`, for the searches: their trigger bank and number of evaluations.

    Raises:
        InputError: there is none.
    """
    if name in TUNERS:
        return TUNERS[name]
    if name in PRUNERS:
        return PRUNERS[name].run
    if name in SEARCHES:
        return SearchBaseline(SEARCHES[name], preset).run
    if ":" not in name:
        raise InputError(f"There is no defence '{name}'; choose from {', '.join(defence_names())}, or package.module:callable.")
    return custom_defence(name)
