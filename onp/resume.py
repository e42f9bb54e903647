"""What a run has worked out so far, kept in a folder, so that a killed run continues where it was.

Everything after the seed is deterministic, so nothing of the search is saved: a resumed run makes the same choices again, and
only the two things that take time, inverted triggers and scores of masks, are read instead of computed. They are kept as
safetensors and JSON lines: reading them runs no code.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from onp.errors import InputError
from onp.files import write_atomically

FOLDER, FACTS, SECONDS = "state", "run.json", "seconds.jsonl"

T = TypeVar("T")


class Store:
    """The folder `state` in the folder of a run.

    Args:
        out: folder of the run; nothing is read or written before `begin`.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER
        self.spent = 0.0  #: seconds of earlier runs; those of a killed one are not known
        self._begun: float | None = None

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Start a run, or continue the one that the folder holds.

        Args:
            facts: what two runs must have in common for one to continue the other; values that JSON has.

        Raises:
            InputError: the folder holds a run with other facts, or a damaged one, or cannot be written.
        """
        file = self.folder / FACTS
        wanted = json.loads(json.dumps(facts))
        if file.exists():
            known = _object(file)
            for name, value in wanted.items():
                if known.get(name) != value:
                    raise InputError(
                        f"The run in {self.folder.parent} was started with another {name} ({known.get(name)}, now {value}); "
                        "give the same options, or --out another folder."
                    )
            self.spent = sum(self.lines(SECONDS, _seconds))
        else:
            with self._disk():
                self.folder.mkdir(parents=True, exist_ok=True)
            self.write(FACTS, json.dumps(wanted, indent=2) + "\n")
        self._begun = time.monotonic()

    def pause(self) -> None:
        """Keep the seconds of this run for the one that continues it; nothing where no run has begun."""
        if self._begun is not None:
            with suppress(InputError):  # the error that ended the run is the one to report
                self.append(SECONDS, json.dumps({"seconds": time.monotonic() - self._begun}))

    def write(self, name: str, content: bytes | str) -> None:
        """Write a whole file; raises InputError where the disk refuses."""
        with self._disk():
            write_atomically(self.folder / name, content)

    def append(self, name: str, line: str) -> None:
        """Add a line to a file; raises InputError where the disk refuses."""
        with self._disk(), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def lines(self, name: str, parse: Callable[[dict[str, Any]], T]) -> list[T]:
        """The objects of a file of JSON lines; a last line that was cut off is dropped from the file.

        Args:
            name: of the file; [] where there is none.
            parse: makes a value of an object, and raises KeyError, TypeError or ValueError for one of another shape.

        Raises:
            InputError: a line is damaged.
        """
        file = self.folder / name
        if not file.exists():
            return []
        try:
            whole, _, rest = file.read_text(encoding="utf-8").rpartition("\n")
            found = [parse(_as_object(line)) for line in whole.splitlines()]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, OSError) as error:
            raise _damaged(file) from error
        if rest:
            self.write(name, whole + "\n" if whole else "")
        return found

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `compute` returned when this name was first asked for, on the CPU where it is read.

        Raises:
            InputError: the file is damaged, or the disk refuses.
        """
        file = self.folder / f"{name}.safetensors"
        if file.exists():
            try:
                return load(file.read_bytes())
            except (SafetensorError, OSError) as error:
                raise _damaged(file) from error
        values = compute()
        self.write(file.name, save({key: value.detach().cpu().contiguous() for key, value in values.items()}))
        return values

    def remove(self) -> None:
        """Remove the folder, once the results are written."""
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


def _object(file: Path) -> dict[str, Any]:
    try:
        return _as_object(file.read_text(encoding="utf-8"))
    except (TypeError, ValueError, RecursionError, OSError) as error:
        raise InputError(f"{file} is damaged; give --out another folder.") from error


def _as_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} in place of an object")
    return value


def _seconds(line: dict[str, Any]) -> float:
    return float(line["seconds"])


def _damaged(file: Path) -> InputError:
    return InputError(f"{file} is damaged; remove it and go on with --resume.")
