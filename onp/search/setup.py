"""Makes a search problem of a victim, clean images and a trigger bank: evaluator, environment, features, neuron graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onp.data.augment import augmented
from onp.data.images import ImageSet, Splits, joined
from onp.detect.anomaly import BN_SHIFT, MAXIMUM_INDEX, anomaly_index, clipped, spread_floor
from onp.detect.bank import Bank, TriggerBank
from onp.detect.bn_statistics import BnStatistics, bn_shift_gain
from onp.engine.evaluator import Evaluator, MaskScorer
from onp.engine.metrics import predictions
from onp.engine.scoring import Batch, TriggeredBatch
from onp.engine.settings import EvaluatorSettings
from onp.model.victim import Victim
from onp.resume import Store
from onp.search.agent import AgentConfig
from onp.search.course import Progress
from onp.search.env import PruneEnv
from onp.search.features import FeatureBatches, Saliency, node_features
from onp.search.first_order import FirstOrderConfig
from onp.search.neuron_graph import build_graph
from onp.search.objective import Objective
from onp.search.problem import SearchProblem
from onp.search.recorded import RecordedEvaluator

# Triggered images of a family. On 26 networks of the zoo repairs are the same with as many as with all, some 135 of a family
# (docs/ablations.md).
LEAST_OF_FAMILY = 60


@dataclass(frozen=True)
class SearchConfig:
    """How a mask is searched for."""

    method: FirstOrderConfig | AgentConfig = FirstOrderConfig()
    objective: Objective = Objective()
    #: Of each clean image of the target class, which suffers first and has few; those the network gets right are to stay right.
    target_augmentations: int = 8
    #: Triggered images that masks are scored on, of all families together; each family has `LEAST_OF_FAMILY` at least.
    triggered_images: int = 240
    #: Parts of the ACC budget that masks may cost: the next one is tried where no mask works within those before it.
    budget_parts: tuple[float, ...] = (1.0,)
    cache_bytes: int = 1 << 30  #: of the activation cache, at most; changes memory and speed only
    rounds: int = 1  #: searches; each after the first adds the triggers that survived the repair before it
    anomalous: float = 3.0  #: anomaly index from which a trigger that survived a repair counts as the backdoor's


@dataclass(frozen=True, eq=False)
class SearchRun:
    """One run of a search: its configuration, and what goes with it from stage to stage."""

    config: SearchConfig = SearchConfig()
    seed: int = 0  #: of the augmented images; search n has the seed `seed + n`
    number: int = 0  #: of the search, from 0
    store: Store | None = None  #: keeps the scores for a resumed run; None for a run that cannot be resumed
    progress: Progress | None = None  #: called with every step of the search
    #: From the victim pruned so far, the bank and a seed, the bank with the triggers that survived, or None where none did;
    #: None for a bank that is never extended, as that of a known trigger.
    extend_bank: Callable[[Victim, TriggerBank, int], TriggerBank | None] | None = None

    @property
    def search_seed(self) -> int:
        return self.seed + self.number


def build_env(victim: Victim, splits: Splits, bank: Bank, bn: BnStatistics | None, run: SearchRun) -> SearchProblem:
    """The search problem: features from the build split, an environment that scores masks on build and score images.

    Clean accuracy is counted on both splits: neither trained the network, and more images make a finer scale.

    Args:
        victim: the network to be pruned.
        splits: clean images; the holdout split is not used.
        bank: triggers for the target class.
        bn: BN statistics of the victim, measured on build and score images; None for a search without them.
        run: configuration, seed and store.

    Returns:
        Environment, features, saliency and neuron graph.
    """
    config, images = run.config, joined(splits.build, splits.score)
    shift, weight = (torch.zeros(victim.units), 0.0) if bn is None else bn_shift_of_units(victim, bn, images, bank.target)
    attacks = bank.batches(victim, bank.images(splits).build)
    batches = FeatureBatches.of(batch_of(victim, splits.build), attacks, bank.weights)
    features = node_features(victim, batches, shift)
    scored = fewer(bank.batches(victim, bank.scoring_images(splits)), config.triggered_images)
    agreeing = target_batches(victim, images, bank.target, run)
    settings = EvaluatorSettings(memory_budget=config.cache_bytes)
    evaluator: MaskScorer = Evaluator(victim, batch_of(victim, images), scored, agreeing, settings)
    if run.store is not None:
        evaluator = RecordedEvaluator(evaluator, run.store, f"scores-{run.search_seed}")
    env = PruneEnv(victim, evaluator, bank.weights, config.objective, weight * features.backdoor_score)
    relations = config.method.policy.relations if isinstance(config.method, AgentConfig) else ()
    return SearchProblem(env, features, Saliency(victim, batches), build_graph(victim, relations))


def bn_shift_of_units(victim: Victim, bn: BnStatistics, images: ImageSet, target: int) -> tuple[Tensor, float]:
    """The BN-statistics residual of each unit, float32 `[V]`, and the weight of the backdoor score, 0 to 1.

    The weight is the clipped anomaly index of the target class's logit gain, as a share of the largest: a residual that favours
    no class, or another one, has another cause and is not used.
    """
    gain = bn_shift_gain(victim, bn, images)
    index = 0.0 if gain is None else anomaly_index((-gain.double()).tolist(), target, spread_floor(BN_SHIFT))
    return bn.of_units(victim), clipped(index) / MAXIMUM_INDEX


def batch_of(victim: Victim, images: ImageSet) -> Batch:
    """Images as one clean batch on the victim's device."""
    return Batch(victim.normalisation(images.pixels().to(victim.device)), images.labels.to(victim.device))


def fewer(batches: Sequence[TriggeredBatch], most: int) -> list[TriggeredBatch]:
    """The first of the images that count, as many of each family.

    Args:
        batches: one a family.
        most: of all families together; each has `LEAST_OF_FAMILY` at least.
    """
    count = max(LEAST_OF_FAMILY, most // max(1, len(batches)))
    thinned = []
    for batch in batches:
        rows = (batch.labels != batch.target).nonzero()[:count, 0]
        thinned.append(replace(batch, images=batch.images[rows], labels=batch.labels[rows], target=batch.target[rows]))
    return thinned


def target_batches(victim: Victim, images: ImageSet, target: int, run: SearchRun) -> list[Batch]:
    """Augmented images of the target class that the unpruned network still gets right; no batch where it gets none right.

    What they lose foretells what the class loses on unseen images. Wrong ones are left out: a backdoor responds to many
    changes of an image, and agreement with those responses would reward keeping it.
    """
    chosen = images.labels == target
    if not chosen.any():
        return []
    inputs = victim.normalisation(
        augmented(images.pixels()[chosen], run.config.target_augmentations, run.seed).to(victim.device)
    )
    labels = images.labels[chosen].repeat(run.config.target_augmentations).to(victim.device)
    right = predictions(victim.model, inputs) == labels
    return [Batch(inputs[right], labels[right])] if right.any() else []
