"""A model card in Markdown, to put beside a repaired checkpoint on a hub."""

from __future__ import annotations

import json

from onp.defend.report.environment import hardware, versions
from onp.defend.report.names import name_of
from onp.defend.report.probabilities import in_words, rests_on
from onp.defend.report.report import Report, percent, shares
from onp.defend.report.sections import FileDigest

LIBRARIES = ("timm", "transformers", "torchvision")
REFERENCE = (
    "A clean network: what 19 of 20 networks without a backdoor stay below when the same triggers are inverted for them "
    "({networks} networks, version {version}); triggers that reach no more than that are no sign of a backdoor."
)


def model_card(report: Report) -> str:
    """What was done to the model, what it does now, and what that does not prove; every figure with its 95 % interval.

    The front matter is what hubs read (https://huggingface.co/docs/hub/model-cards); licence and data are the model's own
    and are left for its owner to fill in.
    """
    layers = [f"- {_code(name)}: {', '.join(map(str, units))}" for name, units in report.pruned.items()]
    lines = [
        f"# {_plain(_name(report))}, repaired",
        "",
        f"{_plain(report.headline)} {_plain(report.reason)} Pruned with onp (the method follows ONP, arXiv 2405.17746); "
        "architecture, names and shapes of the weights are those of the original.",
        *(f"\n{_plain(note)}" for note in report.notes),
        *([f"\n**Warning:** {_plain(report.warning)}"] if report.warning else []),
        *_detection(report),
        "\n## Before and after\n",
        *_figures(report),
        f"\n## Pruned: {report.pruned_count} of {report.units} units\n",
        *layers,
        f"\nTheir rows of weights, biases and norm parameters are zero; {_rest(report)}",
        "\n## Provenance\n",
        *_provenance(report),
        "\n## Input\n",
        f"{' x '.join(map(str, report.model.input_shape))} in [0, 1], normalised with {_code(report.data.normalisation)}; "
        f"{report.model.classes} classes.",
        "\n## Licence\n",
        "That of the original model, which its owner knows; the repair adds no terms.",
        "\n## Limits\n",
        "Detection is statistical: that the measured triggers no longer work does not prove that no other trigger exists. "
        "Fine-tuning on poisoned data can bring a backdoor back. A signature of the original does not cover the repaired file.",
        "\n## Settings\n",
        f"```json\n{json.dumps(_settings(report))}\n```",
    ]
    return _front_matter(report) + "\n".join(lines) + "\n"


def _rest(report: Report) -> str:
    healed = (
        "of the rest, the weights of the later half were then trained to ignore inverted triggers (healed; teachers: the "
        "pruned network, the one given, or both, on clean images)"
    )
    if report.tuned is None:
        return "nothing else differs." if report.pruning is None else f"{healed}."
    first = "" if report.pruning is None else f"{healed}; "
    return (
        f"{first}all else was then trained on the clean images with {report.tuned.method}, and may differ too. The figures "
        "after the repair are those of the trained network."
    )


def _detection(report: Report) -> list[str]:
    """How probable the backdoor was, and what speaks for each target."""
    detection = report.detection
    if detection is None:
        return []
    rows = [("target", "probability", "log odds, by detector"), ("---",) * 3]
    rows += [
        (_plain(detection.class_names[k]), in_words(detection.per_class[k]), _plain(rests_on(detection.evidence_of(k))))
        for k in report.target_classes
    ]
    probability, least = in_words(detection.probability), in_words(detection.backdoor_from)
    return [
        "\n## Evidence in the original\n",
        f"Probability of a backdoor: {probability}; evidence from {least} on.\n",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _figures(report: Report) -> list[str]:
    reference, clean = report.clean_reference, report.clean_words
    rows = [("", "before", "after", "a clean network", "images"), ("---",) * 5]
    for name, before, after in shares(report.before, report.final):
        rows.append((_plain(name), percent(before), percent(after), clean.get(name, ""), str(after.n)))
    table = [f"| {' | '.join(cell for place, cell in enumerate(row) if clean or place != 3)} |" for row in rows]
    explained = REFERENCE.format(networks=reference.networks, version=_plain(reference.version))
    return [
        *table,
        "\nIn per cent, with exact 95 % intervals, measured on images that the repair did not see. ACC: accuracy on clean "
        "images. ASR: attack success rate, the share of triggered images of other classes that are given the target class. RA: "
        "robust accuracy, the share of the same images that are given their own class. Surrogate: triggers inverted from clean "
        "images, not the attacker's.",
        *([f"\n{explained}"] if clean else []),
    ]


def _provenance(report: Report) -> list[str]:
    made, data = report.provenance, report.data
    lines = [
        f"Made from the checkpoint {_plain(_file(report))} ({_plain(_name(report))}), with {data.images} clean images: "
        f"{data.build} to invert triggers, {data.score} to select, {data.holdout} held out."
    ]
    if made is None:
        return lines
    learned = ", ".join(f"{name} {version}" for name, version in made.learned.items())
    lines += [
        f"\nOn {made.created} with onp {made.onp} ({_plain(learned)}).\n",
        "| file | | SHA-256 |",
        "|---|---|---|",
        *(_row(each) for each in (*made.inputs, *made.outputs)),
        "\n`sha256sum FILE` gives the same; that of a folder is of the sorted list of its files.",
    ]
    return lines


def _row(digest: FileDigest) -> str:
    return f"| {_plain(digest.role)} | {_plain(digest.name)} | `{digest.sha256}` |"


def _settings(report: Report) -> dict[str, object]:
    config = report.config
    settings = {"preset": config.preset, "max_acc_drop": config.max_acc_drop, "seed": config.seed}
    settings |= {"heal": report.pruning is not None, "tune": config.tune}
    return {name: value for name, value in (settings | versions() | hardware()).items() if value is not None}


def _name(report: Report) -> str:
    return report.model.arch or "A classifier"


def _front_matter(report: Report) -> str:
    arch = report.model.arch or ""
    library = next((name for name in LIBRARIES if arch.startswith((f"{name} ", f"{name}:"))), "pytorch")
    lines = [
        f"library_name: {library}",
        "pipeline_tag: image-classification",
        "tags: [backdoor-defense, pruning, onp]",
        # Hubs take the name of a repository only, and one licence of their list: the owner knows both. A JSON string is on
        # one line, whatever it holds.
        f"# base_model: the repository of the original checkpoint, {json.dumps(_original(report))}",
        "# base_model_relation: finetune",
        "# license: that of the original",
    ]
    return "\n".join(("---", *lines, "---")) + "\n"


def _original(report: Report) -> str:
    found = report.provenance.inputs if report.provenance else ()
    digests = [f", SHA-256 {each.sha256}" for each in found if each.role == "model"]
    return _file(report) + "".join(digests[:1])


def _file(report: Report) -> str:
    return "unnamed" if report.model.path is None else name_of(report.model.path)


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


def _plain(text: str) -> str:
    """Text of the user, such as class names, in one line that Markdown and HTML leave as it is."""
    escaped = " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;").replace("|", "\\|")
    return escaped.replace("[", "\\[").replace("`", "\\`").replace("*", "\\*").replace("_", "\\_")
