"""The scan of one model, wherever it runs: options in, a row out, whatever the model is."""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from onp.defend import defend
from onp.defend.config import DefendConfig
from onp.defend.outcome import Outcome
from onp.defend.report.sarif import entry_of, entry_of_refusal
from onp.defend.report.sections import FileDigest
from onp.errors import InputError, UnsafeCheckpointError, first_line
from onp.model.arch_spec import likely
from onp.model.checkpoint import read_checkpoint
from onp.model.hub_config import CONFIG, read_config
from onp.model.state_dicts import file_and_key
from onp.pool import WorkerDied
from onp.resume import FACTS, FOLDER
from onp.scan.row import Failure, Row


@dataclass(frozen=True)
class ModelTask:
    """What to scan; all that the row depends on but the machine."""

    name: str
    identity: str
    options: DefendConfig
    digest: FileDigest | None  #: of the file; None where it cannot be read
    problem: str | None = None  #: why it cannot be scanned, where that is known already
    threads: int = 0  #: of torch; 0: as many as it takes


@dataclass(frozen=True, eq=False)
class Scanned:
    """The result of a task."""

    row: Row
    text: str | None = None  #: the report as text


def scan_model(task: ModelTask) -> Scanned:
    """Scan a model; what the user or the model did wrong is in the row, and so is an error of the program."""
    threads, start = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(task.threads or threads)
    try:
        options, arch_from = with_arch(task.options)
        outcome = _run(options)
    except Exception as error:
        return Scanned(failed(task, error, time.monotonic() - start))
    finally:
        torch.set_num_threads(threads)
    row = dataclasses.replace(
        Row.of(task.name, task.identity, outcome),
        arch_from=arch_from,
        sha256=task.digest.sha256 if task.digest else None,
        bytes=task.digest.bytes if task.digest else None,
        seconds=time.monotonic() - start,
        report=None if options.out is None else f"{Path(options.out).parent.name}/{Path(options.out).name}/report.html",
        sarif=dataclasses.asdict(entry_of(outcome.report, task.name)),
    )
    return Scanned(row, outcome.report.to_text())


def failed(task: ModelTask, error: Exception, seconds: float = 0.0) -> Row:
    """The row of a model without a verdict."""
    path = file_and_key(str(task.options.model))[0]
    kind: Failure = "crashed"
    if isinstance(error, InputError):
        kind = "unsafe" if isinstance(error, UnsafeCheckpointError) else "unusable"
    elif isinstance(error, WorkerDied):
        error = InputError(f"{error}; where memory was short, give fewer --workers.")
    else:
        error = InputError(f"This is an error in onp ({first_line(error)}).")
    entry = entry_of_refusal(error, path, task.digest, task.name)
    return Row(
        task.name,
        task.identity,
        sha256=task.digest.sha256 if task.digest else None,
        bytes=task.digest.bytes if task.digest else None,
        kind=kind,
        error=entry.refusal,
        seconds=seconds,
        sarif=dataclasses.asdict(entry),
    )


def with_arch(options: DefendConfig) -> tuple[DefendConfig, str]:
    """Fill in the architecture where the weights tell it.

    Args:
        options: of a model.

    Returns:
        The options, and what says which network it is: "given", "config.json", "exported program" or "weights".

    Raises:
        InputError: the checkpoint cannot be read.
    """
    if options.arch is not None:
        return options, "given"
    path = file_and_key(str(options.model))[0]
    try:
        read_config(path.parent / CONFIG)
        return options, "config.json"
    except InputError:
        pass  # none, or of something else
    checkpoint = read_checkpoint(str(options.model))
    if checkpoint.kind == "pt2":
        return options, "exported program"
    return dataclasses.replace(options, arch=likely(checkpoint.state)), "weights"


def _run(options: DefendConfig) -> Outcome:
    # A run that was begun goes on. One that was killed between its report and its row, or refused, is done once more.
    if options.out is not None and Path(options.out).exists() and not (Path(options.out) / FOLDER / FACTS).exists():
        shutil.rmtree(options.out)
    return defend(options)
