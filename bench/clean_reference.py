"""What networks without a backdoor show for the audit's fresh triggers: `python bench/clean_reference.py --work DIR`.

Cells of one data set and one architecture. In each, networks are trained with a backdoor (several attacks, random target
classes) and without one. The audit's triggers are fitted on a backdoored network for its target class, as `onp.defend` does
after a repair, and put on the same holdout images; how many of these do they lead to the target class on

- `clean`: every clean network of the cell, of other weights;
- `twin`: the clean one among them that began with the same weights and saw the same images in the same order;
- `unlearned`: the backdoored network itself, trained a little on images with the true trigger under their own labels;
- `repaired`: the network as onp prunes it (preset fast); `half`: with half of those units back;
- `same`: as onp prunes it with the audit's own triggers in place of those of the search;
- `given`: the backdoored network.

A family's ASR is that of all its triggers; "patch weak" is that of those as inverted alone, without the stronger copies that
the bank adds. Every row has the ASR of the true trigger as well.

Needs `--data FOLDER` with cifar10-jpeg.tar.xz and gtsrb32-jpeg.tar.xz, and `--fashion FOLDER` with Fashion-MNIST's IDX files.
Networks, decoded images and `rows.jsonl` are kept in `--work`; a stopped run goes on where it was.
`bench/clean_reference_table.py` makes the reference and its tables of the rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from clean_reference_networks import CELLS, CLEAN, EVALUATION, FIRST_SEED, UNLEARNING, Lab, Places
from torch import Tensor

from onp.attack.triggers import load_trigger
from onp.compare.victims import read_card
from onp.data.images import split
from onp.defend.case import Case
from onp.defend.config import DefendConfig
from onp.defend.evaluation import Evaluation
from onp.defend.repair_loop import search_for
from onp.defend.report.audit import AuditSet
from onp.defend.run import Run
from onp.detect.anomaly import DetectionScores
from onp.detect.bank import Surrogate, TargetClass, TriggerBank, invert_triggers, triggered_batch
from onp.detect.blend import BLEND
from onp.detect.bn_match import bn_match
from onp.detect.bn_statistics import bn_statistics
from onp.detect.known_trigger import KnownTrigger
from onp.detect.pgd import PGD
from onp.detect.scan import scan
from onp.detect.small_patch import SMALL_PATCH
from onp.engine.metrics import accuracy, measure_attack, predictions
from onp.engine.scoring import TriggeredBatch
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.victim import Victim, load_victim


@dataclass(frozen=True, eq=False)
class Fitted:
    """One backdoored network and the audit's triggers for it."""

    lab: Lab
    attack: str
    seed: int
    case: Case
    scores: DetectionScores
    known: KnownTrigger
    bank: TriggerBank
    batches: tuple[TriggeredBatch, ...]

    @property
    def key(self) -> dict[str, object]:
        return {"cell": self.lab.cell.name, "attack": self.attack, "seed": self.seed}

    def measure(self, kind: str, network: str, victim: Victim, **more: object) -> None:
        """A row: the triggers' ASR, ACC, and the true trigger's ASR on the evaluation images."""
        others = self.lab.test(CLEAN, EVALUATION)
        found = {batch.family: measure_attack(victim.model, [batch])[0] for batch in self.batches}
        true = measure_attack(victim.model, self.known.batches(victim, others))[0]
        pixels = victim.normalisation(others.pixels())
        acc = accuracy(others.labels, predictions(victim.model, pixels)).value
        asr = {family: share.value for family, share in found.items() if share is not None}
        row = {"acc": acc, "true_asr": None if true is None else true.value, "asr": asr}
        self.lab.places.rows.add(**self.key, kind=kind, network=network, **row, **more)


@cache
def fit(lab: Lab, attack: str, seed: int) -> Fitted:
    """Fit the audit's triggers for the target class of a backdoored network, with detection's first pass of preset fast."""
    victim, card = lab.network(attack, seed), read_card(lab.folder(attack, seed))
    case = Case(victim, split(lab.test(0, CLEAN), seed))
    run = Run.of(DefendConfig(preset="fast", quiet=True, seed=seed, device="cpu"))
    bn = bn_statistics(victim, case.searched)
    scores = scan(victim, case.clean, bn, run.detecting())
    target = TargetClass(card["target"], scores, bn_match(victim, bn))
    bank = invert_triggers(victim, target, case.clean, run.fork("audit").detecting())
    known = KnownTrigger(load_trigger(lab.folder(attack, seed) / "trigger.safetensors"), card["target"])
    held_out = case.clean.holdout
    batches = (*AuditSet.of(victim, case.clean, [bank], Evaluation()).batches, *known.batches(victim, held_out))
    batches += tuple(
        triggered_batch(victim, held_out, f"{surrogate.family} weak", bank.target, weak)
        for surrogate in bank.surrogates
        if (weak := weak_only(surrogate)) is not None
    )
    return Fitted(lab, attack, seed, case, scores, known, bank, batches)


def details(fitted: Fitted) -> dict[str, dict[str, float | None]]:
    """What is known of each family's triggers before they are put on another network."""
    return {
        each.family: {
            "anomaly_index": each.anomaly_index, "success": each.success, "cost": each.cost, "bn_match": each.bn_match,
        }
        for each in fitted.bank.surrogates
    }  # fmt: skip


def weak_only(surrogate: Surrogate) -> Callable[[Tensor], Tensor] | None:
    """The triggers of a surrogate as inverted, which come before their stronger copies; None where none of them works."""
    if surrogate.family in (PGD, SMALL_PATCH, BLEND):
        return None
    triggers, rows = surrogate.apply.args
    weak = [row for row in rows if row < len(triggers.targets) // 2]
    return partial(surrogate.apply.func, triggers, weak) if weak else None


def related(fitted: Fitted) -> None:
    """Measure the networks that share weights with the backdoored one."""
    case, scores, bank = fitted.case, fitted.scores, fitted.bank
    if fitted.lab.places.rows.has(**fitted.key, kind="same"):
        return
    fitted.measure("given", "given", case.victim, target=bank.target, weights=len(bank.weights))
    fitted.measure("unlearned", "unlearned", unlearned(fitted))
    run = Run.of(DefendConfig(preset="fast", quiet=True, seed=fitted.seed, device="cpu"))
    bn = bn_statistics(case.victim, case.searched)
    target = TargetClass(bank.target, scores, bn_match(case.victim, bn))
    first = search_for(case, invert_triggers(case.victim, target, case.clean, run.detecting()), scores, bn, run)
    for kind, mask in (("repaired", first.mask), ("half", half(first.mask, case.victim, fitted.seed))):
        fitted.measure(kind, kind, prune(case.victim, mask), works=first.works, pruned=int((~mask.keep).sum()))
    same = search_for(case, bank, None, bn, run)
    fitted.measure("same", "same", prune(case.victim, same.mask), works=same.works, pruned=int((~same.mask.keep).sum()))


def half(mask: Mask, victim: Victim, seed: int) -> Mask:
    """The mask with every second pruned unit back, drawn at random."""
    pruned = (~mask.keep).nonzero().flatten()
    back = pruned[torch.randperm(len(pruned), generator=torch.Generator().manual_seed(seed))[::2]]
    keep = mask.keep.clone()
    keep[back] = True
    return Mask.of(victim, keep)


def unlearned(fitted: Fitted) -> Victim:
    """The network trained on a few images more, half of them with the true trigger, all under their own labels."""
    victim = load_victim(
        fitted.lab.folder(fitted.attack, fitted.seed) / "model.safetensors",
        fitted.lab.cell.arch, fitted.case.victim.normalisation, fitted.case.victim.input_shape,
    )  # fmt: skip
    images = fitted.lab.train(fitted.seed).subset(range(UNLEARNING["images"]))
    network = victim.model.requires_grad_(True).train()
    optimiser = torch.optim.SGD(network.parameters(), UNLEARNING["lr"], momentum=0.9, weight_decay=5e-4)
    for index in torch.arange(len(images)).split(UNLEARNING["batch"]):
        pixels, labels = images.subset(index).pixels(), images.labels[index]
        pixels = torch.cat((fitted.known.trigger(pixels[::2]), pixels[1::2]))
        loss = F.cross_entropy(network(victim.normalisation(pixels)), torch.cat((labels[::2], labels[1::2])))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval().requires_grad_(False)
    return victim


def measure_cell(lab: Lab, number: int) -> None:
    """The `number`-th clean and backdoored network of a cell, and all pairs with those before."""
    cell, rows = lab.cell, lab.places.rows
    if number < cell.clean:
        lab.network("none", FIRST_SEED + number)
    for each, attack in enumerate(cell.attacks[: number + 1]):
        seed = FIRST_SEED + each
        key = {"cell": cell.name, "attack": attack, "seed": seed}
        clean = [FIRST_SEED + k for k in range(min(number + 1, cell.clean))]
        missing = [k for k in clean if not rows.has(**key, network=f"clean-{k}")]
        if not missing and rows.has(**key, kind="same") and rows.has(**key, kind="bank"):
            continue
        fitted = fit(lab, attack, seed)
        if not rows.has(**key, kind="bank"):
            rows.add(**key, kind="bank", families=details(fitted), weights=fitted.bank.weights)
        for k in missing:
            fitted.measure("twin" if k == seed else "clean", f"clean-{k}", lab.network("none", k))
        related(fitted)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "fashion", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after these")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    places, end = Places(options.data, options.fashion, options.work), time.monotonic() + 60 * options.minutes
    places.work.mkdir(parents=True, exist_ok=True)
    for number in range(max(cell.clean for cell in CELLS)):
        for cell in CELLS:
            if time.monotonic() < end:
                measure_cell(Lab(places, cell), number)


if __name__ == "__main__":
    main()
