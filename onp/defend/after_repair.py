"""What options ask for once a network is pruned: tuning it, and taking the pruned channels out."""

from __future__ import annotations

from onp.data.images import ImageSet
from onp.defend.report.audit import Audit, der, measure_figures
from onp.defend.report.sections import Tuned
from onp.defend.run import Run
from onp.model.mask import Mask
from onp.model.shrink import Shrunk, shrink
from onp.model.tuning import tune_pruned
from onp.model.tuning.config import TuneConfig
from onp.model.victim import Victim


def tune_repaired(pruned: Victim, mask: Mask, clean: ImageSet, audit: Audit, run: Run) -> tuple[Victim, Tuned | None]:
    """Train the pruned network as --tune asks; without it the network as it is.

    Args:
        pruned: the network.
        mask: what was pruned; stays at zero.
        clean: to train on.
        audit: of the pruning; the trained network is measured on the same images.
        run: options and progress.

    Returns:
        The network, and its figures where it was trained.
    """
    config, method = run.config, run.config.tune
    if method is None:
        return pruned, None
    with run.stage("training the repaired network"):
        settings = TuneConfig(seed=run.seed, passes=run.preset.tuning_passes, quiet=config.quiet or config.json)
        trained = tune_pruned(pruned, mask, method, clean, settings)
        figures = measure_figures(trained, audit.data)
    return trained, Tuned(method, figures, der(audit.before, figures))


def shrink_repaired(repaired: Victim, mask: Mask, run: Run) -> Shrunk | None:
    """The network without its pruned channels as --shrink asks; None without it."""
    if not run.config.shrink:
        return None
    with run.stage("taking pruned channels out"):
        return shrink(repaired, mask)
