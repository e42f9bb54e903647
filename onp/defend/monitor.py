"""What a run says while it works, and how long each of its stages took."""

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
from onp.search.agent import Update


class Monitor:
    """Shows the stages of a run on stderr and keeps their `seconds`, in order.

    verbose: a line for every step of the search; machine: JSON lines instead of text, one object {"event": ...} each;
    tensorboard: a folder for the scalars of the search and the pictures of the triggers. Raises InputError when
    TensorBoard is asked for and not installed.
    """

    def __init__(
        self, quiet: bool = False, verbose: bool = False, machine: bool = False, tensorboard: str | None = None
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._quiet, self._verbose, self._machine = quiet, verbose, machine
        self._board = None if tensorboard is None else _board(tensorboard)
        self._step = 0

    def say(self, line: str) -> None:
        """A line by itself."""
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
            with progress.stage(name, total, self._quiet, self._machine) as stage:
                yield stage
        finally:
            seconds = time.monotonic() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            if machine:
                progress.event("stage end", name=name, seconds=round(seconds, 3))

    def steps(self, stage: progress.Stage) -> Callable[[Update], None]:
        """What `search` tells its steps to: masks scored, the reward of the best one and what it does."""
        told = 0

        def update(step: Update) -> None:
            nonlocal told
            masks = step.evaluations - told if step.evaluations >= told else step.evaluations  # a new round counts anew
            told = step.evaluations
            self._step += masks
            if self._verbose:
                block = f" block {step.block}" if step.block >= 0 else ""
                stage.print(
                    f"  {step.stage}{block}: {step.evaluations} masks, reward {step.phi:.4f}, surrogate ASR {step.asr:.4f}, "
                    f"expected ACC loss {step.drop:.4f}, {step.pruned} units pruned, "
                    f"entropy {step.entropy:.3f}, KL {step.approx_kl:.4f}"
                )
            if self._machine and not self._quiet:
                progress.event("step", **dataclasses.asdict(step))
            if self._board is not None:
                for name in ("phi", "asr", "drop", "pruned", "entropy", "approx_kl", "clip_fraction"):
                    self._board.add_scalar(f"search/{name}", getattr(step, name), self._step)
            note = f"best reward {step.phi:.3f}, surrogate ASR {step.asr:.3f}, {step.pruned} units pruned"
            stage.advance(masks, note)

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
