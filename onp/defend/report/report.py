"""What a run found and did, as JSON for machines and as text for people."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from onp.defend.report.audit import Figures
from onp.engine.metrics import Share
from onp.model.shrink import Shrunk

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Tuned:
    """What tuning after the pruning made of it."""

    method: str
    figures: Figures
    der: float | None


@dataclass(frozen=True)
class Report:
    """Everything `report.json` holds; see `to_json` for the field names."""

    decision: str  #: repaired, no-backdoor-evidence or not-repairable
    reason: str  #: one sentence
    warning: str | None  #: what the reader must know before the model is used; None where there is nothing
    target_class: int | None
    target_name: str | None
    model: dict[str, Any]
    data: dict[str, Any]
    evidence: dict[str, Any]
    before: Figures
    after: Figures
    der: float | None
    pruned: dict[str, list[int]]  #: layer -> units
    units: int  #: prunable units in all
    budget: dict[str, float]
    timings: dict[str, float]  #: seconds by stage
    config: dict[str, Any]
    seed: int
    target_classes: tuple[int, ...] = ()  #: all that were to be repaired, `target_class` first
    notes: tuple[str, ...] = ()  #: sentences on other classes that stood out; empty where none did
    tuned: Tuned | None = None  #: with --tune; `after` is what the pruning alone did
    shrunk: Shrunk | None = None  #: with --shrink

    def to_json(self) -> str:
        """The report as JSON, as `templates/report.schema.json` describes it; shares carry their exact 95 % interval."""
        after = _figures(self.after)
        if self.der is not None:
            after["der"] = self.der
        document = {
            "schema_version": SCHEMA_VERSION,
            "decision": self.decision,
            "reason": self.reason,
            "warning": self.warning,
            "target_class": self.target_class,
            "target_name": self.target_name,
            "target_classes": self.target_classes,
            "notes": self.notes,
            "model": self.model,
            "data": self.data,
            "evidence": self.evidence,
            "before": _figures(self.before),
            "after": after,
            "pruned": {"count": self.pruned_count, "units": self.units, "layers": self.pruned},
            "budget": self.budget,
            "timings": self.timings,
            "config": self.config,
            "seed": self.seed,
            "versions": versions(),
            "hardware": hardware(),
        }
        if self.tuned is not None:
            document["tuned"] = _figures(self.tuned.figures) | {"method": self.tuned.method, "der": self.tuned.der}
        if self.shrunk is not None:
            document["shrunk"] = {name: getattr(self.shrunk, name) for name in ("removed", "kept", "parameters")}
        return json.dumps(_finite(document), indent=2, default=_plain) + "\n"

    @property
    def pruned_count(self) -> int:
        return sum(len(units) for units in self.pruned.values())

    def to_text(self) -> str:
        """The report as plain text, at most 100 columns."""
        sentences = [self.reason, *self.notes, *([f"Warning: {self.warning}"] if self.warning else [])]
        lines = [f"Decision: {self.decision}"]
        for sentence in sentences:
            lines += textwrap.wrap(sentence, 98, initial_indent="  ", subsequent_indent="  ")
        lines.append("")
        rows = [("", "before", "after"), ("ACC, clean images", percent(self.before.acc), percent(self.after.acc))]
        for family, share in self.before.asr_surrogate.items():
            rows.append((f"surrogate ASR, {family}", percent(share), percent(self.after.asr_surrogate[family])))
        if self.before.asr_clean is not None and self.after.asr_clean is not None:
            rows.append(("ASR without a trigger", percent(self.before.asr_clean), percent(self.after.asr_clean)))
        if (
            self.before.asr is not None
            and self.before.ra is not None
            and self.after.asr is not None
            and self.after.ra is not None
        ):
            rows.append(("ASR, true trigger", percent(self.before.asr), percent(self.after.asr)))
            rows.append(("RA, true trigger", percent(self.before.ra), percent(self.after.ra)))
        lines += [f"{name:<28}{before:<26}{after}".rstrip() for name, before, after in rows]
        if self.der is not None:
            lines.append(f"{'DER':<54}{self.der:.3f}")
        if self.tuned is not None:
            lines += ["", *_tuning(self.tuned)]
        lines += ["", f"Pruned {self.pruned_count} of {self.units} units"]
        lines += [f"  {layer}: {', '.join(map(str, units))}" for layer, units in self.pruned.items()]
        if self.shrunk is not None:
            lines += textwrap.wrap(self.shrunk.to_text(), 98, subsequent_indent="  ")
        lines.append(
            f"{self.budget['evaluations']:.0f} masks evaluated, {self.budget['masks_per_second']:.1f} a second, "
            f"{self.budget['wall_seconds']:.0f} s in all"
        )
        return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """The versions a result depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def hardware() -> dict[str, Any]:
    """The machine a result was measured on."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    capability = torch.backends.cpu.get_cpu_capability()
    return {"machine": platform.machine(), "cpu": capability, "threads": torch.get_num_threads(), "gpu": gpu}


def _figures(figures: Figures) -> dict[str, Any]:
    out: dict[str, Any] = {"acc": figures.acc.value, "acc_ci": figures.acc.interval, "images": figures.acc.n}
    out["asr_surrogate"] = {family: _share(share) for family, share in figures.asr_surrogate.items()}
    for name in ("asr", "ra", "asr_clean"):
        share = getattr(figures, name)
        if share is not None:
            out[name] = share.value
            out[f"{name}_ci"] = share.interval
    return out


def _tuning(tuned: Tuned) -> list[str]:
    figures = tuned.figures
    rows = [("ACC, clean images", figures.acc)]
    rows += [(f"surrogate ASR, {family}", share) for family, share in figures.asr_surrogate.items()]
    rows += [("ASR, true trigger", figures.asr)] if figures.asr is not None else []
    rows += [("RA, true trigger", figures.ra)] if figures.ra is not None else []
    lines = [f"Tuned with {tuned.method} after the pruning, whose own figures are above:"]
    lines += [f"{name:<54}{percent(share)}" for name, share in rows]
    return lines if tuned.der is None else [*lines, f"{'DER':<54}{tuned.der:.3f}"]


def _share(share: Share) -> dict[str, Any]:
    return {"value": share.value, "ci": share.interval, "images": share.n}


def percent(share: Share) -> str:
    """A share in per cent with its 95 % interval."""
    low, high = share.interval
    return f"{100 * share.value:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _finite(value: Any) -> Any:
    """null in place of NaN and infinity, which JSON has not: the share of no images, say."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
