"""A defence of one's own: a function that `package.module:callable` names.

It is called with (victim: `onp.model.victim.Victim`, clean: `onp.data.images.ImageSet`, config: `DefenceConfig`), and what it
returns says what it is: a `Mask` prunes; a `Curve` is masks, of which the largest within the accuracy budget is taken; a
`Victim` is the network trained.
"""

from __future__ import annotations

from collections.abc import Callable

from onp.compare.defences.config import DefenceConfig, fit_and_held_out
from onp.compare.defences.pruning import Curve, Pruning, choose_threshold
from onp.data.images import ImageSet
from onp.errors import InputError
from onp.model.mask import Mask
from onp.model.victim import Victim
from onp.plugins import load_callable

Defence = Callable[[Victim, ImageSet, DefenceConfig], Pruning | Victim]


def custom_defence(spec: str) -> Defence:
    """The defence that calls `package.module:callable`.

    The threshold of a `Curve` is chosen on `fit_and_held_out(clean, config.seed)[1]`. The defence raises InputError where the
    function returns anything but a `Mask`, a `Curve` or a `Victim`.

    Raises:
        InputError: there is no such function.
    """
    function = load_callable(spec, "defence", "the name of a defence or package.module:callable")

    def defence(victim: Victim, clean: ImageSet, config: DefenceConfig) -> Pruning | Victim:
        made = function(victim, clean, config)
        if isinstance(made, Curve):
            return choose_threshold(victim, fit_and_held_out(clean, config.seed)[1], made, config.max_acc_drop)
        if isinstance(made, Mask):
            made.check(victim)
            return Pruning(made, 0)
        if isinstance(made, Victim):
            return made
        raise InputError(f"The defence '{spec}' returned an object of type {type(made).__name__}, not a Mask, Curve or Victim.")

    return defence
