"""An ML-BOM in CycloneDX 1.7: the checkpoint as a machine-learning model, a repaired one as a descendant of the original."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from onp.defend.report.report import ACC, ASR_TRUE, RA_TRUE, Report, shares
from onp.defend.report.sections import FileDigest
from onp.engine.metrics import Share
from onp.version import VERSION

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

LIMITS = (
    "Detection is statistical: that the measured triggers no longer work does not prove that no other trigger exists.",
    "Surrogate triggers are inverted from clean images; they are not the attacker's.",
    "Training on poisoned data can bring a backdoor back.",
)
REPAIR = "Units pruned by onp: their rows of weights, biases and norm parameters are zero; names and shapes are the same."
HEALED = " The later half of the rest was then trained to ignore inverted triggers."
TRAINED = " The rest was then trained on clean images with {}."


def bom_available() -> bool:
    """Whether a cyclonedx-python-lib is installed that writes this version."""
    try:
        from cyclonedx.schema import SchemaVersion
    except ImportError:
        return False
    return hasattr(SchemaVersion, "V1_7")


def bom_of(report: Report) -> str:
    """The BOM as JSON; needs cyclonedx-python-lib.

    The library has no model card yet, so that one is added to what it writes; both follow
    https://cyclonedx.org/docs/1.7/json.

    Args:
        report: with its provenance, where the digests are.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    made = report.provenance
    original = next((each for each in made.inputs if each.role == "model"), None) if made else None
    repaired = next((each for each in made.outputs if each.role == "repaired model"), None) if made else None
    model = _model(report, original, "original")
    if repaired is not None:
        model = _model(report, repaired, "repaired", model)
    bom = Bom()
    bom.metadata.component = model
    if made is not None:
        bom.metadata.timestamp = datetime.fromisoformat(made.created.replace("Z", "+00:00"))
    bom.metadata.tools.components.add(Component(name="onp", version=VERSION, type=ComponentType.APPLICATION))
    bom.register_dependency(model)
    document = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_7).output_as_string())
    document["metadata"]["component"]["modelCard"] = _card(report)
    return json.dumps(document, indent=2) + "\n"


def _model(report: Report, digest: FileDigest | None, which: str, ancestor: Component | None = None) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    notes = REPAIR + ("" if report.pruning is None else HEALED)
    notes += "" if report.tuned is None else TRAINED.format(report.tuned.method)
    name = digest.name if digest else (report.model.path or "model").partition("::")[0]
    found = {"onp:decision": report.decision, "onp:task": report.task, "onp:seed": str(report.config.seed)}
    if report.detection is not None:
        found["onp:probability"] = f"{report.detection.probability:.6f}"
    found = {} if ancestor is None and report.changed else found  # of the file that the BOM is about
    return Component(
        name=name,
        # Two files of one name: the digest tells them apart.
        bom_ref=f"{which}:{digest.sha256 if digest else name}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        description=None if ancestor is None else f"{report.pruned_count} of {report.units} units pruned by onp.",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest.sha256)] if digest else [],
        pedigree=None if ancestor is None else Pedigree(ancestors=[ancestor], notes=notes),
        properties=[Property(name=key, value=value) for key, value in found.items()],
    )


def _card(report: Report) -> dict[str, Any]:
    limits = [*([report.warning] if report.warning else []), *LIMITS]
    channels, height, width = report.model.input_shape
    return {
        "modelParameters": {
            "task": "image-classification",
            **({"modelArchitecture": report.model.arch} if report.model.arch else {}),
            "inputs": [{"format": f"images {channels} x {height} x {width}, normalised with {report.data.normalisation}"}],
            "outputs": [{"format": f"logits of {report.model.classes} classes"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": _metrics(report)},
        "considerations": {"technicalLimitations": limits},
    }


def _metrics(report: Report) -> list[dict[str, Any]]:
    """Shares as decimal numbers with their exact 95 % intervals; the slice says of which network and on which images."""
    when = ("original", "repaired") if report.changed else ("as given",)
    found = []
    for name, *pair in shares(report.before, report.final):
        kind = "accuracy" if name == ACC else "robust accuracy" if name == RA_TRUE else "attack success rate"
        on = "clean images" if name == ACC else "true trigger" if name in (ASR_TRUE, RA_TRUE) else name
        found += [_metric(kind, f"{network}; {on}", share) for network, share in zip(when, pair, strict=False)]
    return [each for each in found if each is not None]


def _metric(kind: str, part: str, share: Share) -> dict[str, Any] | None:
    if not math.isfinite(share.value):
        return None
    low, high = (f"{bound:.6f}" for bound in share.interval)
    return {
        "type": kind,
        "value": f"{share.value:.6f}",
        "slice": f"{part}; {share.n} images",
        "confidenceInterval": {"lowerBound": low, "upperBound": high},
    }
