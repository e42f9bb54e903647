"""Victims x defences x seeds -> one table: `onp compare --victims bundled --defences onp clp --out table`.

Entry point: `compare(config)`. `onp.compare.defences` holds the baseline defences, and says what a defence of one's own is. May
import every other package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from onp import progress
from onp.compare.cell import Cell, run_cell
from onp.compare.config import CompareConfig
from onp.compare.datasets import Datasets
from onp.compare.folder import TableFolder
from onp.compare.table import write_tables
from onp.compare.victims import Training, planned_trainings, ready_victims, train
from onp.errors import InputError
from onp.files import check_apart
from onp.pool import Workers, run_all

__all__ = ["CompareConfig", "compare"]


def compare(
    config: CompareConfig,
    run_cell: Callable[[Cell], dict[str, Any]] = run_cell,
    train: Callable[[Training], None] = train,
) -> list[dict[str, Any]]:
    """Run every cell that has no result yet and write the tables.

    A cell that fails is a row with an `error`, and is tried again by the next call.

    Args:
        config: victims, defences, and how they are measured.
        run_cell: makes the figures of a cell.
        train: trains a victim.

    Returns:
        The rows, one a cell.

    Raises:
        InputError: something given cannot be used.
    """
    config.check()
    check_apart(Path(config.out), (*config.data, *config.test_data))
    threads = config.threads or torch.get_num_threads()
    workers = Workers(config.ray, threads, config.gpu_share)
    settings = config.settings() | {"threads": threads}
    folder = TableFolder(Path(config.out), settings)
    # Everything given is read and checked before the folder becomes that of a table, which then refuses other settings.
    datasets = Datasets(config, Path(config.out))
    ready, trainings = ready_victims(config, datasets), planned_trainings(config, datasets)
    victims = ready + [training.files for training in trainings]
    if len({files.name for files in victims}) < len(victims):
        raise InputError("Two victims have one name; rename a folder, or name each attack, network and data set once.")
    cells = [
        Cell(victim, name, seed, config.preset, config.max_acc_drop, config.passes, threads)
        for victim in victims
        for seed in config.seeds
        for name in config.defences
    ]
    folder.begin()
    datasets.write()
    for cell in cells:
        if Path(cell.victim.model).exists():
            folder.get(cell)  # refuses one of another victim before anything is trained
    failed = _train_missing(train, trainings, workers, config.quiet)
    for cell in cells:
        if cell.victim.name in failed:
            folder.put(cell, failed[cell.victim.name])
    todo = [cell for cell in cells if cell.victim.name not in failed and not folder.done(cell)]
    with progress.stage("cells", len(todo), config.quiet) as bar:
        for cell, result in run_all(run_cell, todo, workers):
            folder.put(cell, result)
            bar.advance(note=cell.key + (" failed" if isinstance(result, Exception) else ""))
    rows = [row for cell in cells if (row := folder.get(cell)) is not None]
    write_tables(Path(config.out), rows, settings)
    return rows


def _train_missing(
    train: Callable[[Training], None], trainings: Sequence[Training], workers: Workers, quiet: bool
) -> dict[str, Exception]:
    """Train the victims that are missing; returns why those that could not be trained are not there, by name."""
    missing = [training for training in trainings if not training.done]
    failures: dict[str, Exception] = {}
    with progress.stage("training victims", len(missing), quiet) as bar:
        for training, result in run_all(train, missing, workers):
            if isinstance(result, Exception):
                failures[training.files.name] = result
            bar.advance(note=training.files.name)
    return failures
