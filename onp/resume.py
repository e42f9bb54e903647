"""What a run has worked out so far, kept in a folder, so that a killed run goes on where it was.

Everything after the seed is deterministic, so nothing of the agent is saved: a resumed run walks the same way again, and
only the two things that take time, fitted triggers and scored masks, are read instead of computed. They are kept as
safetensors and JSON lines: reading them runs no code.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from onp.engine.evaluator import Evaluator, Scores
from onp.errors import InputError
from onp.files import write_atomically

FOLDER, SECONDS = "state", "seconds.jsonl"
FIELDS = ("acc", "asr", "divergence", "acc_soft", "asr_soft", "acc_count", "asr_count")

_current: ContextVar[State | None] = ContextVar("onp.resume", default=None)


class State:
    """The folder `state` in the folder of a run; `facts` say what the run is, so that it is not continued as another."""

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        self.folder = out / FOLDER
        self.spent = 0.0  #: seconds of earlier runs
        file = self.folder / "run.json"
        facts = json.loads(json.dumps(facts))
        if file.exists():
            known = _parsed(file)
            changed = [name for name in facts if known.get(name) != facts[name]]
            if changed:
                name = changed[0]
                raise InputError(
                    f"The run in {out} was started with another {name} ({known.get(name)}, now {facts[name]}); "
                    "give the same options, or --out another folder."
                )
            self.spent = sum(each["seconds"] for each in self.lines(SECONDS))
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write("run.json", json.dumps(facts, indent=2) + "\n")

    def write(self, name: str, content: bytes | str) -> None:
        """Write a whole file; raises InputError where the disk refuses."""
        with self._disk():
            write_atomically(self.folder / name, content)

    def append(self, name: str, line: str) -> None:
        """Add a line to a file; raises InputError where the disk refuses."""
        with self._disk(), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a file of JSON lines; a last line that was cut off is dropped from the file."""
        file = self.folder / name
        if not file.exists():
            return []
        whole, _, rest = file.read_text(encoding="utf-8").rpartition("\n")
        if rest:
            self.write(name, whole + "\n" if whole else "")
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise InputError(f"{file} is damaged; remove it and go on with --resume.") from error

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `compute` gives, from the file of that name where it exists."""
        file = self.folder / f"{name}.safetensors"
        if file.exists():
            try:
                return load(file.read_bytes())
            except SafetensorError as error:
                raise InputError(f"{file} is damaged; remove it and go on with --resume.") from error
        found = compute()
        self.write(file.name, save({key: value.detach().cpu().contiguous() for key, value in found.items()}))
        return found

    def remove(self) -> None:
        """Forget the run, once its results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"The state of the run cannot be written to {self.folder} ({error.strerror}); free some space and give the "
                "same command with --resume."
            ) from error


@contextmanager
def kept_in(state: State | None) -> Iterator[None]:
    """Within this block, `recalled` and `recorded` use `state`; None for a run that keeps nothing."""
    token, start = _current.set(state), time.monotonic()
    try:
        yield
    finally:
        _current.reset(token)
        if state is not None:
            with suppress(InputError):  # of a full disk, which is told of already
                state.append(SECONDS, json.dumps({"seconds": time.monotonic() - start}))


def spent_before() -> float:
    """Seconds that earlier runs have put into what this one goes on with; those of a killed one are not known."""
    state = _current.get()
    return 0.0 if state is None else state.spent


def recalled(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """`compute()`, or what it gave when this run was begun."""
    state = _current.get()
    return compute() if state is None else state.tensors(name, compute)


def recorded(evaluator: Evaluator, name: str) -> Evaluator:
    """The evaluator, or one that first looks among the masks this run has scored before."""
    state = _current.get()
    return evaluator if state is None else _Recorded(evaluator, state, f"{name}.jsonl")  # type: ignore[return-value]


class _Recorded:
    """An Evaluator as far as `PruneEnv` and `search` use one."""

    def __init__(self, evaluator: Evaluator, state: State, name: str) -> None:
        self._evaluator, self._state, self._name = evaluator, state, name
        self.families, self.units = evaluator.families, evaluator.units
        self._base: Tensor | None = None
        self._known: dict[str, dict[str, Any]] = {}
        self._spent = 0.0
        for line in state.lines(name):
            # What an older version kept may lack a field; it is worked out again.
            self._spent += line.get("seconds", 0.0)
            known = zip(line["masks"], line["scores"], strict=True)
            self._known.update((key, scores) for key, scores in known if set(FIELDS) <= set(scores))

    @property
    def seconds(self) -> float:
        """Of scoring, those of earlier runs included."""
        return self._spent + self._evaluator.seconds

    def commit(self, mask: Tensor) -> None:
        self._base = mask

    def score(self, masks: Tensor) -> Scores:
        keys = [row.tobytes().hex() for row in np.packbits(masks.cpu().numpy(), axis=1)]
        rows = [row for row, key in enumerate(keys) if key not in self._known]
        if rows:
            if self._base is not None:
                self._evaluator.commit(self._base)
                self._base = None
            before = self._evaluator.seconds
            scores = self._evaluator.score(masks[rows])
            seconds = self._evaluator.seconds - before
            found = [{field: getattr(scores, field)[row].tolist() for field in FIELDS} for row in range(len(rows))]
            names = [keys[row] for row in rows]
            # JSON keeps every bit of a float: Python writes the shortest decimal that reads back the same.
            self._state.append(self._name, json.dumps({"masks": names, "scores": found, "seconds": seconds}))
            self._known.update(zip(names, found, strict=True))
        known = [self._known[key] for key in keys]
        kinds = {field: torch.int64 if field.endswith("count") else torch.float64 for field in FIELDS}
        return Scores(**{field: torch.tensor([one[field] for one in known], dtype=kind) for field, kind in kinds.items()})


def _parsed(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}
