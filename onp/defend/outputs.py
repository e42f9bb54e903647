"""The files of a run: written beside their place first, then renamed, so that nothing half-written remains."""

from __future__ import annotations

from pathlib import Path

from onp.defend.outcome import Outcome
from onp.defend.report.model_card import model_card
from onp.errors import InputError
from onp.files import write_atomically
from onp.model.hub_config import HubModel, companions
from onp.model.prune import save_checkpoint
from onp.model.shrink import write_shrunk


def write_outputs(outcome: Outcome, out: str | None, hub: HubModel | None = None) -> None:
    """Write the report (.html, .json, .txt) and, for a repair, mask.json, model_card.md, the checkpoint under its own
    name with the configs that lay beside it, and what `--shrink` made.

    Args:
        outcome: of the run.
        out: folder; None: nothing is written.
        hub: the model that a `config.json` describes, where it was read.

    Raises:
        InputError: the disk refused.
    """
    if out is None:
        return
    folder, report = Path(out), outcome.report
    try:
        page = outcome.html()
        folder.mkdir(parents=True, exist_ok=True)
        if report.decision == "repaired":
            _write_repair(outcome, folder, hub)
        write_atomically(folder / "report.html", page)
        write_atomically(folder / "report.txt", report.to_text())
        write_atomically(folder / "report.json", report.to_json())
    except OSError as error:
        raise InputError(
            f"The results could not be written to {folder} ({error.strerror}); free some space and give the same command with "
            "--resume, which does nothing twice."
        ) from error


def _write_repair(outcome: Outcome, folder: Path, hub: HubModel | None) -> None:
    report, repaired = outcome.report, outcome.victim
    outcome.mask.save(folder / "mask.json")
    write_atomically(folder / "model_card.md", model_card(report))
    if repaired.checkpoint is not None:
        save_checkpoint(repaired, folder / repaired.checkpoint.path.name)
        for beside in companions(repaired.checkpoint.path, hub):
            write_atomically(folder / beside.name, beside.read_bytes())
    if report.shrunk is not None:
        write_shrunk(report.shrunk, repaired.input_shape, folder)
