"""Find and prune the neurons that carry a backdoor in an image classifier.

    evidence = onp.detect(model, images, labels, norm="cifar10")
    outcome = onp.mitigate(model, images, labels, norm="cifar10")
    applied = onp.apply(outcome.mask, model, (3, 32, 32))
    onp.undo(applied)

`onp --help` is the same for files.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onp.version import VERSION

if TYPE_CHECKING:
    from onp.api import Applied, apply, detect, mitigate, undo
    from onp.defend import Outcome
    from onp.defend.evidence import Evidence
    from onp.errors import InputError
    from onp.model.mask import Mask, load_mask

__all__ = ["Applied", "Evidence", "InputError", "Mask", "Outcome", "apply", "detect", "load_mask", "mitigate", "undo"]
__version__ = VERSION

_HOMES = {
    "Evidence": "onp.defend.evidence",
    "InputError": "onp.errors",
    "Mask": "onp.model.mask",
    "Outcome": "onp.defend",
    "load_mask": "onp.model.mask",
}


class _Onp(ModuleType):
    """Imports what `__all__` names when it is first asked for: `onp version` does not wait for torch."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'onp' has no attribute '{name}'")
        return getattr(importlib.import_module(_HOMES.get(name, "onp.api")), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system would put the package onp.detect in place of the function of that name.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Onp
