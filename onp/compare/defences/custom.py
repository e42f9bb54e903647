"""A defence of one's own: a function that `package.module:callable` names."""

from __future__ import annotations

from collections.abc import Callable

from onp.compare.defences.config import DefenceConfig, divide
from onp.compare.defences.pruning import Curve, Pruning, choose
from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.victim import Victim
from onp.plugins import own_callable

Defence = Callable[[Victim, ImageSet, DefenceConfig], Pruning | Victim]


def own_defence(spec: str) -> Defence:
    """The defence that calls `package.module:callable`, imported from the current folder too, as (victim, clean, config).

    What it returns says what it is: a `Mask` prunes, a `Curve` is masks of which the largest that `config.max_acc_drop`
    allows on the images of `divide(clean, config.seed)[1]` is taken, and a `Victim` is the network trained.
    Raises InputError where there is no such function; the defence does where it returns anything else.
    """
    function = own_callable(spec, "defence", "the name of a peer or package.module:callable")

    def defence(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Pruning | Victim:
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
