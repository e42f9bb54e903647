"""What stages of a run found, made by hand: decisions and sentences without a network."""

from dataclasses import replace
from types import SimpleNamespace

import torch
from helpers.made_verdict import made_pass, made_verdict

from onp.data.images import ImageSet
from onp.defend.clean_reference import CleanReference
from onp.defend.evaluation import Evaluation
from onp.defend.report.audit import Audit, AuditSet, Figures, HeldOutTriggers
from onp.defend.verdict import Findings
from onp.detect.targets import Detection
from onp.engine.metrics import Share
from onp.engine.scoring import TriggeredBatch
from onp.model.mask import Mask

REFERENCE = CleanReference({"patch": 0.2, "warp": 0.5}, networks=30, version="test")
NAMES = ("eel", "dog", "cat", "ant")


def images(count=1):
    return ImageSet(torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64), NAMES)


def detection(*passes, pruned=0):
    """Of passes, each the probabilities of the classes; two detectors speak for every class."""
    return Detection(tuple(made_pass(*each, patch=4.0, latent=1.5) for each in passes), made_verdict(), pruned)


def repair(target, works=True, required=None):
    outcome = SimpleNamespace(acceptable=torch.tensor([works]), asr=torch.tensor([0.0 if works else 0.9]))
    search = SimpleNamespace(outcome=outcome, works=works, required_budget=required)
    return SimpleNamespace(target=target, search=search)


def mask(pruned=3):
    keep = torch.ones(72, dtype=torch.bool)
    keep[:pruned] = False
    return Mask(keep, (("first", 72),))


def repairs(*each, after=()):
    works = all(one.search.works for one in each)
    targets = tuple(one.target for one in each)
    return SimpleNamespace(repairs=each, passes_after=after, mask=mask(), works=works, targets=targets, healed=False)


def figures(surrogates, true=None):
    """Per cent of 100 images, by surrogate and for the true trigger."""
    shares = {name: Share(hits, 100) for name, hits in surrogates.items()}
    asr = None if true is None else Share(true, 100)
    return Figures(Share(90, 100), shares, asr, None, Share(2, 100), torch.eye(4))


def audit(before, after=None, targets=((0, None),)):
    """Of figures whose surrogates are the same families for each of the targets, (class, name where there are several)."""
    nothing = torch.zeros(0)
    held_out = []
    for target, name in targets:
        to = "" if name is None else f" to {name}"
        families = [key.removesuffix(to) for key in before.asr_surrogate if key.endswith(to)]
        batches = tuple(TriggeredBatch(family, nothing, nothing, nothing) for family in families)
        held_out.append(HeldOutTriggers(SimpleNamespace(target=target), batches, name))
    return Audit(AuditSet(images(), tuple(held_out), Evaluation()), before, before if after is None else after)


def findings(decision, before, after=None, **more):
    """Of class 0 unless `more` says otherwise."""
    found = Findings(detection((0.98, 0.01, 0.0, 0.0)), None, decision, mask(0), audit(before, after), reference=REFERENCE)
    return replace(found, **more)
