"""Searches at an equal number of evaluations: `python bench/search_baselines.py --seeds 0 1 2`.

Same victims, same bank, same objective, but for the agent without BN statistics, which has no backdoor scores; the true trigger
only measures. Also, on at least 200 random masks per victim, the rank correlation between the surrogate ASR that the search
sees and the true ASR. Rows go into bench/results/search.json as they are finished, in place of the same row of an earlier run
with as many evaluations: parts of the table can be taken one after the other.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

from onp.attack.triggers import load_trigger
from onp.data.images import Splits, joined, load_images, split
from onp.data.normalisation import Normalisation
from onp.defend.demos import ARCH, NORM, demo
from onp.defend.presets import PRESETS
from onp.defend.report.environment import hardware, versions
from onp.detect.bank import Bank, TargetClass, invert_triggers
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import BnStatistics, bn_statistics
from onp.detect.config import DetectRun
from onp.detect.targets import detect_targets
from onp.engine.evaluator import Evaluator
from onp.engine.scoring import TriggeredBatch
from onp.files import write_atomically
from onp.model.victim import Victim, load_victim
from onp.search import first_order
from onp.search.agent import AgentConfig, build_policies, train
from onp.search.baselines import greedy, random_search
from onp.search.features import FeatureBatches, NodeFeatures, node_features
from onp.search.first_order import FirstOrderConfig
from onp.search.setup import SearchRun, batch_of, build_env

PRESET = PRESETS["default"].with_max_acc_drop(0.01)
AGENTS = ("agent", "agent without edges", "agent without learning", "agent without BN statistics")
SEARCHES = ("first order", *AGENTS, "greedy backdoor score", "greedy Taylor", "random")


@dataclass(frozen=True)
class Setting:
    """What every search is given."""

    victim: Victim
    splits: Splits
    bn: BnStatistics
    bank: Bank
    seed: int


def detected(victim: Victim, splits: Splits, seed: int) -> Setting:
    """Detection and trigger inversion as in `onp.defend`."""
    bn = bn_statistics(victim, joined(splits.build, splits.score))
    detection = detect_targets(victim, splits, bn, DetectRun(PRESET.detect, seed))
    target = TargetClass(detection.predicted_target, detection.scores, bn_match(victim, bn))
    bank = invert_triggers(victim, target, splits, DetectRun(PRESET.detect, seed))
    return Setting(victim, splits, bn, bank, seed)


def run(name: str, setting: Setting, evaluations: int) -> tuple[Tensor, float]:
    """The mask, bool [U], that a search finds with so many evaluations, and its Phi."""
    bn, seed = None if name == "agent without BN statistics" else setting.bn, setting.seed
    agent = AgentConfig(seed=seed, max_evaluations=evaluations)
    if name == "agent without edges":
        agent = replace(agent, policy=replace(agent.policy, relations=()))
    if name == "agent without learning":
        agent = replace(agent, ppo=replace(agent.ppo, learning_rate=0.0))
    config = replace(PRESET.search, method=agent)
    problem = build_env(setting.victim, setting.splits, setting.bank, bn, SearchRun(config, seed))
    env, features = problem.env, problem.features
    if name == "first order":
        first_order.search(problem, FirstOrderConfig(seed, evaluations))
    elif name == "greedy backdoor score":
        greedy.search(env, features.backdoor_score, evaluations, seed)
    elif name == "greedy Taylor":
        greedy.search(env, features.taylor, evaluations, seed)
    elif name == "random":
        random_search.search(env, None, evaluations, seed)
    else:
        train(problem, build_policies(problem, agent), agent)
    # Every search leaves its environment in the best mask it found; Phi without BN statistics is another one.
    return env.keep, float(env.outcome.phi)


def random_masks(victim: Victim, features: NodeFeatures, count: int, seed: int) -> Tensor:
    """bool [count, U]: half uniformly random, half biased to high first-order scores; 1 to 60 units pruned."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.ones((count, victim.units), dtype=torch.bool)
    attribution = features.attack_attribution
    likely = (attribution.clamp_min(0) / attribution.max() + 0.02).clamp_max(1)
    for index in range(count):
        size = int(torch.randint(1, 61, (1,), generator=generator))
        chance = likely if index % 2 else torch.ones(victim.units)
        masks[index, torch.multinomial(chance, size, generator=generator)] = False
    return masks


def written(path: Path, evaluations: int, kind: str, row: dict[str, object], key: tuple[str, ...]) -> None:
    """Put a row into the results, in place of the one with the same key; results of other budgets are dropped."""
    document = json.loads(path.read_text()) if path.exists() else {}
    if document.get("evaluations") != evaluations:
        document = {"evaluations": evaluations, "rows": [], "correlation": []}
    document[kind] = [old for old in document[kind] if any(old[name] != row[name] for name in key)] + [row]
    document |= {"hardware": hardware(), "versions": versions()}
    write_atomically(path, json.dumps(document, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--demos", nargs="+", default=["badnets", "blended", "wanet"])
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--masks", type=int, default=200, help="of the rank correlation, at the first seed; 0 for none")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--searches", nargs="+", default=SEARCHES, choices=SEARCHES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search.json")
    options = parser.parse_args()
    for name in options.demos:
        files = demo(name)
        assert files.trigger is not None
        victim = load_victim(files.model, ARCH, Normalisation.parse(NORM), (1, 28, 28), options.device)
        evaluation, trigger = load_images(files.evaluation), load_trigger(files.trigger)
        others = evaluation.subset(evaluation.labels != 0)
        triggered = victim.normalisation(trigger(others.pixels()).to(victim.device))
        true_batch = TriggeredBatch("true", triggered, others.labels, torch.zeros_like(others.labels))
        ground_truth = Evaluator(victim, batch_of(victim, evaluation), [true_batch])
        unpruned = ground_truth.score(torch.ones((1, victim.units), dtype=torch.bool))
        for seed in options.seeds:
            splits = split(load_images(files.clean), seed)
            setting = detected(victim, splits, seed)
            for search in options.searches:
                start = time.monotonic()
                keep, phi = run(search, setting, options.evaluations)
                scores = ground_truth.score(keep[None])
                row = {"demo": name, "seed": seed, "search": search, "asr": float(scores.asr[0, 0])}
                row |= {"phi": phi, "acc_drop": float(unpruned.acc[0] - scores.acc[0]), "pruned": int((~keep).sum())}
                row |= {"seconds": round(time.monotonic() - start, 1)}
                print(json.dumps(row), flush=True)
                written(options.out, options.evaluations, "rows", row, ("demo", "seed", "search"))
            if options.masks and seed == options.seeds[0]:
                bank = setting.bank
                surrogates = Evaluator(victim, batch_of(victim, splits.score), bank.batches(victim, splits.score))
                batches = FeatureBatches.of(batch_of(victim, splits.build), bank.batches(victim, splits.build), bank.weights)
                features = node_features(victim, batches)
                masks = random_masks(victim, features, options.masks, seed)
                surrogate, real = surrogates.score(masks), ground_truth.score(masks)
                weighted = (surrogate.asr_soft @ torch.tensor(bank.weights, dtype=torch.float64)).numpy()
                usable = (unpruned.acc[0] - real.acc < 0.05).numpy()
                result = {"demo": name, "masks": len(masks), "spearman": float(spearmanr(weighted, real.asr[:, 0]).statistic)}
                result |= {"usable": int(usable.sum())}
                result |= {"spearman_usable": float(spearmanr(weighted[usable], real.asr[:, 0].numpy()[usable]).statistic)}
                print(json.dumps(result), flush=True)
                written(options.out, options.evaluations, "correlation", result, ("demo",))


if __name__ == "__main__":
    main()
