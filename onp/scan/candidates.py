"""Which models to scan: those in folders, those that a list names, and single files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from onp.errors import InputError, first_few, printable
from onp.files import file_kind
from onp.model.checkpoint import FOREIGN
from onp.model.hub_config import CONFIG, WEIGHTS, read_config, weights_in
from onp.model.state_dicts import file_and_key
from onp.resume import FACTS, FOLDER
from onp.scan.model_list import LISTS, read_list

SUFFIXES = (".safetensors", ".pt", ".pth", ".pt2", ".ckpt", ".pth.tar")
OTHERS = (*FOREIGN, ".bin", ".pkl", ".joblib", ".msgpack")
"""Suffixes of models that are not read; the number of such files is given, so that nobody takes them for scanned."""
DEEPEST = 32  #: folders within each other
MOST_MODELS = 100_000
MOST_ENTRIES = 5_000_000  #: of all folders together


@dataclass(frozen=True)
class Candidate:
    """A model to scan."""

    name: str  #: for the results; without the folders above what was given
    path: str  #: PATH or PATH::KEY, absolute
    options: dict[str, Any] = field(default_factory=dict)  #: fields of ScanConfig that a list gives it
    problem: str | None = None  #: why it cannot be scanned, where that is known already


@dataclass
class Found:
    """What a search came to."""

    candidates: list[Candidate] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  #: number of other files and folders, by what they are
    entries: int = 0

    def add(self, candidate: Candidate) -> None:
        """Take a candidate; raises InputError where there are too many."""
        self.candidates.append(candidate)
        if len(self.candidates) > MOST_MODELS:
            raise InputError(f"There are more than {MOST_MODELS:,} models; scan parts of the folder one after the other.")


def find_models(sources: Sequence[str], out: str | None = None) -> Found:
    """The models that folders, lists and files hold, in the order of the sources and by name in a folder.

    Links to files are followed, as the caches of model hubs are made of them; links to folders are not. Hidden files and
    folders, trigger files, `out` and what an unfinished run keeps are left out. Every model has a name of its own.

    Args:
        sources: as given on the command line.
        out: folder of the results, which may lie in a source.

    Raises:
        InputError: a source is missing, is no folder, list or checkpoint, or holds none or far too many.
    """
    found = Found()
    excluded = None if out is None else os.path.realpath(out)
    for source in sources:
        path = Path(source)
        before = len(found.candidates)
        if file_kind(path) == "folder":
            prefix = f"{path.resolve().name}/" if len(sources) > 1 else ""
            _search(path, found, excluded, Candidate(prefix, ""))
        elif path.suffix.lower() in LISTS:
            for entry in read_list(path):
                if file_kind(path.parent / entry.path) == "folder":
                    like = Candidate(f"{_short(entry.path)}/", "", entry.options)
                    _search(path.parent / entry.path, found, excluded, like)
                else:
                    found.add(Candidate(_short(entry.path), _absolute(entry.path, path.parent), entry.options))
        elif file_kind(file_and_key(source)[0]) is None:
            raise InputError(f"There is no model, folder or list {source}; nothing is downloaded, give what lies here.")
        else:
            found.add(Candidate(_short(source), _absolute(source, Path())))
        if len(found.candidates) == before:
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"{source} holds no checkpoint ({kinds}){_sentence(found.left_out)}; give another folder or list.")
    return Found(_with_own_names(found.candidates), found.left_out, found.entries)


def _search(root: Path, found: Found, excluded: str | None, like: Candidate) -> None:
    """Add the checkpoints below a folder, with the options of `like` and its name before theirs."""
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise InputError(f"The folder {folder} cannot be read ({error.strerror}); change its permissions.") from error
            found.left_out["folders that cannot be read"] += 1
            continue
        found.entries += len(entries)
        if found.entries > MOST_ENTRIES:
            raise InputError(f"{root} holds more than {MOST_ENTRIES:,} files and folders; scan its parts one after the other.")
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
        files = [entry for entry in entries if not entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
        for path, problem in _models_in(folder, files, found):
            below = root.resolve().name if path == root else like.name + path.relative_to(root).as_posix()
            found.add(Candidate(printable(below, None), str(path.absolute()), like.options, problem))
        for entry in reversed(folders):
            if entry.path == excluded or os.path.realpath(entry.path) == excluded or _of_unfinished_run(Path(entry.path)):
                continue
            if depth == DEEPEST:
                found.left_out[f"folders more than {DEEPEST} deep"] += 1
                continue
            waiting.append((Path(entry.path), depth + 1))


def _models_in(folder: Path, files: list[os.DirEntry[str]], found: Found) -> Iterator[tuple[Path, str | None]]:
    """The checkpoints among the files of a folder, each with what is wrong with it, where that is known already."""
    if any(entry.name == CONFIG for entry in files) and _of_hub(folder):
        # Beside the weights, training leaves the state of the optimizer and the like, which are no models.
        usual = [folder / name for name in WEIGHTS if file_kind(folder / name) is not None]
        try:
            yield from ((path, None) for path in usual or [weights_in(folder)])
        except InputError as error:
            yield folder, str(error)
        return
    for entry in files:
        path, name = folder / entry.name, entry.name.lower()
        suffix = next((each for each in (*SUFFIXES, *OTHERS) if name.endswith(each)), None)
        if entry.is_symlink() and path.is_dir():
            found.left_out["links to folders"] += 1
        elif suffix is None:
            continue
        elif suffix in OTHERS:
            found.left_out[f"{suffix} files"] += 1
        elif _is_trigger(path):
            found.left_out["trigger files"] += 1
        else:
            yield path, None


def _of_hub(folder: Path) -> bool:
    """Whether timm or transformers saved the model in a folder."""
    try:
        read_config(folder / CONFIG)
    except InputError:
        return False
    return True


def _of_unfinished_run(folder: Path) -> bool:
    """Whether a folder is what a run keeps until it is done: triggers and scores, and no model."""
    return folder.name == FOLDER and os.path.lexists(folder / FACTS)


def _is_trigger(path: Path) -> bool:
    """Whether a file is a trigger of onp.attack."""
    if path.suffix.lower() != ".safetensors" or file_kind(path) != "file":
        return False
    try:
        with safe_open(str(path), framework="pt") as file:
            return "onp.trigger" in (file.metadata() or {})
    except Exception:  # whatever a damaged file leads to; reading it as a model says what is wrong
        return False


def _short(location: str) -> str:
    """A path as it was given where it leads down from where one is; else its last two parts."""
    path = Path(location)
    down = not path.is_absolute() and ".." not in path.parts
    return printable(path.as_posix() if down else "/".join(path.parts[-2:]).lstrip("/"), None)


def _absolute(location: str, base: Path) -> str:
    path, key = file_and_key(base / location)
    return os.path.abspath(path) + (f"::{key}" if key else "")


def _with_own_names(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates with a number behind a name that another one has too; one model is one candidate."""
    seen: Counter[str] = Counter()
    unique: dict[tuple[str, str], Candidate] = {}
    for each in candidates:
        key = (each.path, repr(sorted(each.options.items())))
        if key in unique:
            continue
        seen[each.name] += 1
        name = each.name if seen[each.name] == 1 else f"{each.name} ({seen[each.name]})"
        unique[key] = Candidate(name, each.path, each.options, each.problem)
    return list(unique.values())


def _sentence(left_out: Counter[str]) -> str:
    return f", only {first_few(f'{count} {what}' for what, count in left_out.items())}" if left_out else ""
