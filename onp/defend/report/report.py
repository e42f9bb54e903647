"""What a run found and did, as JSON for machines and as text for people."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from dataclasses import dataclass
from typing import Any

from onp.defend.config import DefendConfig
from onp.defend.decision import Decision
from onp.defend.presets import Preset
from onp.defend.report.audit import Figures, der
from onp.defend.report.environment import hardware, versions
from onp.defend.report.probabilities import in_words, rests_on
from onp.defend.report.sections import (
    BudgetSection,
    DataSection,
    DetectionSection,
    ModelSection,
    Provenance,
    ReferenceSection,
    Task,
    Tuned,
    Verification,
)
from onp.defend.verdict import missed
from onp.detect.known_trigger import KNOWN
from onp.engine.metrics import Share
from onp.errors import printable
from onp.model.shrink import Shrunk

SCHEMA_VERSION = 1
WIDTH = 98  # columns of wrapped text
CLASSES_SHOWN = 3  # most probable targets in the text
ACC, ASR_CLEAN, ASR_TRUE, RA_TRUE = "ACC, clean images", "ASR without a trigger", "ASR, true trigger", "RA, true trigger"


@dataclass(frozen=True, eq=False)
class Report:
    """Everything `report.json` holds; `docs/report.md` explains every key."""

    decision: Decision
    headline: str  #: what was measured, in one sentence
    reason: str  #: a few sentences
    warning: str | None  #: what must be known before the report is acted upon
    next_steps: tuple[str, ...]  #: what to do, the first thing first
    notes: tuple[str, ...]  #: sentences on a second pass of detection, and on further copies of the weights
    target_classes: tuple[int, ...]  #: all that there is evidence for, the first one first
    target_name: str | None  #: of the first one
    model: ModelSection
    data: DataSection
    detection: DetectionSection | None  #: None where the trigger was given
    before: Figures
    after: Figures  #: of the repaired network: pruned, and healed unless `--no-heal` says otherwise
    clean_reference: ReferenceSection
    pruned: dict[str, list[int]]  #: layer -> units
    units: int  #: prunable units in all
    budget: BudgetSection
    timings: dict[str, float]  #: seconds by stage
    config: DefendConfig
    preset: Preset
    task: Task = "defend"
    provenance: Provenance | None = None  #: None until the files of the run are known
    pruning: Figures | None = None  #: what the pruning alone did; None where the network was not healed
    tuned: Tuned | None = None  #: with --tune
    shrunk: Shrunk | None = None  #: with --shrink
    verification: Verification | None = None  #: with --verify

    @property
    def target_class(self) -> int | None:
        """The first class that was to be repaired."""
        return self.target_classes[0] if self.target_classes else None

    @property
    def missed(self) -> bool:
        """Whether the trigger given for measuring works on the network, and the scan found no class."""
        return missed(self.decision, self.before) is not None

    @property
    def der(self) -> float | None:
        """Defence effectiveness rating, of the true trigger; None without one."""
        return der(self.before, self.after)

    @property
    def final(self) -> Figures:
        """Of the network that is written: after the repair, and after the training that `--tune` asks for."""
        return self.after if self.tuned is None else self.tuned.figures

    @property
    def changed(self) -> bool:
        """Whether there is a repaired network."""
        return self.pruned_count > 0 or self.pruning is not None

    @property
    def pruned_count(self) -> int:
        """Units pruned."""
        return sum(len(units) for units in self.pruned.values())

    def to_json(self) -> str:
        """The report as JSON, as `templates/report.schema.json` describes it; shares carry their exact 95 % interval."""
        after = _figures(self.after)
        if self.der is not None:
            after["der"] = self.der
        document = {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "decision": self.decision,
            "headline": self.headline,
            "reason": self.reason,
            "warning": self.warning,
            "next_steps": self.next_steps,
            "target_class": self.target_class,
            "target_name": self.target_name,
            "target_classes": self.target_classes,
            "notes": self.notes,
            "model": dataclasses.asdict(self.model),
            "data": dataclasses.asdict(self.data),
            "detection": None if self.detection is None else dataclasses.asdict(self.detection),
            "before": _figures(self.before),
            "after": after,
            "clean_reference": dataclasses.asdict(self.clean_reference),
            "pruned": {"count": self.pruned_count, "units": self.units, "layers": self.pruned},
            "budget": dataclasses.asdict(self.budget),
            "timings": self.timings,
            "config": dataclasses.asdict(self.config) | {"preset": dataclasses.asdict(self.preset)},
            "seed": self.config.seed,
            "versions": versions(),
            "hardware": hardware(),
            "provenance": None if self.provenance is None else dataclasses.asdict(self.provenance),
        }
        if self.pruning is not None:
            document["pruning"] = _figures(self.pruning) | {"der": der(self.before, self.pruning)}
        if self.tuned is not None:
            document["tuned"] = _figures(self.tuned.figures) | {"method": self.tuned.method, "der": self.tuned.der}
        if self.shrunk is not None:
            document["shrunk"] = {name: getattr(self.shrunk, name) for name in ("removed", "kept", "parameters")}
        if self.verification is not None:
            document["verification"] = dataclasses.asdict(self.verification)
        return json.dumps(_finite(document), indent=2, default=str) + "\n"

    def to_text(self) -> str:
        """The report as plain text, without control characters that names may hold; sentences are wrapped at `WIDTH` columns,
        the table is as wide as its longest name."""
        lines = [*textwrap.wrap(self.headline, WIDTH), f"Decision: {self.decision}"]
        for sentence in (self.reason, *self.notes, *([f"Warning: {self.warning}"] if self.warning else [])):
            lines += textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines += self._most_probable()
        lines.append("")
        lines += self._figures()
        if self.tuned is not None:
            figures = self.tuned.figures
            lines += ["", f"Tuned with {self.tuned.method} after the repair, whose own figures are above:"]
            rows = [(name, percent(share)) for name, share, _ in shares(figures, figures) if name != ASR_CLEAN]
            lines += _table([*rows, *([] if self.tuned.der is None else [("DER", f"{self.tuned.der:.3f}")])])
        if self.pruned_count:
            lines += ["", f"Pruned {self.pruned_count} of {self.units} units"]
            lines += [f"  {layer}: {', '.join(map(str, units))}" for layer, units in self.pruned.items()]
        if self.shrunk is not None:
            lines += textwrap.wrap(self.shrunk.to_text(), WIDTH, subsequent_indent="  ")
        lines += ["", "What to do next:"]
        for step in self.next_steps:
            lines += textwrap.wrap(step, WIDTH, initial_indent="- ", subsequent_indent="  ")
        lines += ["", f"{self._masks()}{self.budget.wall_seconds:.0f} s in all"]
        return "".join(f"{printable(line, longest=None)}\n" for line in lines)

    def _most_probable(self) -> list[str]:
        """The classes that are most probably targets, with what speaks for each."""
        detection = self.detection
        if detection is None:
            return []
        rows: list[tuple[str, ...]] = [("most probable targets", "probability", "log odds, by detector")]
        rows += [
            (printable(detection.class_names[k], 40), in_words(detection.per_class[k]), rests_on(detection.evidence_of(k), 3))
            for k in detection.ranking[:CLASSES_SHOWN]
        ]
        return ["", *_table(rows)]

    def _figures(self) -> list[str]:
        """The table of the figures, without the columns that say nothing."""
        clean = self.clean_words
        pruned = {} if self.pruning is None else {name: percent(share) for name, _, share in shares(self.before, self.pruning)}
        rows = [("", "before", "pruned", "healed" if pruned else "after", "a clean network")]
        rows += [
            (name, percent(before), pruned.get(name, ""), percent(after), clean.get(name, ""))
            for name, before, after in shares(self.before, self.after)
        ]
        if self.changed and self.der is not None:
            alone = None if self.pruning is None else der(self.before, self.pruning)
            rows.append(("DER", "", "" if alone is None else f"{alone:.3f}", f"{self.der:.3f}", ""))
        if not self.changed:
            rows[0] = ("", "", "", "", "a clean network")
        columns = [0, *([1] if self.changed else []), *([2] if pruned else []), 3, *([4] if clean else [])]
        table = _table([tuple(row[column] for column in columns) for row in rows])
        return [line for line in table if line]

    @property
    def clean_words(self) -> dict[str, str]:
        """What clean networks show, by the name of a surrogate in `shares`; empty where nothing was measured."""
        measured = self.clean_reference.shares
        if all(share is None for share in measured.values()):
            return {}
        return {
            row_name(name): "not measured" if share is None else f"up to {100 * share:.1f} %"
            for name, share in measured.items()
        }

    def _masks(self) -> str:
        masks = self.budget.evaluations
        return f"{masks} masks evaluated, {self.budget.masks_per_second:.1f} a second, " if masks else ""


def shares(before: Figures, after: Figures) -> list[tuple[str, Share, Share]]:
    """Name, share before and share after of every figure that was measured, in the order of a table."""
    rows: list[tuple[str, Share | None, Share | None]] = [(ACC, before.acc, after.acc)]
    for name, share in before.asr_surrogate.items():
        rows.append((row_name(name), share, after.asr_surrogate[name]))
    rows.append((ASR_CLEAN, before.asr_clean, after.asr_clean))
    rows.append((ASR_TRUE, before.asr, after.asr))
    rows.append((RA_TRUE, before.ra, after.ra))
    return [(name, old, new) for name, old, new in rows if old is not None and new is not None]


def row_name(surrogate: str) -> str:
    """What a table calls the ASR of a key of `asr_surrogate`."""
    return "ASR, known trigger" if surrogate == KNOWN else f"surrogate ASR, {surrogate}"


def percent(share: Share) -> str:
    """A share in per cent with its 95 % interval."""
    low, high = share.interval
    return f"{100 * share.value:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of columns, each as wide as its longest cell and two spaces more."""
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]))]
    return ["".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _figures(figures: Figures) -> dict[str, Any]:
    out: dict[str, Any] = {"acc": figures.acc.value, "acc_ci": figures.acc.interval, "images": figures.acc.n}
    out["asr_surrogate"] = {
        family: {"value": share.value, "ci": share.interval, "images": share.n}
        for family, share in figures.asr_surrogate.items()
    }
    for name, share in (("asr", figures.asr), ("ra", figures.ra), ("asr_clean", figures.asr_clean)):
        if share is not None:
            out[name] = share.value
            out[f"{name}_ci"] = share.interval
    return out


def _finite(value: Any) -> Any:
    """null in place of NaN and infinity, which JSON has not: the share of no images, say."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
