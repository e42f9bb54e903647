"""Other defences, each by its published recipe, on clean images alone.

`PRUNERS[name].prune(victim, clean, config) -> Mask` for methods that score units and for other searches over masks,
`TUNERS[name](victim, clean, config) -> Victim` for methods that train. `clean` is an `ImageSet`, `config` a `DefenceConfig`.
`defence(name)` is any of them, or a function of one's own.
"""

from collections.abc import Callable

from onp.compare.defences import anp, bnp, clp, fp, ims, npd, rnp, tsbd
from onp.compare.defences.config import DefenceConfig
from onp.compare.defences.custom import Defence, own_defence
from onp.compare.defences.pruning import Curve, Pruner, Pruning
from onp.compare.defences.searches import Searcher
from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.tuning import TUNERS as TUNING_METHODS
from onp.model.victim import Victim
from onp.search.baselines import cma_es, greedy, random_search

PRUNERS: dict[str, Pruner | Searcher] = {
    "fp": Pruner(fp.curve),
    "anp": Pruner(anp.curve),
    "clp": Pruner(clp.curve),
    "bnp": Pruner(bnp.curve),
    "rnp": Pruner(rnp.curve),
    "ims": Pruner(ims.curve),
    "tsbd": Pruner(tsbd.curve),
    "random": Searcher(random_search.search),
    "taylor": Searcher(greedy.search),
    "cma-es": Searcher(cma_es.search),
}
TUNERS: dict[str, Callable[[Victim, ImageSet, DefenceConfig], Victim]] = {
    **TUNING_METHODS,
    "npd": npd.tune,
    "tsbd-ft": tsbd.tune,
}

__all__ = ["PRUNERS", "TUNERS", "Curve", "Defence", "DefenceConfig", "Pruner", "Pruning", "Searcher", "defence"]


def defence(name: str) -> Defence:
    """The peer of that name, or what `package.module:callable` names, as `defences.custom` says, from the current folder too.

    Called with (victim, clean, config) it returns a `Pruning`, or a `Victim` where it trains. Raises InputError where there
    is none.
    """
    if name in TUNERS:
        return TUNERS[name]
    if name in PRUNERS:
        return PRUNERS[name].run
    if ":" not in name:
        raise InputError(
            f"There is no defence '{name}'; choose from {', '.join((*PRUNERS, *TUNERS))}, or package.module:callable."
        )
    return own_defence(name)
