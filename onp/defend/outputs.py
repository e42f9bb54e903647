"""The files of a run: written beside their place first, then renamed, so that nothing half-written remains."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from onp.defend.report.diagnostics import Diagnostics
from onp.defend.report.model_card import model_card
from onp.defend.report.page import render
from onp.defend.report.report import Report
from onp.errors import InputError
from onp.files import write_atomically
from onp.model.hub_config import companions
from onp.model.mask import Mask
from onp.model.prune import save_checkpoint
from onp.model.shrink import write_shrunk
from onp.model.victim import Victim
from onp.resume import FOLDER as STATE


def prepare(folder: Path, resume: bool) -> None:
    """Make sure, before any work, that `folder` can be written and holds nothing, or where `resume` an unfinished run.

    Raises:
        InputError: it is a file, holds something else, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --out the name of a new folder.")
    created = [parent for parent in (folder, *folder.absolute().parents) if not parent.exists()]
    try:
        begun = (folder / STATE / "run.json").exists()
        if begun and not resume:
            raise InputError(f"The folder {folder} holds an unfinished run; continue it with --resume or give --out a new one.")
        if not begun and folder.exists() and any(folder.iterdir()):
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


def write_outputs(folder: Path, report: Report, diagnostics: Diagnostics, mask: Mask, repaired: Victim) -> None:
    """Write the report (.html, .json, .txt) and, for a repair, mask.json, model_card.md, the checkpoint under its own
    name with the configs that lay beside it, and what `--shrink` made.

    Raises:
        InputError: the disk refused.
    """
    try:
        page = render(report, diagnostics)
        folder.mkdir(parents=True, exist_ok=True)
        if report.decision == "repaired":
            mask.save(folder / "mask.json")
            write_atomically(folder / "model_card.md", model_card(report))
            if repaired.checkpoint is not None:
                save_checkpoint(repaired, folder / repaired.checkpoint.path.name)
                for beside in companions(repaired.checkpoint.path):
                    write_atomically(folder / beside.name, beside.read_bytes())
            if report.shrunk is not None:
                write_shrunk(report.shrunk, repaired.input_shape, folder)
        write_atomically(folder / "report.html", page)
        write_atomically(folder / "report.txt", report.to_text())
        write_atomically(folder / "report.json", report.to_json())
    except OSError as error:
        raise InputError(
            f"The results could not be written to {folder} ({error.strerror}); free some space and give the same command with "
            "--resume, which does nothing twice."
        ) from error
