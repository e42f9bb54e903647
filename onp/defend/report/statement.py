"""An in-toto Statement v1 about the checkpoints of a run, to be signed and attached to them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from onp.defend.report.report import Report, shares
from onp.engine.metrics import Share
from onp.files import encoded

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:onp:backdoor-report:1"
"""What the predicate is; its fields are described in docs/standards.md."""


def statement_of(report: Report, files: Mapping[str, str | bytes]) -> str | None:
    """The statement as JSON; None where no digest of the checkpoint is known, since there is nothing to speak of.

    The subjects are the original and, where there is one, the repaired checkpoint. Both have one file name, so that of the
    repaired one is `repaired/NAME`.

    Args:
        report: with its provenance.
        files: content by name of what was written about the checkpoints, report.json among them.
    """
    made = report.provenance
    if made is None:
        return None
    subjects = [("", each) for each in made.inputs if each.role == "model"]
    subjects += [("repaired/", each) for each in made.outputs if each.role == "repaired model"]
    if not subjects:
        return None
    detection = report.detection
    probability = detection.probability if detection is not None and math.isfinite(detection.probability) else None
    document = {
        "_type": TYPE,
        "subject": [{"name": f"{place}{each.name}", "digest": {"sha256": each.sha256}} for place, each in subjects],
        "predicateType": PREDICATE,
        "predicate": {
            "created": made.created,
            "onp": made.onp,
            "learned": made.learned,
            "task": report.task,
            "decision": report.decision,
            "probability": probability,
            "headline": report.headline,
            "seed": report.config.seed,
            "preset": report.config.preset,
            "prunedUnits": report.pruned_count,
            "units": report.units,
            "figures": _figures(report),
            "inputs": [asdict(each) for each in made.inputs],
            "outputs": [asdict(each) for each in made.outputs],
            "reports": [
                {"name": name, "digest": {"sha256": hashlib.sha256(encoded(content)).hexdigest()}}
                for name, content in files.items()
            ],
        },
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _figures(report: Report) -> dict[str, Any]:
    found = {}
    for name, before, after in shares(report.before, report.final):
        if math.isfinite(before.value) and math.isfinite(after.value):
            pair = {"before": before, "after": after} if report.changed else {"measured": before}
            found[name] = {when: _share(share) for when, share in pair.items()}
    return found


def _share(share: Share) -> dict[str, Any]:
    return {"value": share.value, "interval": list(share.interval), "images": share.n}
