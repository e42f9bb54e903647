"""The rules of `report.sarif`: what each finding means, what to do, and the entries of public catalogues that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onp.defend.decision import Decision

ATLAS, OWASP, CWE = "MITRE ATLAS", "OWASP Machine Learning Security Top Ten", "CWE"

TAXA: dict[str, dict[str, str]] = {
    ATLAS: {
        "AML.T0018.000": "Poison AI Model",
        "AML.T0018.002": "Embed Malware",
        "AML.T0011.000": "Unsafe AI Artifacts",
        "AML.M0008": "Validate AI Model",
    },
    OWASP: {"ML10:2023": "Model Poisoning", "ML06:2023": "AI Supply Chain Attacks"},
    CWE: {"CWE-502": "Deserialization of Untrusted Data"},
}
"""By catalogue: what the rules refer to. AML.M0008 is the control that a scan carries out."""

LIMIT = "Detection is statistical: that nothing was found is no proof that there is no backdoor."
VERSIONS = {ATLAS: "5.6.1", OWASP: "2023 v0.3"}
ORGANISATIONS = {ATLAS: "MITRE", OWASP: "OWASP", CWE: "MITRE"}


@dataclass(frozen=True)
class Rule:
    """A kind of finding."""

    id: str
    name: str
    level: str  #: of SARIF: error, warning or note
    severity: str  #: from 0 to 10, as code scanning services sort findings by
    what: str  #: one sentence
    do: str  #: one sentence
    taxa: tuple[str, ...]


RULES = (
    Rule(
        "backdoor-evidence",
        "BackdoorEvidence",
        "error",
        "8.0",
        "A class of the image classifier is far easier to reach than the others, as the target class of a backdoor is.",
        "Do not deploy the original checkpoint; where a repaired one was written, measure it on your own images first.",
        ("AML.T0018.000", "AML.M0008", "ML10:2023"),
    ),
    Rule(
        "not-repairable",
        "NotRepairable",
        "error",
        "9.0",
        "There is evidence of a backdoor, and no pruning mask within the accuracy budget removes it.",
        "Do not deploy the checkpoint; allow a larger accuracy loss, give more clean images, or get the model from elsewhere.",
        ("AML.T0018.000", "AML.M0008", "ML10:2023"),
    ),
    Rule(
        "unsafe-checkpoint",
        "UnsafeCheckpoint",
        "error",
        "9.0",
        "The checkpoint holds pickled objects or a program, which can run code when it is opened; it was not opened.",
        "Do not load it; ask for the weights alone, as safetensors or as a state dict that torch.load reads with weights_only.",
        ("AML.T0018.002", "AML.T0011.000", "ML06:2023", "CWE-502"),
    ),
    Rule(
        "inconclusive",
        "Inconclusive",
        "note",
        "3.0",
        "The probability of a backdoor lies between the two thresholds, where neither answer is safe.",
        "Run again with --preset thorough, with other seeds or with more clean images.",
        ("AML.M0008", "ML10:2023"),
    ),
)

RULE_OF: dict[Decision, str] = {
    "backdoor-evidence": "backdoor-evidence",
    "repaired": "backdoor-evidence",
    "partly-repaired": "backdoor-evidence",
    "not-repairable": "not-repairable",
    "inconclusive": "inconclusive",
}
"""The rule that a decision comes under; none for no evidence."""


def descriptors() -> list[dict[str, Any]]:
    """The rules as SARIF has them."""
    return [
        {
            "id": rule.id,
            "name": rule.name,
            "shortDescription": {"text": rule.what},
            "fullDescription": {"text": f"{rule.what} {rule.do}"},
            "help": {
                "text": f"{rule.what} {rule.do} {LIMIT}",
                "markdown": f"{rule.what}\n\n**What to do.** {rule.do}\n\n{LIMIT}",
            },
            "defaultConfiguration": {"level": rule.level},
            "relationships": [
                {"target": {"id": taxon, "toolComponent": {"name": catalogue}}, "kinds": ["relevant"]}
                for taxon in rule.taxa
                for catalogue in TAXA
                if taxon in TAXA[catalogue]
            ],
            "properties": {
                "tags": ["security", "machine-learning", *rule.taxa],
                "precision": "medium",
                "problem.severity": {"note": "recommendation"}.get(rule.level, rule.level),
                "security-severity": rule.severity,
            },
        }
        for rule in RULES
    ]


def taxonomies() -> list[dict[str, Any]]:
    """The catalogues as SARIF has them, with the entries that are referred to."""
    return [
        {
            "name": catalogue,
            **({"version": VERSIONS[catalogue]} if catalogue in VERSIONS else {}),
            "organization": ORGANISATIONS[catalogue],
            "shortDescription": {"text": f"The entries of {catalogue} that the rules refer to."},
            "isComprehensive": False,
            "taxa": [{"id": taxon, "name": name, "shortDescription": {"text": name}} for taxon, name in entries.items()],
        }
        for catalogue, entries in TAXA.items()
    ]
