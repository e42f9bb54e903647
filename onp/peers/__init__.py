"""Other defences, each by its published recipe, on clean images alone.

`PRUNERS[name].prune(victim, clean, config) -> Mask` for methods that score units and for other searches over masks,
`TUNERS[name](victim, clean, config) -> Victim` for methods that train. `clean` is an `ImageSet`, `config` a `PeerConfig`.
`defence(name)` is any of them, or a function of one's own.
"""

from collections.abc import Callable

from onp.data import ImageSet
from onp.errors import InputError
from onp.peers import (
    anp,
    bnp,
    clp,
    cma_es,
    fp,
    ft,
    ft_sam,
    ibau,
    ims,
    nad,
    npd,
    random_search,
    rnp,
    sau,
    taylor,
    tsbd,
)
from onp.peers.config import PeerConfig
from onp.peers.own import Defence, own_defence
from onp.peers.pruning import Curve, Pruner, Pruning
from onp.peers.searcher import Searcher
from onp.victim import Victim

PRUNERS: dict[str, Pruner | Searcher] = {
    "fp": Pruner(fp.curve),
    "anp": Pruner(anp.curve),
    "clp": Pruner(clp.curve),
    "bnp": Pruner(bnp.curve),
    "rnp": Pruner(rnp.curve),
    "ims": Pruner(ims.curve),
    "tsbd": Pruner(tsbd.curve),
    "random": Searcher(random_search.search),
    "taylor": Searcher(taylor.search),
    "cma-es": Searcher(cma_es.search),
}
TUNERS: dict[str, Callable[[Victim, ImageSet, PeerConfig], Victim]] = {
    "ft": ft.tune,
    "nad": nad.tune,
    "i-bau": ibau.tune,
    "ft-sam": ft_sam.tune,
    "sau": sau.tune,
    "npd": npd.tune,
    "tsbd-ft": tsbd.tune,
}

__all__ = ["PRUNERS", "TUNERS", "Curve", "Defence", "PeerConfig", "Pruner", "Pruning", "Searcher", "defence"]


def defence(name: str) -> Defence:
    """The peer of that name, or what `package.module:callable` names, as `onp.peers.own` says, from the current folder too.

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
