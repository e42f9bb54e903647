"""The progress of a run on stderr and in TensorBoard, and how long each of its stages took."""

from __future__ import annotations

import dataclasses
import importlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from onp import progress
from onp.errors import InputError
from onp.search.course import Update

SCALARS = ("phi", "asr", "expected_acc_loss", "pruned", "entropy", "approx_kl", "clip_fraction")


class Monitor:
    """Shows the stages of a run on stderr and keeps their `seconds`, in order.

    Args:
        quiet: show nothing.
        verbose: show a line for every step of the search.
        machine: JSON lines instead of text, one object {"event": ...} each.
        tensorboard: folder for the scalars of the search and the pictures of the triggers.
        pace: how often lines are shown.

    Raises:
        InputError: TensorBoard is asked for and not installed, or its folder cannot be written.
    """

    def __init__(
        self,
        quiet: bool = False,
        verbose: bool = False,
        machine: bool = False,
        tensorboard: str | None = None,
        pace: progress.Pace = progress.Pace(),
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._quiet, self._verbose, self._machine, self._pace = quiet, verbose, machine, pace
        self._board = None if tensorboard is None else _board(tensorboard)
        self._masks = 0  # scored so far, in all searches

    def note(self, line: str) -> None:
        """Show a line by itself."""
        if self._machine and not self._quiet:
            progress.event("note", text=line)
        elif not self._quiet:
            progress.say(line)

    @contextmanager
    def stage(self, name: str, total: int = 0) -> Iterator[progress.Stage]:
        """Time a stage; one of `total` steps is shown with an estimate, 0 where that is not known."""
        start = time.monotonic()
        machine = self._machine and not self._quiet
        if machine:
            progress.event("stage", name=name, total=total)
        try:
            with progress.stage(name, total, self._quiet, self._machine, self._pace) as stage:
                yield stage
        finally:
            seconds = time.monotonic() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            if machine:
                progress.event("stage end", name=name, seconds=round(seconds, 3))

    def search_progress(self, stage: progress.Stage) -> Callable[[Update], None]:
        """What a search calls with each of its steps: shows the masks scored, the reward of the best one and its effect."""
        shown = 0

        def update(step: Update) -> None:
            nonlocal shown
            # Each search counts its masks from 0.
            masks = step.evaluations - shown if step.evaluations >= shown else step.evaluations
            shown = step.evaluations
            self._masks += masks
            if self._verbose:
                block = f" block {step.block}" if step.block >= 0 else ""
                stage.print(
                    f"  {step.stage}{block}: {step.evaluations} masks, reward {step.phi:.4f}, surrogate ASR {step.asr:.4f}, "
                    f"expected ACC loss {step.expected_acc_loss:.4f}, {step.pruned} units pruned, "
                    f"entropy {step.entropy:.3f}, KL {step.approx_kl:.4f}"
                )
            if self._machine and not self._quiet:
                progress.event("step", **dataclasses.asdict(step))
            if self._board is not None:
                for name in SCALARS:
                    self._board.add_scalar(f"search/{name}", getattr(step, name), self._masks)
            best = f"best reward {step.phi:.3f}, surrogate ASR {step.asr:.3f}, {step.pruned} units pruned"
            stage.advance(masks, best)

        return update

    def pictures(self, pictures: Iterable[tuple[str, Tensor]]) -> None:
        """Show triggered images, uint8 `[C, H, W]` with their names, in TensorBoard and close it."""
        if self._board is not None:
            for name, image in pictures:
                self._board.add_image(f"trigger/{name}", image.numpy())
            self._board.close()


def _board(folder: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside tensorboard
            return importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder)
    except ImportError as error:
        raise InputError("--tensorboard needs TensorBoard; install it with: pip install tensorboard") from error
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written ({error.strerror}); give --tensorboard another.") from error
