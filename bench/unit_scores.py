"""Scores of units learned on search dossiers of other networks: `python bench/unit_scores.py`.

Label: whether a unit is in the best mask that a search with the true trigger found. Inputs: the node features, and the ranks of
six of them among the units of the network. Each network is judged by scorers that were learned without its attack families and
without its architecture: the area under the ROC curve of the label, the share right among as many units as the mask has, and
Spearman's correlation with the true trigger-activated change. Writes bench/results/unit_scores.json and prints the means.
`bench/search_zoo.py` compares the scorers in the search.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from onp.files import write_atomically
from onp.model.victim import Victim
from onp.search.features import NodeFeatures
from onp.search.neuron_graph import RELATIONS, NeuronGraph, build_graph
from onp.zoo.search_file import read_search_dossier

KINDS = ("linear", "two layers", "graph network")
NAMES = (*KINDS, "gradient boosting", "Taylor saliency", "attack attribution")
LEAST_PRUNED = 3  # units of the best mask, of fewer there is little to learn
HIDDEN, ROUNDS = 32, 2
DOSSIERS = Path(__file__).parent / "dossiers" / "search"
RESULTS = Path(__file__).parent / "results" / "unit_scores.json"
STEPS = {"linear": 120, "two layers": 25, "graph network": 25}  # epochs of AdamW


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one network as a scorer sees them."""

    inputs: Tensor  #: float32 `[V, F]`
    layer: Tensor  #: int64 `[V]`
    graphs: tuple[NeuronGraph, ...]  #: one a relation

    @staticmethod
    def of(features: NodeFeatures, graphs: Sequence[NeuronGraph]) -> Units:
        ranked = (
            *(features.attack_attribution, features.acc_attribution, features.column("change_mean")),
            *(features.column("bn_shift"), features.taylor, features.score_to_cost),
        )
        ranks = torch.stack([each.argsort().argsort() / max(1, len(each) - 1) * 2 - 1 for each in ranked], 1)
        return Units(torch.cat((features.values, ranks), 1), graphs[0].layer, tuple(graphs))


@dataclass(frozen=True, eq=False)
class Example:
    """A network whose best mask is known."""

    units: Units
    features: NodeFeatures
    change: Tensor  #: float32 `[V]`, what the true trigger changes of each unit
    pruned: Tensor  #: float32 `[V]`, 1 for units of the best mask
    arch: str
    families: frozenset[str]  #: of its attacks


def examples(folder: Path) -> list[Example]:
    """Of all search dossiers in a folder, one for each split and backdoor with a mask."""
    found = []
    for path in sorted(folder.glob("*.search.xz")):
        dossier = read_search_dossier(path)
        best = {each.target: each for each in dossier.truth.backdoors if each.best is not None}
        families = frozenset(str(each["family"]) for each in dossier.card["backdoors"])
        for known in dossier.knowledge:
            if known.target in best:
                of_target = best[known.target]
                pruned = (~dossier.truth.masks.keep[of_target.best]).float()
                if pruned.sum() >= LEAST_PRUNED:
                    units = Units.of(known.features, tuple(dossier.graphs.values()))
                    arch = dossier.card["arch"].split(":")[0]
                    found.append(Example(units, known.features, of_target.tac, pruned, arch, families))
    return found


def units_of(victim: Victim, features: NodeFeatures) -> Units:
    """Those of a network at hand."""
    return Units.of(features, [build_graph(victim, (relation,)) for relation in RELATIONS])


class Scorer(nn.Module):
    """A logit for each unit.

    Args:
        inputs: of a unit.
        kind: of `KINDS`; those with two layers see the largest value of each layer too, the graph network its neighbours.
    """

    def __init__(self, inputs: int, kind: str) -> None:
        super().__init__()
        self.graph, linear = kind == "graph network", kind == "linear"
        self.embed = nn.Identity() if linear else nn.Sequential(nn.Linear(inputs, HIDDEN), nn.LayerNorm(HIDDEN), nn.SiLU())
        wide = HIDDEN * (2 + len(RELATIONS) * self.graph)
        rounds = 0 if linear else ROUNDS
        self.rounds = nn.ModuleList(
            nn.Sequential(nn.Linear(wide, HIDDEN), nn.LayerNorm(HIDDEN), nn.SiLU()) for _ in range(rounds)
        )
        self.head = nn.Linear(inputs if linear else HIDDEN, 1)

    def forward(self, units: Units) -> Tensor:
        h = self.embed(units.inputs)
        for each in self.rounds:
            most = torch.stack([h[units.layer == layer].amax(0) for layer in range(int(units.layer.max()) + 1)])
            around = [graph.gather(h) for graph in units.graphs] if self.graph else []
            h = h + each(torch.cat((h, *around, most[units.layer]), 1))
        return self.head(h)[:, 0]


def fitted(known: Sequence[Example], kind: str) -> Scorer:
    """A scorer learned from examples; pruned and kept units weigh alike in each network.

    Args:
        known: what to learn from.
        kind: of `KINDS`.
    """
    torch.manual_seed(0)
    scorer = Scorer(known[0].units.inputs.shape[1], kind)
    optimiser = torch.optim.AdamW(scorer.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS[kind])
    for _ in range(STEPS[kind]):
        for places in torch.randperm(len(known)).split(8):
            losses = []
            for place in places.tolist():
                y = known[place].pruned
                weight = torch.where(y > 0, 0.5 / y.sum(), 0.5 / (1 - y).sum())
                losses.append(F.binary_cross_entropy_with_logits(scorer(known[place].units), y, weight, reduction="sum"))
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()
            optimiser.step()
        schedule.step()
    return scorer.eval()


def boosted(known: Sequence[Example]) -> Callable[[Units], Tensor]:
    """Gradient boosting learned from examples, which sees each unit alone: units to log odds `[V]`."""
    pruned = torch.cat([each.pruned for each in known])
    weight = torch.cat([torch.where(each.pruned > 0, 0.5 / each.pruned.sum(), 0.5 / (1 - each.pruned).sum()) for each in known])
    model = HistGradientBoostingClassifier(max_depth=3, learning_rate=0.05, max_iter=150, random_state=0)
    model.fit(torch.cat([each.units.inputs for each in known]).numpy(), pruned.numpy(), weight.numpy())
    return lambda units: torch.from_numpy(model.decision_function(units.inputs.numpy()))


def without(known: Sequence[Example], families: frozenset[str], arch: str) -> list[Example]:
    """The examples that share neither an attack family nor the architecture."""
    return [each for each in known if each.arch != arch and not each.families & families]


def judged(score: Tensor, example: Example) -> dict[str, float]:
    """What a score of the units says of one network."""
    label = example.pruned
    right = label[score.topk(int(label.sum())).indices].mean()
    return {
        "auc": float(roc_auc_score(label.numpy(), score.numpy())),
        "right": float(right),
        "spearman": float(spearmanr(score.numpy(), example.change.numpy()).statistic),
    }


def main() -> None:
    known = examples(DOSSIERS)
    learned: dict[tuple[frozenset[str], str], dict[str, Callable[[Units], Tensor]]] = {}
    rows = []
    for example in known:
        key = (example.families, example.arch)
        if key not in learned:
            others = without(known, *key)
            learned[key] = {kind: fitted(others, kind) for kind in KINDS} | {"gradient boosting": boosted(others)}
        with torch.no_grad():
            scores = {kind: scorer(example.units) for kind, scorer in learned[key].items()}
        scores |= {"Taylor saliency": example.features.taylor, "attack attribution": example.features.attack_attribution}
        rows.append(
            {"families": sorted(example.families), "arch": example.arch} | {n: judged(v, example) for n, v in scores.items()}
        )
        print(f"{len(rows)} of {len(known)}", flush=True)
    write_atomically(RESULTS, json.dumps({"rows": rows}) + "\n")
    print("| score | n | AUC | right among as many | Spearman with the change |\n|---|---|---|---|---|")
    for name in NAMES:
        means = [fmean(row[name][key] for row in rows) for key in ("auc", "right", "spearman")]
        print(f"| {name} | {len(rows)} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    print(f"| Spearman by family | n | {' | '.join(NAMES)} |\n{'|---' * (2 + len(NAMES))}|")
    for family in sorted({family for row in rows for family in row["families"]}):
        own = [row for row in rows if family in row["families"]]
        means = [fmean(row[name]["spearman"] for row in own) for name in NAMES]
        print(f"| {family} | {len(own)} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


if __name__ == "__main__":
    main()
