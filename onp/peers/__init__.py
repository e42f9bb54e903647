"""Other defences, each by its published recipe, on clean images alone.

`PRUNERS[name].prune(victim, clean, config) -> Mask` for methods that score units and for other searches over masks,
`TUNERS[name](victim, clean, config) -> Victim` for methods that train. `clean` is an `ImageSet`, `config` a `PeerConfig`.
"""

from collections.abc import Callable

from onp.data import ImageSet
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
from onp.peers.pruning import Pruner
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

__all__ = ["PRUNERS", "TUNERS", "PeerConfig", "Pruner", "Searcher"]
