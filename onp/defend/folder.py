"""The folder of a run, checked before any work."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from onp.errors import InputError, printable
from onp.files import file_kind, is_temporary, remove_temporaries
from onp.resume import FACTS, FOLDER

REFUSAL = "report.sarif"
WRITTEN = (
    *("report.html", "report.json", "report.txt", "report.sarif", "model_card.md", "mask.json", "config.toml"),
    *("sbom.cdx.json", "statement.intoto.json", "shrunk.pt2", "shrunk.onnx", FOLDER),
)
"""What a run writes beside the checkpoint, which keeps its name."""
LONGEST_NAME = 255 - len("..4294967295.tmp")  # bytes; file systems take 255, and files are written under a temporary name


def check_folder(folder: Path, resume: bool) -> None:
    """Make sure that `folder` can be written and holds nothing, or where `resume` an unfinished run.

    What killed runs left half-written there is removed.

    Raises:
        InputError: it is a file, holds something else, or cannot be written.
    """
    if file_kind(folder) not in (None, "folder"):
        raise InputError(f"{folder} is a file; give --out the name of a new folder.")
    created = [parent for parent in (folder, *folder.absolute().parents) if not parent.exists()]
    try:
        begun = (folder / FOLDER / FACTS).exists()
        if begun and not resume:
            raise InputError(f"The folder {folder} holds an unfinished run; continue it with --resume or give --out a new one.")
        if not begun and folder.exists() and not all(map(_is_no_result, folder.iterdir())):
            finished = resume and (folder / "report.json").exists()
            why = "holds a finished run" if finished else "is not empty"
            raise InputError(f"The folder {folder} {why}; give --out a new one, so that nothing is overwritten.")
        for each in (folder, folder / FOLDER):
            remove_temporaries(each)
        # Permissions do not tell everything (read-only disks, special file systems): try it, and leave no trace.
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written ({error.strerror}); give --out another.") from error
    finally:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()


def check_model_name(name: str) -> None:
    """Make sure that the repaired checkpoint can be written under the name of the given one.

    Raises:
        InputError: another file of a run has that name, or it is too long.
    """
    if name.lower() in WRITTEN:
        raise InputError(f"A run writes a file {name} of its own; rename the checkpoint, so that both can lie in --out.")
    if len(os.fsencode(name)) > LONGEST_NAME:
        shown = printable(name, 20)
        raise InputError(f"The checkpoint's name, {shown}, is too long to be written; keep to {LONGEST_NAME} bytes.")


def _is_no_result(path: Path) -> bool:
    """Whether a run that did not get to its work left this in its folder."""
    if path.name == FOLDER and path.is_dir():
        return all(map(is_temporary, path.iterdir()))  # killed before it wrote what it is about
    # A refused checkpoint leaves REFUSAL alone: the user mends the file and gives the same command.
    return path.name == REFUSAL or is_temporary(path)
