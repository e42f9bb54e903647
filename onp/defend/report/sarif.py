"""Reports in SARIF 2.1.0, the format that code scanning services read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onp.defend.decision import UNUSABLE, exit_code
from onp.defend.report.names import name_of
from onp.defend.report.report import Report
from onp.defend.report.sarif_rules import RULE_OF, RULES, TAXA, descriptors, taxonomies
from onp.defend.report.sections import DetectionSection, FileDigest
from onp.engine.metrics import Share
from onp.errors import InputError, UnsafeCheckpointError
from onp.version import VERSION

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
SUPPORTED = [{"name": catalogue, "index": index} for index, catalogue in enumerate(TAXA)]
EXIT_CODES = {
    0: "nothing found",
    1: "evidence of a backdoor found",
    2: "something given cannot be used",
    3: "evidence of a backdoor found, and no repair possible",
}


@dataclass(frozen=True, eq=False)
class Entry:
    """What one checkpoint adds to a log."""

    artifact: dict[str, Any]  #: the checkpoint
    result: dict[str, Any] | None  #: None where nothing was found; without the index of the artifact
    refusal: str | None = None  #: why the checkpoint was not examined


def sarif_of(report: Report) -> str:
    """The log of a run, as text."""
    done = report.provenance.created if report.provenance else None
    return sarif_log([entry_of(report)], exit_code(report.decision, report.config.fail_on), done)


def sarif_of_refusal(error: UnsafeCheckpointError, path: Path, digest: FileDigest | None = None) -> str:
    """The log of a run that refused the checkpoint `path` because it can run code when it is opened, as text."""
    return sarif_log([entry_of_refusal(error, path, digest)], UNUSABLE)


def sarif_log(entries: Sequence[Entry], code: int, done: str | None = None) -> str:
    """One run over one or many checkpoints.

    Args:
        entries: by checkpoint.
        code: exit code of the process.
        done: UTC date at its end, ISO 8601 with a Z.
    """
    refusals = [entry.refusal for entry in entries if entry.refusal is not None]
    invocation: dict[str, Any] = {
        "executionSuccessful": not refusals,
        "exitCode": code,
        "exitCodeDescription": EXIT_CODES.get(code, ""),
    }
    if done is not None:
        invocation["endTimeUtc"] = done
    if refusals:
        invocation["toolExecutionNotifications"] = [{"level": "error", "message": {"text": text}} for text in refusals]
    results = [
        _located(entry.result, entry.artifact["location"]["uri"], index)
        for index, entry in enumerate(entries)
        if entry.result is not None
    ]
    run = {
        "tool": {
            "driver": {"name": "onp", "semanticVersion": VERSION, "rules": descriptors(), "supportedTaxonomies": SUPPORTED}
        },
        "invocations": [invocation],
        "artifacts": [entry.artifact for entry in entries],
        "results": results,
        "taxonomies": taxonomies(),
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False) + "\n"


def entry_of(report: Report, name: str | None = None) -> Entry:
    """What a report says of its checkpoint.

    Args:
        report: of a run of any task.
        name: of the checkpoint, or its path relative to what the log is about; that of the report where it is not given.
    """
    found = report.provenance.inputs if report.provenance else ()
    digest = next((each for each in found if each.role == "model"), None)
    name = name or (digest.name if digest else (report.model.path or "model").partition("::")[0])
    # A trigger that works although no class was found is evidence, too.
    rule = "backdoor-evidence" if report.missed else RULE_OF.get(report.decision)
    if rule is None:
        return Entry(_artifact(name, digest), None)
    level = "warning" if report.decision == "repaired" else next(each.level for each in RULES if each.id == rule)
    warning = [f"Warning: {report.warning}"] if report.warning else []
    result = _result(rule, level, " ".join((report.headline, report.reason, *warning)), digest or name)
    result["locations"] = [{"logicalLocations": _units(report.pruned)}] if report.pruned else [{}]
    result["properties"] = _figures(report)
    if report.detection is not None and math.isfinite(report.detection.probability):
        result["rank"] = round(100 * report.detection.probability, 2)  # from 0 to 100, as SARIF has it
    return Entry(_artifact(name, digest), result)


def entry_of_refusal(error: InputError, path: Path, digest: FileDigest | None = None, name: str | None = None) -> Entry:
    """A checkpoint that was not examined; that is a finding where it can run code when it is opened.

    Args:
        error: why.
        path: of the checkpoint; the log holds none of its folders.
        digest: of the checkpoint, where it could be read.
        name: its path relative to what the log is about; its name where it is not given.
    """
    name = name or name_of(path)
    message = str(error).replace(str(path), name)
    result = None
    if isinstance(error, UnsafeCheckpointError):
        result = _result("unsafe-checkpoint", "error", message, digest or name) | {"locations": [{}]}
    return Entry(_artifact(name, digest), result, message)


def _artifact(name: str, digest: FileDigest | None) -> dict[str, Any]:
    known = {} if digest is None else {"length": digest.bytes, "hashes": {"sha-256": digest.sha256}}
    return {"location": {"uri": quote(name)}, "roles": ["analysisTarget"], **known}


def _result(rule: str, level: str, message: str, checkpoint: FileDigest | str) -> dict[str, Any]:
    """A result without its location; its fingerprint is the same for every run that comes to it on the same file."""
    identity = name_of(checkpoint) if isinstance(checkpoint, str) else checkpoint.sha256
    return {
        "ruleId": rule,
        "ruleIndex": [each.id for each in RULES].index(rule),
        "level": level,
        "message": {"text": message},
        "partialFingerprints": {"checkpointAndRule/v1": hashlib.sha256(f"{rule}\n{identity}".encode()).hexdigest()},
    }


def _located(result: dict[str, Any], uri: str, index: int) -> dict[str, Any]:
    # A checkpoint has no lines, and code scanning services show no result without one.
    place = {"artifactLocation": {"uri": uri, "index": index}, "region": {"startLine": 1}}
    return result | {"locations": [{"physicalLocation": place, **location} for location in result["locations"]]}


def _units(pruned: dict[str, list[int]]) -> list[dict[str, Any]]:
    return [
        {"name": str(unit), "fullyQualifiedName": f"{layer}[{unit}]", "kind": "member"}
        for layer, units in pruned.items()
        for unit in units
    ]


def _figures(report: Report) -> dict[str, Any]:
    """Shares with their exact 95 % intervals, and probabilities."""
    return {
        "decision": report.decision,
        "task": report.task,
        "targetClasses": list(report.target_classes),
        **({"targetName": report.target_name} if report.target_name is not None else {}),
        **_probabilities(report.detection),
        "before": _shares(report.before.acc, report.before.asr_surrogate),
        "after": _shares(report.final.acc, report.final.asr_surrogate),
        "prunedUnits": report.pruned_count,
        "units": report.units,
        "seed": report.config.seed,
        "preset": report.config.preset,
    }


def _probabilities(detection: DetectionSection | None) -> dict[str, Any]:
    """Of a backdoor, and of the most probable target with what speaks for it."""
    if detection is None or not math.isfinite(detection.probability):
        return {}
    target = detection.ranking[0]
    return {
        "probability": detection.probability,
        "backdoorFrom": detection.backdoor_from,
        "noneBelow": detection.none_below,
        "mostProbableTarget": {
            "class": target,
            "probability": detection.per_class[target],
            "evidence": {name: value for name, value in detection.evidence_of(target).items() if math.isfinite(value)},
        },
    }


def _shares(acc: Share, surrogates: dict[str, Share]) -> dict[str, Any]:
    return {
        name: {"value": share.value, "interval": list(share.interval), "images": share.n}
        for name, share in (("acc", acc), *((f"surrogate ASR, {family}", share) for family, share in surrogates.items()))
        if math.isfinite(share.value)
    }
