"""Scan many networks for backdoors: `onp scan FOLDER --data images`.

Entry point: `scan(config)`. Each network gets the verdict of `onp.defend` without a repair. May import every package but
`onp.compare`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from onp import progress
from onp.defend.report.probabilities import in_words
from onp.defend.report.sarif import Entry, sarif_log
from onp.errors import InputError
from onp.files import check_apart
from onp.pool import Workers, run_all
from onp.scan.candidates import find_models
from onp.scan.config import ScanConfig
from onp.scan.folder import ScanFolder
from onp.scan.index_page import index_page
from onp.scan.model_task import ModelTask, Scanned, failed, scan_model
from onp.scan.pace import Pace
from onp.scan.planning import check, is_alone, tasks_of, workers_for
from onp.scan.result import ScanResult
from onp.scan.row import Row, in_order
from onp.scan.tables import comma_separated, markdown

__all__ = ["Row", "ScanConfig", "ScanResult", "scan"]


def scan(config: ScanConfig) -> ScanResult:
    """Scan every model that has no verdict yet, and write the results where `config.out` is given.

    A model that cannot be scanned is a row that says why, and is tried again by the next call.

    Args:
        config: the models, the images, and how they are scanned.

    Returns:
        The rows, one a model.

    Raises:
        InputError: an option cannot be used, or there is no model at all.
    """
    check(config)
    if config.out is not None:
        check_apart(Path(config.out), (config.data,))
    found = find_models(config.models, config.out)
    folder = ScanFolder(config.out, config.resume)
    tasks = tasks_of(config, found.candidates, folder)
    folder.begin()
    # The same file under two names is scanned once.
    unique = {task.identity: task for task in reversed(tasks)}
    todo = [task for task in tasks if unique[task.identity] is task and task.identity not in folder.done]
    results = {identity: Scanned(row) for identity, row in folder.done.items()}
    workers = Workers() if is_alone(config, found.candidates) else workers_for(config, len(todo))
    results |= _scan_all(todo, workers, folder, config)
    rows = in_order([_renamed(results[task.identity].row, task, unique[task.identity]) for task in tasks])
    result = ScanResult(tuple(rows), found.left_out, results[tasks[0].identity].text if len(tasks) == 1 else None)
    if config.out is not None:
        folder.finish(rows, _files(result, config))
    return result


def _scan_all(tasks: Sequence[ModelTask], workers: Workers, folder: ScanFolder, config: ScanConfig) -> dict[str, Scanned]:
    """Run the tasks; each row is kept as soon as it is there."""
    results: dict[str, Scanned] = {}
    # What cannot even be read needs no worker.
    unread = [(task, InputError(task.problem)) for task in tasks if task.problem is not None]
    tasks = [task for task in tasks if task.problem is None]
    alone = workers.ray is None and not workers.processes  # then the model shows its own stages
    tasks = [task if alone else dataclasses.replace(task, threads=workers.threads) for task in tasks]
    count = len(unread) + len(tasks)
    pace = Pace(count, workers.processes)
    with progress.stage("models", count, config.quiet or alone, config.json) as bar:
        for task, made in chain(unread, run_all(scan_model, tasks, workers)):
            scanned = made if isinstance(made, Scanned) else Scanned(failed(task, made))
            row = scanned.row
            folder.append(row)
            results[task.identity] = scanned
            if config.json and not config.quiet:
                progress.event("model", name=row.name, status=row.status, probability=row.probability)
            elif not config.quiet and not alone:
                bar.print(_line(row))
            left = pace.left(row)
            bar.advance(note=row.name, known=left is None, left=left)
    return results


def _line(row: Row) -> str:
    if row.decision is None:
        return f"{row.name}: {row.kind}: {row.error}"
    probability = "" if row.probability is None else f", probability of a backdoor {in_words(row.probability)}"
    network = f"; by its weights it is {row.arch}" if row.arch_from == "weights" else ""
    return f"{row.name}: {row.decision}{probability}{network}"


def _renamed(row: Row, task: ModelTask, first: ModelTask) -> Row:
    """The row under the name that the model has in this scan."""
    sarif = row.sarif
    if sarif is not None and row.name != task.name:
        artifact = sarif["artifact"] | {"location": {"uri": quote(task.name)}}
        sarif = sarif | {"artifact": artifact}
    return dataclasses.replace(row, name=task.name, same_as=None if task is first else first.name, sarif=sarif)


def _files(result: ScanResult, config: ScanConfig) -> dict[str, str]:
    """What a finished scan writes beside its rows, by name."""
    entries = [Entry(**row.sarif) for row in result.rows if row.sarif is not None]
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "results.md": markdown(result.rows, result.summary()),
        "results.csv": comma_separated(result.rows),
        "index.html": index_page(result, config),
        "report.sarif": sarif_log(entries, result.exit_code(config.fail_on), now),
    }
