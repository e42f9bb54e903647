"""How well a few hundred images foretell the accuracy that a mask costs others: `python bench/expected_acc_loss.py`.

`--dossiers`: folders of search dossiers (`onp zoo dossiers --search`), by default those of the repository. Each holds masks
that a search has scored on 300 clean images, with surrogate triggers, and what they truly cost 700 test images that no
search has seen. Masks that lose more than `MOST` count nowhere, and every network counts alike. For each estimate: the factors
that explain best what is lost, fitted by least squares on all networks but the one they are judged on, without negative ones;
the root mean square of what is left, in points; and the area under the ROC curve for "loses more than one point", within each
network, with its mean. The first estimate is that of `onp.search.objective`, with its own factors. `--after` leaves out the
networks up to a number: those on which factors were chosen. Writes bench/results/expected_acc_loss.json and prints the table as
Markdown.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.metrics import roc_auc_score

from onp.defend.report.environment import hardware, versions
from onp.files import write_atomically
from onp.search.objective import ACC_LOST_PER_COUNTED, ACC_LOST_PER_NAT
from onp.zoo.search_file import SearchDossier, read_search_dossier

MOST = 0.05
ESTIMATES = {
    "objective": ("counted", "divergence"),
    "counted and divergence": ("counted", "divergence"),
    "divergence": ("divergence",),
    "counted": ("counted",),
    "label probability": ("probability",),
    "counted, divergence and label probability": ("counted", "divergence", "probability"),
    "counted, divergence and augmented copies": ("counted", "divergence", "copies"),
}

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measured:
    """The masks of one network, `[M]` each."""

    index: int
    estimates: dict[str, Array]
    lost: Array  #: of the test images, a share


def measured(dossier: SearchDossier) -> Measured:
    """Masks of all splits and classes that lose at most `MOST`."""
    found: dict[str, list[Array]] = {}
    truth = dossier.truth.masks
    for known in dossier.knowledge:
        change = {name: (values[1:] - values[0]).double().numpy() for name, values in known.scores.items()}
        row = {
            "counted": -change["acc"],
            "divergence": change["divergence"],
            "probability": -change["acc_soft"],
            "copies": -change["agreement"].mean(1),
            "lost": (truth.acc[0] - truth.acc[1:])[known.masks].double().numpy(),
        }
        for name, values in row.items():
            found.setdefault(name, []).append(values)
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    moderate = columns["lost"] <= MOST
    lost = columns.pop("lost")[moderate]
    return Measured(int(dossier.card["index"]), {name: values[moderate] for name, values in columns.items()}, lost)


def fitted(networks: list[Measured], names: tuple[str, ...]) -> Array:
    """The factors, every network weighing alike."""
    weights = [np.full(len(each.lost), len(each.lost) ** -0.5) for each in networks]
    inputs = np.concatenate([np.stack([each.estimates[name] for name in names], 1) for each in networks])
    scale = np.concatenate(weights)
    factors: Array = nnls(inputs * scale[:, None], np.concatenate([each.lost for each in networks]) * scale)[0]
    return factors


def judged(networks: list[Measured], kind: str) -> dict[str, object]:
    """One row of the table."""
    names, squares, areas, factors = ESTIMATES[kind], [], [], []
    for each in networks:
        others = [other for other in networks if other is not each]
        own = np.array([ACC_LOST_PER_COUNTED, ACC_LOST_PER_NAT]) if kind == "objective" else fitted(others, names)
        estimate = np.stack([each.estimates[name] for name in names], 1) @ own
        factors.append(own)
        squares.append(float(np.mean((estimate - each.lost) ** 2)))
        much = each.lost > 0.01
        if 0 < much.mean() < 1:
            areas.append(float(roc_auc_score(much, estimate)))
    mean = {name: round(float(value), 3) for name, value in zip(names, np.mean(factors, 0), strict=True)}
    return {"estimate": kind, "factors": mean, "error": 100 * float(np.mean(squares)) ** 0.5, "auc": float(np.mean(areas))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dossiers", type=Path, nargs="+", default=[Path(__file__).parent / "dossiers" / "search"])
    parser.add_argument("--after", type=int, default=-1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "expected_acc_loss.json")
    options = parser.parse_args()
    paths = sorted(path for folder in options.dossiers for path in folder.glob("*.search.xz"))
    networks = [
        each for each in map(measured, map(read_search_dossier, paths)) if len(each.lost) and each.index > options.after
    ]
    rows = [judged(networks, kind) for kind in ESTIMATES]
    print(f"{sum(len(each.lost) for each in networks)} masks of {len(networks)} networks\n")
    print("| estimate | factors | error, points | AUC |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['estimate']} | {row['factors']} | {row['error']:.2f} | {row['auc']:.3f} |")
    document = {
        "networks": [each.index for each in networks],
        "masks": sum(len(each.lost) for each in networks),
        "rows": rows,
        "hardware": hardware(),
        "versions": versions(),
    }
    write_atomically(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
