"""What a scan is to do: its tasks, each with what identifies its result, and who runs them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from onp import progress
from onp.defend.config import DefendConfig
from onp.defend.presets import PRESETS
from onp.defend.provenance import digests, inputs_of, learned
from onp.defend.report.sections import FileDigest
from onp.errors import InputError
from onp.files import free_memory
from onp.model.checkpoint import check_file
from onp.model.state_dicts import file_and_key
from onp.numerics import check_seed
from onp.pool import Workers
from onp.scan.candidates import Candidate
from onp.scan.config import SHARED, ScanConfig
from onp.scan.folder import ScanFolder
from onp.scan.model_task import ModelTask
from onp.version import VERSION

MODEL_BYTES = 2 * 2**30  #: memory that a process takes: torch, a network, and the triggers that are inverted together
RETRIES = 1  #: of a model whose process died, for want of memory beside others perhaps
MEASURED = ("arch", "norm", "image_size", "class_order", "expect_acc", "preset", "seed")
"""Options that a verdict depends on; the files that options name count by their content."""


def check(config: ScanConfig) -> None:
    """Refuse options that cannot be used, before anything is searched.

    Raises:
        InputError: an option out of range, or no model is named.
    """
    if not config.models:
        raise InputError("There is nothing to scan; name a folder of checkpoints, a list of them, or a checkpoint.")
    if config.preset not in PRESETS:
        raise InputError(f"There is no preset '{config.preset}'; choose one of {', '.join(PRESETS)}.")
    check_seed(config.seed)
    if config.workers < 0:
        raise InputError(f"--workers {config.workers} is no number of processes; give 1 or more, or 0 for as many as fit.")
    if config.workers and config.ray:
        raise InputError("Give either --workers or --ray; a cluster runs as many models at a time as it has processors.")
    if not 0 < config.gpu_share <= 1:
        raise InputError(f"--gpu-share {config.gpu_share} is no share of a GPU; give a number above 0, at most 1.")


def is_alone(config: ScanConfig, candidates: Sequence[Candidate]) -> bool:
    """Whether there is one model only, which this process scans, with all its threads, and shows the stages of."""
    return len(candidates) == 1 and not config.workers and config.ray is None


def workers_for(config: ScanConfig, count: int) -> Workers:
    """Who scans `count` models beside each other."""
    if config.ray is not None:
        return Workers(config.ray, gpu_share=config.gpu_share, retries=RETRIES)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = config.workers or max(1, min(available, free_memory() // MODEL_BYTES))
    processes = max(1, min(fitting, count))
    return Workers(gpu_share=1 / processes if torch.cuda.is_available() else 1.0, processes=processes, retries=RETRIES)


def tasks_of(config: ScanConfig, candidates: Sequence[Candidate], folder: ScanFolder) -> list[ModelTask]:
    """A task for each model, in the same order; reads every file once.

    Raises:
        InputError: images are missing or cannot be read.
    """
    quiet = config.quiet or not is_alone(config, candidates)
    shared = {name: getattr(config, name) for name in SHARED}
    given = DefendConfig(**shared, quiet=quiet, json=config.json, repair=False, resume=folder.path is not None)
    images: dict[tuple[str | None, str | None], tuple[FileDigest, ...]] = {}
    tasks = []
    with progress.stage("taking the SHA-256 of the models", len(candidates), config.quiet, config.json) as bar:
        for candidate in candidates:
            options = dataclasses.replace(given, model=candidate.path, **candidate.options)
            if options.data is None:
                raise InputError(
                    "Give a few hundred clean images with --data (a folder with one sub-folder per class, .npz, IDX or a tar)."
                )
            key = (options.data, options.class_order)
            if key not in images:
                images[key] = digests(inputs_of(DefendConfig(data=options.data, class_order=options.class_order)))
            tasks.append(_task(candidate, options, images[key], folder))
            bar.advance(note=candidate.name)
    return tasks


def _task(candidate: Candidate, options: DefendConfig, images: Sequence[FileDigest], folder: ScanFolder) -> ModelTask:
    path, key = file_and_key(candidate.path)
    own: tuple[FileDigest, ...] = ()  # of the model, and of what lies beside it
    problem = candidate.problem
    try:
        if problem is None:
            check_file(path)  # so that no pipe or device is opened
            own = digests(inputs_of(dataclasses.replace(options, data=None, class_order=None)))
    except InputError as error:
        problem = str(error).replace(str(path), candidate.name)
    facts = {
        "onp": VERSION,
        "learned": learned(),
        "options": {name: getattr(options, name) for name in MEASURED},
        "parts": [key, str(options.data).partition("::")[2]],
        "files": sorted((each.role, each.sha256) for each in (*images, *own)),
        # What cannot be read has no content to tell it by.
        "unread": None if own else candidate.path,
    }
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    options = dataclasses.replace(options, out=folder.report_of(candidate.name, identity))
    digest = next((each for each in own if each.role == "model"), None)
    return ModelTask(candidate.name, identity, _anywhere(options), digest, problem)


def _anywhere(options: DefendConfig) -> DefendConfig:
    """The options with absolute paths, since a worker of a cluster may be in another folder."""
    if options.data is not None:
        options = dataclasses.replace(options, data=os.path.abspath(options.data))
    if options.class_order is not None and Path(options.class_order).is_file():
        options = dataclasses.replace(options, class_order=os.path.abspath(options.class_order))
    return options
