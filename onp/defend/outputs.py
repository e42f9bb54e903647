"""The files of a run: written beside their place first, then renamed, so that nothing half-written remains."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from onp.defend.decision import REPAIRS
from onp.defend.digests import FileState
from onp.defend.folder import REFUSAL as SARIF
from onp.defend.provenance import provenance
from onp.defend.report.bom import bom_available, bom_of
from onp.defend.report.model_card import model_card
from onp.defend.report.names import name_of
from onp.defend.report.report import Report
from onp.defend.report.sarif import sarif_of, sarif_of_refusal
from onp.defend.report.sections import Provenance
from onp.defend.report.statement import statement_of
from onp.errors import InputError, UnsafeCheckpointError
from onp.files import write_atomically
from onp.model.hub_config import HubModel, companions
from onp.model.mask import Mask
from onp.model.prune import save_checkpoint
from onp.model.shrink import write_shrunk
from onp.model.state_dicts import file_and_key
from onp.model.victim import Victim

BOM, STATEMENT = "sbom.cdx.json", "statement.intoto.json"
LIVE = "model.safetensors"  # of a network that comes from no file
Written = list[tuple[str, Path]]
"""What files are to the run, and where they lie."""


class Results(Protocol):
    """What is written: the fields of an `onp.defend.outcome.Outcome`, which calls `write_outputs` itself."""

    @property
    def report(self) -> Report: ...

    @property
    def mask(self) -> Mask: ...

    @property
    def victim(self) -> Victim: ...

    def html(self) -> str: ...

    def with_provenance(self: R, provenance: Provenance) -> R: ...


R = TypeVar("R", bound=Results)


def write_outputs(outcome: R, out: str | None, hub: HubModel | None = None) -> R:
    """Write the report (.html, .json, .txt), the same as SARIF, as an ML-BOM where cyclonedx-python-lib is installed and as
    an in-toto statement; for a repair also mask.json, model_card.md, the checkpoint under its own name with the configs that
    lay beside it, and what `--shrink` made.

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
        repaired = outcome.report.decision in REPAIRS
        written = _write_repair(outcome, folder, hub) if repaired else []
        # What the report names is written before it.
        read = outcome.report.provenance
        outcome = outcome.with_provenance(provenance(read.inputs if read else (), written))
        report = outcome.report
        files = {"model_card.md": model_card(report)} if repaired else {}
        files |= {"report.html": outcome.html(), "report.txt": report.to_text(), "report.json": report.to_json()}
        files |= {SARIF: sarif_of(report)} | ({BOM: bom_of(report)} if bom_available() else {})
        if (statement := statement_of(report, files)) is not None:
            files[STATEMENT] = statement
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise InputError(
            f"The results could not be written to {folder} ({error.strerror}); free some space and give the same command with "
            "--resume, which does nothing twice."
        ) from error
    return outcome


def write_refusal(error: UnsafeCheckpointError, model: str, out: str | None) -> None:
    """Write report.sarif, and nothing else, for a checkpoint that was refused because it can run code when it is opened.

    Args:
        error: why; where the disk refuses, it still is what there is to say.
        model: PATH or PATH::KEY of the checkpoint.
        out: folder; None: nothing is written.
    """
    if out is None:
        return
    path = file_and_key(model)[0]
    with suppress(OSError, InputError):
        log = sarif_of_refusal(error, path, FileState(path).digest("model", name_of(path)))
        Path(out).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(out) / SARIF, log)


def _write_repair(outcome: Results, folder: Path, hub: HubModel | None) -> Written:
    written: Written = []
    report, repaired = outcome.report, outcome.victim
    path = folder / (LIVE if repaired.checkpoint is None else repaired.checkpoint.path.name)
    save_checkpoint(repaired, path)
    written.append(("repaired model", path))
    if repaired.checkpoint is not None:
        for beside in companions(repaired.checkpoint.path, hub):
            write_atomically(folder / beside.name, beside.read_bytes())
            written.append(("config", folder / beside.name))
    outcome.mask.save(folder / "mask.json")
    written.append(("mask", folder / "mask.json"))
    if report.shrunk is not None:
        names = write_shrunk(report.shrunk, repaired.input_shape, folder)
        written += [("shrunk model", folder / name) for name in names]
    return written
