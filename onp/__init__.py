"""Find and prune the neurons that carry a backdoor in an image classifier.

    evidence = onp.detect(model, images, labels, norm="cifar10")
    outcome = onp.mitigate(model, images, labels, norm="cifar10")
    applied = onp.apply(outcome.mask, model, (3, 32, 32))
    onp.undo(applied)

`python -m onp.defend --help` is the same for files.
"""

from onp.api import Applied, Evidence, apply, detect, mitigate, undo
from onp.defend import Outcome
from onp.errors import InputError
from onp.model.mask import Mask, load_mask

__all__ = ["Applied", "Evidence", "InputError", "Mask", "Outcome", "apply", "detect", "load_mask", "mitigate", "undo"]
