"""Victims x defences x seeds -> one table: `python -m onp.compare --victims bundled --defences onp clp --out table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from onp import progress
from onp.compare.cell import Cell, run_cell
from onp.compare.config import CompareConfig
from onp.compare.datasets import Cuts
from onp.compare.pool import run_all
from onp.compare.store import Store
from onp.compare.table import write_tables
from onp.compare.victims import Training, VictimFiles, ready, train, trained, trainings
from onp.errors import InputError

__all__ = ["CompareConfig", "compare"]


def compare(config: CompareConfig) -> list[dict[str, Any]]:
    """Run every cell that has no result yet and write the tables; returns the rows, one a cell.

    A cell that fails is a row with an `error`, and is tried again by the next call.

    Raises:
        InputError: something given cannot be used.
    """
    config.check()
    folder = Path(config.out)
    threads = config.threads or torch.get_num_threads()
    store = Store(folder, config.settings() | {"threads": threads})
    # Everything given is read and checked before the folder becomes that of a table, which then refuses other settings.
    cuts = Cuts(config, folder)
    found, plans = ready(config, cuts), trainings(config, folder, cuts)
    names = [files.name for files in found] + [files.name for _, files in plans]
    if len(set(names)) < len(names):
        raise InputError("Two victims have one name; rename a folder, or name each attack, network and data set once.")
    victims = found + [files for _, files in plans]
    cells = [
        Cell(victim, defence, seed, config.preset, config.max_acc_drop, config.passes, threads)
        for victim in victims
        for seed in config.seeds
        for defence in config.defences
    ]
    store.begin()
    cuts.write()
    for cell in cells:
        if Path(cell.victim.model).exists():
            store.get(cell)  # refuses one of another victim before anything is trained
    failed = _train(plans, config, threads)
    for cell in cells:
        if cell.victim.name in failed:
            store.put(cell, failed[cell.victim.name])
    todo = [cell for cell in cells if cell.victim.name not in failed and not store.done(cell)]
    with progress.stage("cells", len(todo), config.quiet) as bar:
        for cell, result in run_all(run_cell, todo, config.ray, threads, config.gpu_share):
            store.put(cell, result)
            bar.advance(note=cell.key + (" failed" if isinstance(result, Exception) else ""))
    rows = [row for cell in cells if (row := store.get(cell)) is not None]
    write_tables(folder, rows, config.settings() | {"threads": threads})
    return rows


def _train(plans: list[tuple[Training, VictimFiles]], config: CompareConfig, threads: int) -> dict[str, Exception]:
    """Train the victims that are missing; why those that could not be trained are not there, by name."""
    missing = [training for training, _ in plans if not trained(training)]
    failures: dict[str, Exception] = {}
    with progress.stage("training victims", len(missing), config.quiet) as bar:
        for training, result in run_all(train, missing, config.ray, threads, config.gpu_share):
            name = next(files.name for each, files in plans if each == training)
            if isinstance(result, Exception):
                failures[name] = result
            bar.advance(note=name)
    return failures
