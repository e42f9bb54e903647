"""Searches for masks on networks of a zoo, by their true ASR and accuracy: `python bench/search_zoo.py ZOO [--workers N]`.

For every backdoored network of a zoo (`onp zoo build`, `onp zoo dossiers`) triggers are inverted from one split of clean
images, and each search finds a mask with so many evaluations; the true trigger and 1,000 test images then say what the mask
does. Scores of units are learned on the search dossiers in bench/dossiers, without those that share an attack family or the
architecture with the network they are judged on; a mask without an evaluation prunes the highest of them, as many as the best
masks of the dossiers do (their median share). The networks are in no dossier: numbers from `--first` on. Rows go into
bench/results/search_zoo.json as they are finished; `--table` prints the means, with intervals of the differences to the first
search over networks. With `--victims` the networks are the embedded ones and folders of `onp attack`, which are in no zoo;
these are scanned first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ready_victims import ReadyVictim, ready_victims
from torch import Tensor
from unit_scores import Example, Scorer, examples, fitted, units_of, without

from onp.defend.report.environment import hardware, versions
from onp.files import write_atomically
from onp.model.victim import Victim
from onp.numerics import strict_float32
from onp.pool import Workers, run_all
from onp.search import first_order
from onp.search.agent import AgentConfig, PolicyConfig, PpoConfig, build_policies, train
from onp.search.baselines import cma_es, greedy, random_search
from onp.search.env import PruneEnv
from onp.search.first_order import FirstOrderConfig
from onp.search.neuron_graph import build_graph
from onp.search.problem import SearchProblem
from onp.search.ranking import pruned_first
from onp.zoo.entry import Entry, read_zoo
from onp.zoo.knowledge import prepare, split_images
from onp.zoo.truth import TrueBackdoor, true_images

RESULTS = Path(__file__).parent / "results" / "search_zoo.json"
DOSSIERS = Path(__file__).parent / "dossiers" / "search"
LONG, SMALL = 1000, 700  # masks that first-order search gets too, on networks of at most so many units
EVALUATIONS = {
    "first order": (20, 100, 200, LONG),
    "agent": (20, 100, 200),
    "greedy by learned scores": (20, 100),
}
LEARNED = ("linear", "graph network")
USUAL = (100,)  # of all other searches
AGENTS = {
    "agent": AgentConfig(),
    "agent without learning": AgentConfig(ppo=PpoConfig(learning_rate=0.0)),
    "agent without edges": AgentConfig(policy=PolicyConfig(relations=())),
}
Search = Callable[[SearchProblem, int], object]


@cache
def known_examples() -> tuple[Example, ...]:
    return tuple(examples(DOSSIERS))


@cache
def scorers(families: frozenset[str], arch: str) -> tuple[dict[str, Scorer], float]:
    """Learned without these, and the share of the units that the best masks prune."""
    known = without(known_examples(), families, arch)
    share = float(torch.tensor([float(each.pruned.mean()) for each in known]).median())
    return {kind: fitted(known, kind) for kind in LEARNED}, share


def agent(config: AgentConfig, problem: SearchProblem, evaluations: int) -> None:
    config = replace(config, max_evaluations=evaluations)
    problem = replace(problem, graph=build_graph(problem.env.victim, config.policy.relations))
    train(problem, build_policies(problem, config), config)


def searches(score: Tensor) -> dict[str, Search]:
    """By name; `score` is the linear one."""
    along = score - score.min() + 1e-6
    return {
        "first order": lambda problem, count: first_order.search(problem, FirstOrderConfig(max_evaluations=count)),
        **{name: partial(agent, config) for name, config in AGENTS.items()},
        "greedy by Taylor saliency": lambda problem, count: greedy.search(problem.env, problem.features.taylor, count),
        "greedy by learned scores": lambda problem, count: greedy.search(problem.env, along, count),
        "CMA-ES": lambda problem, count: cma_es.search(problem.env, problem.features.taylor, count),
        "random": lambda problem, count: random_search.search(problem.env, None, count),
    }


@strict_float32()
def rows_of(entry: Entry | ReadyVictim, zoo: str) -> list[dict[str, Any]]:
    """All searches on one network."""
    torch.set_num_threads(1)
    card, victim = entry.card, entry.victim()
    given = split_images(victim, 0, entry.clean(0), _stored_costs(entry, zoo) if isinstance(entry, Entry) else None)
    works = [
        (trigger, target) for (trigger, target), each in zip(entry.triggers(), card["backdoors"], strict=True) if each["works"]
    ]
    trigger, target = next((pair for pair in works if pair[1] == given.named), works[0])
    made = prepare(victim, given, target)
    truth = true_images(victim, entry.test(), [TrueBackdoor(trigger.name, trigger, target)], 1000, 400).evaluator(victim)
    features, env = made.problem.features, made.problem.env
    all_kept = torch.ones(victim.units, dtype=torch.bool)
    families = frozenset(str(each["family"]) for each in card["backdoors"])
    learned, share = scorers(families, card["arch"].split(":")[0])
    units = units_of(victim, features)
    with torch.no_grad():
        scores = {kind: scorer(units) for kind, scorer in learned.items()}
    about = {
        "network": entry.index,
        "attack": trigger.name,
        "arch": card["arch"].split(",")[0],
        "data": card["training"]["data"],
    }
    rows = []

    def note(name: str, evaluations: int, keep: Tensor) -> None:
        found = truth.score(torch.stack((all_kept, keep)))
        row = about | {"search": name, "evaluations": evaluations, "pruned": int((~keep).sum())}
        row |= {"asr_before": float(found.asr[0, 0]), "asr": float(found.asr[1, 0])}
        row |= {"lost_acc": float(found.acc[0] - found.acc[1])}
        row |= {"lost_in_target": float(found.agreement[0].mean() - found.agreement[1].mean())}
        rows.append(row)

    first_by = {f"learned, {kind}": score for kind, score in scores.items()} | {"Taylor saliency": features.taylor}
    for name, order in first_by.items():
        note(name, 0, _first(order, share, victim))
    for name, search in searches(scores["linear"]).items():
        for evaluations in EVALUATIONS.get(name, USUAL):
            if evaluations == LONG and victim.units > SMALL:
                continue
            own = PruneEnv(
                victim, env.evaluator, env.weights.tolist(), env.objective, made.bn_shift[1] * features.backdoor_score
            )
            search(replace(made.problem, env=own), evaluations)
            note(name, evaluations, own.keep)
    return rows


def _stored_costs(entry: Entry, zoo: str) -> dict[str, tuple[float, ...]]:
    """What every detector measured of every class when the dossier was made."""
    stored = json.loads((Path(zoo) / "dossiers" / f"{entry.index:04d}-0.json").read_text())["detectors"]
    return {name: tuple(float("nan") if each is None else each for each in values) for name, values in stored.items()}


def _first(order: Tensor, share: float, victim: Victim) -> Tensor:
    """bool `[V]`: the highest units pruned."""
    return pruned_first(order.argsort(descending=True), torch.tensor([max(1, round(share * victim.units))]))[0]


def table(rows: list[dict[str, Any]]) -> str:
    """Means over networks, and the differences to the first-order search of as many evaluations (95 % of 2,000 bootstraps)."""
    generator = np.random.default_rng(0)
    by = {(row["search"], row["evaluations"], row["network"]): row for row in rows}
    lines = [
        "| search | masks | n | ASR mean, median | lost ACC | over 1 point | in the target class | "
        "ASR - first order | lost - first order |",
        "|---" * 9 + "|",
    ]

    def interval(differences: list[float]) -> str:
        values = np.array(differences)
        means = generator.choice(values, (2000, len(values))).mean(1)
        return f"{values.mean():+.1f} ({np.percentile(means, 2.5):+.1f} to {np.percentile(means, 97.5):+.1f})"

    for name, evaluations in sorted({key[:2] for key in by}, key=lambda key: (key[1], key[0])):
        own = [row for key, row in by.items() if key[:2] == (name, evaluations)]
        asr, lost = (100 * np.array([row[key] for row in own]) for key in ("asr", "lost_acc"))
        pairs = [(row, by[other]) for row in own if (other := ("first order", evaluations or 20, row["network"])) in by]
        differences = [interval([100 * (a[key] - b[key]) for a, b in pairs]) for key in ("asr", "lost_acc")]
        in_target = np.median([100 * row["lost_in_target"] for row in own])
        lines.append(
            f"| {name} | {evaluations} | {len(own)} | {asr.mean():.1f}, {np.median(asr):.1f} | {lost.mean():.2f} | "
            f"{100 * (lost > 1).mean():.0f} % | {in_target:.1f} | {differences[0]} | {differences[1]} |"
        )
    return "\n".join(lines)


def of_zoo(zoo: str, first: int) -> list[Entry]:
    """The networks with a backdoor that works; small ones first: what is there when the time is up covers the most."""
    entries = [entry for entry in read_zoo(zoo) if entry.index >= first and entry.usable]
    entries = [entry for entry in entries if any(each["works"] for each in entry.card["backdoors"])]
    return sorted(entries, key=lambda entry: (entry.folder / "model.safetensors").stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", nargs="?", default="")
    parser.add_argument("--first", type=int, default=5000)
    parser.add_argument("--victims", nargs="*", help="folders of onp attack, in place of a zoo; the embedded networks too")
    parser.add_argument("--data", help="images that the victims were not trained on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results that are there")
    options = parser.parse_args()
    if options.victims and not options.data:
        parser.error("--victims needs --data")
    document = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    if options.table:
        print(table(document["rows"]))
        return
    done = {row["network"] for row in document["rows"]}
    entries: list[Entry | ReadyVictim] = []
    if options.victims is None:
        entries += of_zoo(options.zoo, options.first)
    else:
        entries += ready_victims(options.victims, options.data)
    entries = [entry for entry in entries if entry.index not in done]
    for entry, rows in run_all(partial(rows_of, zoo=options.zoo), entries, Workers(processes=options.workers)):
        if isinstance(rows, Exception):
            print(f"network {entry.index}: {type(rows).__name__}: {rows}", flush=True)
            continue
        document["rows"] += rows
        document |= {"hardware": hardware(), "versions": versions(), "date": time.strftime("%Y-%m-%d")}
        write_atomically(options.out, json.dumps(document) + "\n")
        print(f"network {entry.index}: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
