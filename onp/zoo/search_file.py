"""The file of a search dossier: `NNNN.search.xz`, arrays of few bits an entry; docs/zoo.md describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onp.errors import InputError
from onp.model.layers import Layer
from onp.search.features import Attributions, NodeFeatures, assembled_features
from onp.search.neuron_graph import NeuronGraph
from onp.search.unit_statistics import POSITION
from onp.zoo.knowledge import SCORES, BankRow, Knowledge
from onp.zoo.packed import (
    Arrays,
    bits,
    from_bits,
    from_levels,
    from_log_levels,
    levels,
    log_levels,
    read_packed,
    write_packed,
)
from onp.zoo.packed_graph import pack_graphs, unpack_graphs
from onp.zoo.true_effects import BackdoorTruth, MaskTruth, Truth
from onp.zoo.truth import UnitEffects

FORMAT, VERSION = "onp-search-dossier", 2
DIGITS = 3  # of a log cost
STEP = 0.05  #: of node features, which are of the order of 1 and at most 6.35
STATIC = ("lipschitz", "l1")  #: features of the weights alone
OF_BANK = ("change_mean", "change_peak")  #: features that depend on the class
DERIVED = (
    *("taylor", "attack_attribution", "acc_attribution", "backdoor_score"),
    *("attack_attribution_z", "acc_attribution_z", "bn_shift", *POSITION),
)
"""Features that `assembled_features` makes of attributions, residual and layers."""
ATTRIBUTION, EFFECT, CHANGE, RESIDUAL = (1e-5, 1.0), (1e-6, 10.0), (1e-4, 1e3), (1e-3, 100.0)
"""Smallest and largest sizes on the logarithmic scales."""
SHARE = 4095  # levels of a probability


@dataclass(frozen=True, eq=False)
class SearchDossier:
    """All that a search can be learned from on one network."""

    card: dict[str, Any]  #: of the network's card: index, arch, clean, after, acc, backdoors
    layers: tuple[Layer, ...]  #: as read, only name, kind, units, offset, group and stage are filled in
    classes: int
    graphs: dict[str, NeuronGraph]  #: per relation of `onp.search.neuron_graph`
    knowledge: tuple[Knowledge, ...]  #: of each split, for the true targets and the class that detection names
    truth: Truth
    seconds: dict[str, float]  #: CPU time that the making took, by stage


def search_path(folder: str | Path, index: int) -> Path:
    """Where the dossier of a network lies."""
    return Path(folder) / f"{index:04d}.search.xz"


def write_search_dossier(path: Path, dossier: SearchDossier) -> int:
    """Write a dossier; returns the size of the file in bytes."""
    truth, layers = dossier.truth, dossier.layers
    arrays: Arrays = pack_graphs(dossier.graphs)
    arrays |= _static(dossier.knowledge[0].features)
    for place, one in enumerate(dossier.knowledge):
        arrays |= _knowledge_arrays(place, one, dossier.knowledge)
    arrays |= _truth_arrays(truth)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "card": dossier.card,
        "classes": dossier.classes,
        "layers": [[layer.name, layer.kind, layer.units, layer.group, layer.stage] for layer in layers],
        "knowledge": [
            {
                "split": one.split,
                "target": one.target,
                "named": one.named,
                "log_costs": {name: [_finite(cost) for cost in costs] for name, costs in one.log_costs.items()},
                "bn_weight": one.bn_weight,
                "bank": [asdict(row) for row in one.bank],
            }
            for one in dossier.knowledge
        ],
        "features": list(dossier.knowledge[0].features.names),
        "effect_images": truth.effects.images,
        "backdoors": [
            {"name": each.name, "target": each.target, "best": each.best, "evaluations": each.evaluations}
            for each in truth.backdoors
        ],
        "masks": len(truth.masks.keep),
        "images": truth.masks.images,
        "target_images": truth.masks.target_images,
        "seconds": dossier.seconds,
    }
    return write_packed(path, document, arrays)


def read_search_dossier(path: Path) -> SearchDossier:
    """Read a dossier, which may come from anybody.

    Raises:
        InputError: it is damaged or of another version.
    """
    document, arrays = read_packed(path)
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        raise InputError(f"{path} is no {FORMAT} of version {VERSION}; make it again with onp zoo dossiers --search.")
    try:
        layers = _layers(document["layers"])
        knowledge = tuple(_knowledge(place, layers, document, arrays) for place in range(len(document["knowledge"])))
        return SearchDossier(
            card=document["card"],
            layers=layers,
            classes=int(document["classes"]),
            graphs=unpack_graphs(arrays, layers),
            knowledge=knowledge,
            truth=_truth(document, arrays),
            seconds=document["seconds"],
        )
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}); make it again.") from error


def _finite(value: float) -> float | None:
    """JSON has no nan."""
    return round(value, DIGITS) if math.isfinite(value) else None


def _layers(rows: Sequence[Sequence[Any]]) -> tuple[Layer, ...]:
    layers, offset = [], 0
    for name, kind, units, group, stage in rows:
        layers.append(Layer(name, kind, units, offset, "", None, (), (), "", (), group, stage))
        offset += units
    return tuple(layers)


def _static(features: NodeFeatures) -> Arrays:
    return {f"features.{name}": levels(features.column(name), STEP) for name in STATIC}


def _of_images(names: Sequence[str]) -> list[str]:
    """The features of the clean images alone."""
    return [name for name in names if name not in (*STATIC, *OF_BANK, *DERIVED)]


def _knowledge_arrays(place: int, one: Knowledge, every: Sequence[Knowledge]) -> Arrays:
    """Of the first class of a split, all but the first split as differences from it, modulo 256: neighbours of 0 pack well."""
    features = one.features
    arrays: Arrays = {
        f"{place}.attack": log_levels(features.attack_attribution, *ATTRIBUTION),
        f"{place}.of_bank": np.stack([levels(features.column(name), STEP) for name in OF_BANK]),
        f"{place}.masks": one.masks.numpy().astype(np.uint16),
    }
    arrays |= {f"{place}.scores.{name}": one.scores[name].numpy().astype(np.float16) for name in SCORES}
    if place == _first_of(one.split, [each.split for each in every]):
        arrays |= {
            f"{place}.{name}": found - base
            for (name, found), base in zip(
                _image_arrays(one).items(), _image_arrays(every[0]).values() if place else (np.int8(0),) * 3, strict=True
            )
        }
    return arrays


def _image_arrays(one: Knowledge) -> Arrays:
    return {
        "acc": log_levels(one.features.acc_attribution, *ATTRIBUTION),
        "bn_shift": log_levels(one.bn_shift, *RESIDUAL),
        "of_images": np.stack([levels(one.features.column(name), STEP) for name in _of_images(one.features.names)]),
    }


def _first_of(split: int, splits: Sequence[int]) -> int:
    return list(splits).index(split)


def _knowledge(place: int, layers: tuple[Layer, ...], document: Mapping[str, Any], arrays: Arrays) -> Knowledge:
    row, rows = document["knowledge"][place], document["knowledge"]
    first = _first_of(row["split"], [each["split"] for each in rows])

    def of_images(name: str) -> Any:
        return arrays[f"{first}.{name}"] + (arrays[f"0.{name}"] if first else np.int8(0))

    names = document["features"]
    measured = {name: from_levels(arrays[f"features.{name}"], STEP) for name in STATIC}
    measured |= {name: from_levels(values, STEP) for name, values in zip(OF_BANK, arrays[f"{place}.of_bank"], strict=True)}
    measured |= {name: from_levels(v, STEP) for name, v in zip(_of_images(names), of_images("of_images"), strict=True)}
    attributions = Attributions(
        from_log_levels(arrays[f"{place}.attack"], *ATTRIBUTION),
        from_log_levels(of_images("acc"), *ATTRIBUTION),
        from_log_levels(of_images("bn_shift"), *RESIDUAL),
    )
    in_order = {name: measured[name] for name in names if name in measured}
    features = assembled_features(layers, attributions, in_order)
    if list(features.names) != names:
        raise ValueError("other features")
    return Knowledge(
        split=int(row["split"]),
        target=int(row["target"]),
        named=bool(row["named"]),
        bank=tuple(BankRow(**each) for each in row["bank"]),
        features=features,
        bn_shift=attributions.bn_shift,
        bn_weight=float(row["bn_weight"]),
        log_costs={
            str(name): tuple(math.nan if cost is None else float(cost) for cost in costs)
            for name, costs in row["log_costs"].items()
        },
        masks=torch.from_numpy(arrays[f"{place}.masks"].astype(np.int64)),
        scores={name: torch.from_numpy(arrays[f"{place}.scores.{name}"].astype(np.float32)) for name in SCORES},
    )


def _truth_arrays(truth: Truth) -> Arrays:
    effects, masks = truth.effects, truth.masks
    return {
        "truth.tac": log_levels(torch.stack([each.tac for each in truth.backdoors]), *CHANGE)
        if truth.backdoors
        else np.zeros((0, len(truth.act_std)), dtype=np.int8),
        "truth.act_std": log_levels(truth.act_std, *CHANGE),
        "truth.effect.measured": bits(effects.measured[None]),
        "truth.effect.acc": log_levels(effects.acc, *EFFECT),
        "truth.effect.divergence": log_levels(effects.divergence, *EFFECT),
        "truth.effect.asr": log_levels(effects.asr, *EFFECT),
        "truth.effect.hits": effects.hits.clamp(-32767, 32767).numpy().astype(np.int16),
        "masks.keep": bits(masks.keep),
        "masks.acc_count": masks.acc_count.numpy().astype(np.uint16),
        "masks.acc_soft": _shares(masks.acc_soft),
        "masks.divergence": masks.divergence.numpy().astype(np.float16),
        "masks.asr_count": masks.asr_count.numpy().astype(np.uint16),
        "masks.asr_soft": _shares(masks.asr_soft),
        "masks.target_count": masks.target_count.numpy().astype(np.uint16),
    }


def _truth(document: Mapping[str, Any], arrays: Arrays) -> Truth:
    tac = from_log_levels(arrays["truth.tac"], *CHANGE)
    effects = UnitEffects(
        measured=from_bits(arrays["truth.effect.measured"], 1)[0],
        acc=from_log_levels(arrays["truth.effect.acc"], *EFFECT),
        divergence=from_log_levels(arrays["truth.effect.divergence"], *EFFECT),
        asr=from_log_levels(arrays["truth.effect.asr"], *EFFECT),
        hits=torch.from_numpy(arrays["truth.effect.hits"].astype(np.int32)),
        images=tuple(document["effect_images"]),
    )
    masks = MaskTruth(
        keep=from_bits(arrays["masks.keep"], int(document["masks"])),
        images=tuple(document["images"]),
        target_images=tuple(document["target_images"]),
        acc_count=_integers(arrays, "masks.acc_count"),
        acc_soft=_integers(arrays, "masks.acc_soft").float() / SHARE,
        divergence=torch.from_numpy(arrays["masks.divergence"].astype(np.float32)),
        asr_count=_integers(arrays, "masks.asr_count"),
        asr_soft=_integers(arrays, "masks.asr_soft").float() / SHARE,
        target_count=_integers(arrays, "masks.target_count"),
    )
    backdoors = (BackdoorTruth(tac=each, **row) for each, row in zip(tac, document["backdoors"], strict=True))
    return Truth(effects, from_log_levels(arrays["truth.act_std"], *CHANGE), tuple(backdoors), masks)


def _shares(values: Tensor) -> Any:
    return (values * SHARE).round().clamp(0, SHARE).numpy().astype(np.uint16)


def _integers(arrays: Arrays, name: str) -> Tensor:
    return torch.from_numpy(arrays[name].astype(np.int64))
