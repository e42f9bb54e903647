"""How well a few hundred images foretell what a mask costs others:
`python bench/acc_loss_estimators.py --runs OUT ... --others IMAGES`.

`--runs`: folders that `onp.defend` wrote (each names its model, its clean images and what it pruned). `--others`: labelled
images that neither the networks nor those runs have seen. Masks: subsets of what a run pruned, with up to eleven random units.
On the images that the search of that run scored masks on it counts flips, the mean probability that the labels lose, the
mean KL divergence from the unpruned network, and what the labels lose on changed copies of the target class, times its share;
on the others the accuracy lost, and the target class's part of it. For each of the four it prints the factor that explains
what is lost, for all networks and for each, and the root mean square of what is left, in points: with that factor, with the
factor of the other networks, and with none; the same of the copies and the target class's part; last of the divergence as
`onp.search.objective` reckons it, alone and with the flips, and of half of the probability and half of the copies.
Masks that lose 6 points or more count nowhere. Writes bench/results/accuracy.json; without `--runs` it prints what that says.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from onp.data.images import ImageSet, joined, load_images, split
from onp.data.normalisation import Normalisation
from onp.defend.report.environment import hardware, versions
from onp.engine.evaluator import Evaluator, Scores
from onp.engine.scoring import Batch
from onp.engine.settings import EvaluatorSettings
from onp.files import write_atomically
from onp.model.mask import Mask
from onp.model.victim import Victim, load_victim
from onp.search.objective import ACC_LOST_PER_NAT
from onp.search.setup import SearchRun, augmented_batches, batch_of

NAMES = ("flips", "probability", "divergence", "copies")
MOST = 0.06


def drawn(victim: Victim, pruned: Tensor, count: int, seed: int) -> Tensor:
    """Different masks, bool [B, U]: nothing pruned, all of `pruned`, and parts of it with random units."""
    generator = torch.Generator().manual_seed(seed)
    units = pruned.nonzero().flatten()
    masks = [torch.ones(victim.units, dtype=torch.bool), ~pruned]
    for _ in range(count):
        share = 0.2 + 0.8 * float(torch.rand((), generator=generator))
        mask = torch.ones(victim.units, dtype=torch.bool)
        mask[units[torch.rand(len(units), generator=generator) < share]] = False
        more = int(torch.randint(12, (), generator=generator))
        mask[torch.randint(victim.units, (more,), generator=generator)] = False
        masks.append(mask)
    return torch.stack(list({mask.numpy().tobytes(): mask for mask in masks}.values()))


def measured(folder: Path, others: ImageSet, count: int) -> dict[str, list[float]]:
    """Of each mask but the first: what the images of the search say, and `lost`, what the others lost."""
    report = json.loads((folder / "report.json").read_text())
    norm, shape = Normalisation.parse(report["data"]["normalisation"]), tuple(report["model"]["input_shape"])
    victim = load_victim(report["model"]["path"], report["model"]["arch"], norm, shape)
    parts = split(load_images(report["data"]["path"]), report["seed"])
    layers = [(layer.name, layer.units) for layer in victim.layers]
    masks = drawn(victim, ~Mask.from_pruned(layers, report["pruned"]["layers"]).keep, count, report["seed"])

    target, both = report["target_class"], joined(parts.build, parts.score)
    copies = augmented_batches(victim, both, target, SearchRun(seed=report["seed"]))

    def scores(batch: Batch, augmented: list[Batch]) -> Scores:
        return Evaluator(victim, batch, [], augmented, EvaluatorSettings(precision="float32")).score(masks)

    here = scores(batch_of(victim, both), [batch for batch in copies if int(batch.labels[0]) == target])
    there, of_target = (scores(batch_of(victim, each), []) for each in (others, others.subset(others.labels == target)))
    share = float((both.labels == target).float().mean())
    columns = {
        "flips": here.acc[0] - here.acc,
        "probability": here.acc_soft[0] - here.acc_soft,
        "divergence": here.divergence,
        "copies": share * (here.agreement_soft[0] - here.agreement_soft).sum(1),
        "lost": there.acc[0] - there.acc,
        "of_target": share * (of_target.acc[0] - of_target.acc),
    }
    return {name: [round(value, 6) for value in column[1:].tolist()] for name, column in columns.items()}


def factor(rows: list[dict[str, list[float]]], name: str) -> float:
    """Least squares through 0, every network with the same weight."""
    sums = [0.0, 0.0]
    for row in rows:
        pairs = [(x, y) for x, y in zip(row[name], row["lost"], strict=True) if y < MOST]
        sums[0] += sum(x * y for x, y in pairs) / len(pairs)
        sums[1] += sum(x * x for x, _ in pairs) / len(pairs)
    return sums[0] / sums[1] if sums[1] else 0.0


def left(rows: list[dict[str, list[float]]], name: str, factors: list[float]) -> float:
    """Root mean square of what the factors leave unexplained, in points."""
    total = 0.0
    for row, each in zip(rows, factors, strict=True):
        errors = [(each * x - y) ** 2 for x, y in zip(row[name], row["lost"], strict=True) if y < MOST]
        total += sum(errors) / len(errors)
    return 100 * math.sqrt(total / len(rows))


def described(title: str, found: dict[str, dict[str, list[float]]], name: str) -> str:
    rows = list(found.values())
    own = [factor([row], name) for row in rows]
    each = ", ".join(f"{folder} {value:.2f}" for folder, value in zip(found, own, strict=True))
    every = factor(rows, name)
    others = [factor(rows[:index] + rows[index + 1 :], name) if len(rows) > 1 else every for index in range(len(rows))]
    errors = [f"{left(rows, name, factors):.2f}" for factors in ([every] * len(rows), others, [1.0] * len(rows))]
    known = f"off by {errors[0]} points, with the factor of the other networks {errors[1]}, as it is {errors[2]}"
    return f"{title}: factor {every:.2f}, {known}; {each}"


def summary(found: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = list(found.values())
    lines = [described(name, found, name) for name in NAMES]
    parts = {folder: row | {"lost": row["of_target"]} for folder, row in found.items()}
    lines.append(described("the target class's part by its copies", parts, "copies"))
    made = []
    for row in rows:
        nats = [ACC_LOST_PER_NAT * value for value in row["divergence"]]
        pairs = zip(row["flips"], nats, strict=True)
        halves = zip(row["probability"], row["copies"], strict=True)
        more = {"mean": [sum(pair) / 2 for pair in pairs], "halves": [sum(pair) / 2 for pair in halves]}
        made.append(row | {"reckoned": nats} | more)
    off = [f"{left(made, name, [1.0] * len(rows)):.2f}" for name in ("reckoned", "mean", "halves")]
    said = f"{ACC_LOST_PER_NAT} a nat: off by {off[0]}, its mean with the flips by {off[1]}"
    return [*lines, f"{said}; half of the probability and half of the copies: {off[2]}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--others", help="needed with --runs")
    parser.add_argument("--masks", type=int, default=34, help="parts of what was pruned, for each run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "accuracy.json")
    options = parser.parse_args()
    if not options.runs:
        print(*summary(json.loads(options.out.read_text())["networks"]), sep="\n")
        return
    assert options.others is not None, "--runs needs --others, images that neither networks nor runs have seen"
    others, found = load_images(options.others), {}
    about = {"hardware": hardware(), "versions": versions(), "others": len(others)}
    for folder in options.runs:
        found[folder.name] = measured(folder, others, options.masks)
        write_atomically(options.out, json.dumps(about | {"networks": found}) + "\n")
        print(*summary(found), sep="\n", flush=True)


if __name__ == "__main__":
    main()
