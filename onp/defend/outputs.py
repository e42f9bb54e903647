"""The files of a run: written beside their place first, then renamed, so that nothing half-written remains."""

from __future__ import annotations

from pathlib import Path

from onp.defend.outcome import Outcome
from onp.defend.provenance import provenance
from onp.defend.report.model_card import model_card
from onp.errors import InputError
from onp.files import write_atomically
from onp.model.hub_config import HubModel, companions
from onp.model.prune import save_checkpoint
from onp.model.shrink import write_shrunk

Written = list[tuple[str, Path]]
"""What files are to the run, and where they lie."""


def write_outputs(outcome: Outcome, out: str | None, hub: HubModel | None = None) -> Outcome:
    """Write the report (.html, .json, .txt) and, for a repair, mask.json, model_card.md, the checkpoint under its own
    name with the configs that lay beside it, and what `--shrink` made.

    Args:
        outcome: of the run.
        out: folder; None: nothing is written.
        hub: the model that a `config.json` describes, where it was read.

    Returns:
        The outcome; its report has the SHA-256 of what was written beside it.

    Raises:
        InputError: the disk refused.
    """
    if out is None:
        return outcome
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        repaired = outcome.report.decision in ("repaired", "partly-repaired")
        written = _write_repair(outcome, folder, hub) if repaired else []
        # What the report names is written before it.
        read = outcome.report.provenance
        outcome = outcome.with_provenance(provenance(read.inputs if read else (), written))
        report = outcome.report
        if repaired:
            write_atomically(folder / "model_card.md", model_card(report))
        write_atomically(folder / "report.html", outcome.html())
        write_atomically(folder / "report.txt", report.to_text())
        write_atomically(folder / "report.json", report.to_json())
    except OSError as error:
        raise InputError(
            f"The results could not be written to {folder} ({error.strerror}); free some space and give the same command with "
            "--resume, which does nothing twice."
        ) from error
    return outcome


def _write_repair(outcome: Outcome, folder: Path, hub: HubModel | None) -> Written:
    written: Written = []
    report, repaired = outcome.report, outcome.victim
    if repaired.checkpoint is not None:
        path = folder / repaired.checkpoint.path.name
        save_checkpoint(repaired, path)
        written.append(("repaired model", path))
        for beside in companions(repaired.checkpoint.path, hub):
            write_atomically(folder / beside.name, beside.read_bytes())
            written.append(("config", folder / beside.name))
    outcome.mask.save(folder / "mask.json")
    written.append(("mask", folder / "mask.json"))
    if report.shrunk is not None:
        names = write_shrunk(report.shrunk, repaired.input_shape, folder)
        written += [("shrunk model", folder / name) for name in names]
    return written
