"""One run of the pipeline: its options, settings and seed, its progress, and what it keeps to be resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from onp import progress
from onp.defend.case import Case
from onp.defend.config import DefendConfig
from onp.defend.folder import check_folder, check_model_name
from onp.defend.monitor import Monitor
from onp.defend.presets import Preset
from onp.defend.resolve import preset_of, resolve
from onp.detect.config import DetectRun
from onp.errors import InputError, device_error
from onp.files import check_apart
from onp.model.hub_config import HubModel
from onp.model.state_dicts import file_and_key
from onp.numerics import derive_seed, resolve_device
from onp.resume import Store

IDENTIFYING = ("preset", "max_acc_drop", "seed", "arch", "norm", "image_size", "heal", "tune", "repair", "verify")
"""Options that a resumed run must share with the one it continues."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Run:
    """What goes with a case from stage to stage."""

    config: DefendConfig  #: resolved
    preset: Preset
    monitor: Monitor = field(default_factory=lambda: Monitor(quiet=True))
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    hub: HubModel | None = None  #: the model that `config.arch` describes, where that is a `config.json`
    store: Store | None = None  #: keeps what takes time; None for a run that cannot be resumed

    @staticmethod
    def of(config: DefendConfig, preset: Preset | None = None) -> Run:
        """A run that is given its case in memory and writes nothing.

        Args:
            config: the options; those that name files are only reported.
            preset: in place of the one that `config.preset` names; gets the accuracy budget of `config`.

        Raises:
            InputError: an option out of range.
        """
        preset = preset_of(config, preset)
        monitor = Monitor(config.quiet, config.verbose, config.json, config.tensorboard)
        return Run(config, preset, monitor, config.seed, resolve_device(config.device))

    @staticmethod
    @contextmanager
    def open(config: DefendConfig) -> Iterator[Run]:
        """A run with files: resolves the options, makes sure that `config.out` can be written, and keeps what is worked out
        there until the block ends without an error.

        Raises:
            InputError: an option cannot be used.
        """
        config, hub = resolve(config)
        out = None if config.out is None else Path(config.out)
        if out is not None:
            check_apart(out, (config.data, config.eval_data, config.triggered_data, config.eval_triggered_data))
            if config.model is not None:
                check_model_name(file_and_key(config.model)[0].name)
            check_folder(out, config.resume)
        store = None if out is None else Store(out)
        try:
            yield dataclasses.replace(Run.of(config), hub=hub, store=store)
        except BaseException:
            if store is not None:
                store.pause()
            raise
        if store is not None:
            store.remove()

    def begin(self, case: Case) -> None:
        """Start to keep what is worked out for `case`, or continue an earlier run on it.

        Raises:
            InputError: the run in `config.out` has another case or other options.
        """
        if self.store is not None:
            options = {name.replace("_", "-"): getattr(self.config, name) for name in IDENTIFYING}
            self.store.begin(options | case.identity())

    def with_fallback(self, work: Callable[[Run], T]) -> T:
        """`work(self)`; once more on the CPU where the GPU fails and `config.device` is auto.

        Raises:
            InputError: the machine has too little memory, or the GPU that was asked for fails.
        """
        try:
            return work(self)
        except (RuntimeError, MemoryError) as error:
            problem = device_error(error)
            if problem is None:
                raise
            if self.config.device != "auto" or not problem.on_gpu:
                kept = "" if self.store is None else " What was worked out is kept: give the same command with --resume."
                raise InputError(f"{problem.sentence}; use fewer images or --device cpu.{kept}") from error
        # Outside the handler, so that the failed attempt's memory is free.
        progress.say(f"{problem.sentence}; going on without it.")
        config = dataclasses.replace(self.config, device="cpu")
        return work(dataclasses.replace(self, config=config, device=torch.device("cpu")))

    def fork(self, purpose: str, number: int = 1) -> Run:
        """The same with the seed of a part, see `onp.numerics.derive_seed`."""
        return dataclasses.replace(self, seed=derive_seed(self.seed, purpose, number))

    def stage(self, name: str, total: int = 0) -> AbstractContextManager[progress.Stage]:
        """Show and time a stage of `total` steps, 0 where that is not known."""
        return self.monitor.stage(name, total)

    def detecting(self, stage: progress.Stage | None = None) -> DetectRun:
        """What detection and inversion are run with; `stage` shows their steps."""
        run = DetectRun(self.preset.detect, self.seed, store=self.store, values_at_once=self.preset.values_at_once)
        return run if stage is None else dataclasses.replace(run, progress=stage.advance)

    @property
    def seconds(self) -> float:
        """Of all stages so far, those of the runs that this one continues included."""
        return sum(self.monitor.seconds.values()) + (0.0 if self.store is None else self.store.spent)
