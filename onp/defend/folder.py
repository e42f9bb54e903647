"""The folder of a run, checked before any work."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from onp.errors import InputError
from onp.resume import FACTS, FOLDER

REFUSAL = "report.sarif"


def check_folder(folder: Path, resume: bool) -> None:
    """Make sure that `folder` can be written and holds nothing, or where `resume` an unfinished run.

    Raises:
        InputError: it is a file, holds something else, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --out the name of a new folder.")
    created = [parent for parent in (folder, *folder.absolute().parents) if not parent.exists()]
    try:
        begun = (folder / FOLDER / FACTS).exists()
        if begun and not resume:
            raise InputError(f"The folder {folder} holds an unfinished run; continue it with --resume or give --out a new one.")
        # A refused checkpoint leaves REFUSAL alone: the user mends the file and gives the same command.
        if not begun and folder.exists() and any(path.name != REFUSAL for path in folder.iterdir()):
            finished = resume and (folder / "report.json").exists()
            why = "holds a finished run" if finished else "is not empty"
            raise InputError(f"The folder {folder} {why}; give --out a new one, so that nothing is overwritten.")
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
