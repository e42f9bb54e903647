"""A defence of one's own: a function that `package.module:callable` names."""

from __future__ import annotations

from collections.abc import Callable

from onp.data import ImageSet
from onp.errors import InputError
from onp.mask import Mask
from onp.own import own_callable
from onp.peers.config import PeerConfig, divide
from onp.peers.pruning import Curve, Pruning, choose
from onp.victim import Victim

Defence = Callable[[Victim, ImageSet, PeerConfig], Pruning | Victim]


def own_defence(spec: str) -> Defence:
    """The defence that calls `package.module:callable`, imported from the current folder too, as (victim, clean, config).

    What it returns says what it is: a `Mask` prunes, a `Curve` is masks of which the largest that `config.max_acc_drop`
    allows on the images of `divide(clean, config.seed)[1]` is taken, and a `Victim` is the network trained.
    Raises InputError where there is no such function; the defence does where it returns anything else.
    """
    function = own_callable(spec, "defence", "the name of a peer or package.module:callable")

    def defence(victim: Victim, clean: ImageSet, config: PeerConfig) -> Pruning | Victim:
        made = function(victim, clean, config)
        if isinstance(made, Curve):
            return choose(victim, divide(clean, config.seed)[1], made, config.max_acc_drop)
        if isinstance(made, Mask):
            made.check(victim)
            return Pruning(made, 0)
        if isinstance(made, Victim):
            return made
        raise InputError(f"The defence '{spec}' returned an object of type {type(made).__name__}, not a Mask, Curve or Victim.")

    return defence
