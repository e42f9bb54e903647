"""A model card in Markdown, to put beside a repaired checkpoint on a hub."""

from __future__ import annotations

import json

from onp.defend.report.report import Report, percent, versions

FRONT = """\
---
pipeline_tag: image-classification
tags: [backdoor-defense, pruning, onp]
---
"""


def model_card(report: Report) -> str:
    """What was done to the model, what it does now, and what that does not prove; every figure with its 95 % interval.

    The front matter is what hubs read (https://huggingface.co/docs/hub/model-cards); licence and data are the model's own
    and are left for its owner to fill in.
    """
    rows = [("Accuracy on clean images (ACC)", report.before.acc, report.after.acc)]
    for family, share in report.before.asr_surrogate.items():
        rows.append((f"Success of surrogate triggers, {family} (ASR)", share, report.after.asr_surrogate[family]))
    for name, before, after in (
        ("ASR without a trigger", report.before.asr_clean, report.after.asr_clean),
        ("ASR of the true trigger", report.before.asr, report.after.asr),
        ("Accuracy on triggered images (RA)", report.before.ra, report.after.ra),
    ):
        if before is not None and after is not None:
            rows.append((name, before, after))
    table = ["| | before | after | images |", "|---|---|---|---|"]
    table += [f"| {_plain(name)} | {percent(before)} | {percent(after)} | {after.n} |" for name, before, after in rows]
    layers = [f"- `{name}`: {', '.join(map(str, units))}" for name, units in report.pruned.items()]
    settings = {"max_acc_drop": report.config["max_acc_drop"], "seed": report.seed, "torch": versions()["torch"]}
    lines = [
        f"# {report.model['arch']}, repaired",
        "",
        f"This network showed a backdoor. {_plain(report.reason)} They were pruned with onp "
        "(the method follows ONP, arXiv 2405.17746); architecture, names and shapes of the weights are those of the original.",
        *(f"\n{_plain(note)}" for note in report.notes),
        *([f"\n**Warning:** {_plain(report.warning)}"] if report.warning else []),
        "\n## Before and after\n",
        *table,
        "\nIn per cent, with exact 95 % intervals, measured on images that the repair did not see.",
        f"\n## Pruned: {report.pruned_count} of {report.units} units\n",
        *layers,
        "\nTheir rows of weights, biases and norm parameters are zero; nothing else differs.",
        "\n## Input\n",
        f"{' x '.join(map(str, report.model['input_shape']))} in [0, 1], normalised with `{report.data['normalisation']}`; "
        f"{report.model['classes']} classes.",
        "\n## Limits\n",
        "The verdict is statistical: it says what the triggers found on clean images do, not that no other trigger exists. "
        "Fine-tuning on poisoned data can bring a backdoor back.",
        "\n## Settings\n",
        f"```json\n{json.dumps(settings)}\n```",
    ]
    return FRONT + "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text of the user, such as class names, that Markdown and HTML leave as it is."""
    escaped = text.replace("\\", "\\\\").replace("<", "&lt;").replace("|", "\\|")
    return escaped.replace("[", "\\[").replace("`", "\\`").replace("*", "\\*").replace("_", "\\_")
