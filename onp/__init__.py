"""Find and prune the neurons that carry a backdoor in an image classifier.

    evidence = onp.detect(model, images, labels, norm="cifar10")
    outcome = onp.mitigate(model, images, labels, norm="cifar10")
    applied = onp.apply(outcome.mask, model, (3, 32, 32))
    onp.undo(applied)

`python -m onp.defend --help` is the same for files.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onp.api import Applied, Evidence, apply, detect, mitigate, undo
    from onp.defend import Outcome
    from onp.errors import InputError
    from onp.mask import Mask, load_mask

_HOMES = {
    **dict.fromkeys(("Applied", "Evidence", "apply", "detect", "mitigate", "undo"), "onp.api"),
    "InputError": "onp.errors",
    "Mask": "onp.mask",
    "Outcome": "onp.defend",
    "load_mask": "onp.mask",
}

__all__ = ["Applied", "Evidence", "InputError", "Mask", "Outcome", "apply", "detect", "load_mask", "mitigate", "undo"]


def __getattr__(name: str) -> Any:
    # Only what is used is imported: `python -m onp.defend` would otherwise find itself loaded before it runs.
    if name not in _HOMES:
        raise AttributeError(f"module 'onp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
