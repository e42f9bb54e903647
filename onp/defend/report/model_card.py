"""A model card in Markdown, to put beside a repaired checkpoint on a hub."""

from __future__ import annotations

import json

from onp.defend.report.environment import versions
from onp.defend.report.report import Report, percent, shares


def model_card(report: Report) -> str:
    """What was done to the model, what it does now, and what that does not prove; every figure with its 95 % interval.

    The front matter is what hubs read (https://huggingface.co/docs/hub/model-cards); licence and data are the model's own
    and are left for its owner to fill in.
    """
    table = ["| | before | after | images |", "|---|---|---|---|"]
    table += [
        f"| {_plain(name)} | {percent(before)} | {percent(after)} | {after.n} |"
        for name, before, after in shares(report.before, report.after)
    ]
    layers = [f"- `{name}`: {', '.join(map(str, units))}" for name, units in report.pruned.items()]
    settings = {"max_acc_drop": report.config.max_acc_drop, "seed": report.config.seed, "torch": versions()["torch"]}
    lines = [
        f"# {_plain(_name(report))}, repaired",
        "",
        f"{_plain(report.reason)} Pruned with onp (the method follows ONP, arXiv 2405.17746); architecture, names and shapes "
        "of the weights are those of the original.",
        *(f"\n{_plain(note)}" for note in report.notes),
        *([f"\n**Warning:** {_plain(report.warning)}"] if report.warning else []),
        "\n## Before and after\n",
        *table,
        "\nIn per cent, with exact 95 % intervals, measured on images that the repair did not see. ACC: accuracy on clean "
        "images. ASR: attack success rate, the share of triggered images of other classes that are given the target class. RA: "
        "share of the same images that are given their own class. Surrogate: triggers inverted from clean images, not the "
        "attacker's.",
        f"\n## Pruned: {report.pruned_count} of {report.units} units\n",
        *layers,
        "\nTheir rows of weights, biases and norm parameters are zero; nothing else differs.",
        "\n## Provenance\n",
        f"Made from the checkpoint {_plain(_file(report))} ({_plain(_name(report))}), with {report.data.images} clean images: "
        f"{report.data.build} to invert triggers, {report.data.score} to select, {report.data.holdout} held out.",
        "\n## Input\n",
        f"{' x '.join(map(str, report.model.input_shape))} in [0, 1], normalised with `{report.data.normalisation}`; "
        f"{report.model.classes} classes.",
        "\n## Limits\n",
        "Detection is statistical: that the measured triggers no longer work does not prove that no other trigger exists. "
        "Fine-tuning on poisoned data can bring a backdoor back.",
        "\n## Settings\n",
        f"```json\n{json.dumps(settings)}\n```",
    ]
    return _front_matter(report) + "\n".join(lines) + "\n"


def _name(report: Report) -> str:
    return report.model.arch or "A classifier"


def _front_matter(report: Report) -> str:
    lines = ["pipeline_tag: image-classification", "tags: [backdoor-defense, pruning, onp]"]
    # Hubs take the name of a repository only, which the owner knows. A JSON string is on one line, whatever it holds.
    lines.append(f"# base_model: the repository of the original checkpoint, {json.dumps(_file(report))}")
    return "\n".join(("---", *lines, "---")) + "\n"


def _file(report: Report) -> str:
    """The name of the original checkpoint, without the folders of this machine."""
    return "unnamed" if report.model.path is None else report.model.path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _plain(text: str) -> str:
    """Text of the user, such as class names, in one line that Markdown and HTML leave as it is."""
    escaped = " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;").replace("|", "\\|")
    return escaped.replace("[", "\\[").replace("`", "\\`").replace("*", "\\*").replace("_", "\\_")
