"""Classes that stand out alike: a closer look, and a repair for each that still does."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from onp.data.images import ImageSet
from onp.defend import rounds, run
from onp.defend.config import DefendConfig
from onp.defend.monitor import Monitor
from onp.defend.rounds import Look, close_call, look, repair_classes, targets, told
from onp.detect import inversion as fitting
from onp.detect.anomaly import Scan
from onp.engine.evaluator import Evaluator
from onp.engine.metrics import attack_success, predictions
from onp.model.mask import Mask
from onp.resume import State, kept_in
from onp.search.mask_search import Found

QUIET = Monitor(quiet=True)


def seen(*suspicion):
    """A Scan in which class k stands out by `suspicion[k]`; the ends of the list are kept quiet by the others' spread."""
    return SimpleNamespace(suspicion=suspicion, unfitted=None)


def loud(*classes, quieter=()):
    """A true Scan of four classes in which several witnesses give `classes` away, and `quieter` ones hardly less."""
    effort = tuple(-0.4 if k in quieter else -0.42 if k in classes else 0.02 * k for k in range(4))
    return Scan({"latent": effort, "drift": effort, "memory": effort, "patch": effort, "blend": (0.0,) * 4,
                 "smooth": (0.0,) * 4, "warp": (0.0,) * 4, "adversarial": (0.0,) * 4})  # fmt: skip


@pytest.mark.parametrize(
    ("suspicion", "close"),
    [
        ((0.1, 6.2, 6.1, 4.1), True),
        ((0.2, 8.4, 0.3, 5.5), True),
        ((9.0, 5.2, 1.0, 0.0), False),  # far behind, as a class that any square leads to
        ((3.9, 3.9, 0.0, 0.0), False),  # none counts
        ((6.0, 3.9, 0.0, 0.0), False),  # one counts
        ((4.9, 0.4, 0.0, 0.0), True),  # one barely counts
    ],
)
def test_a_close_call_is_two_classes_alike_or_one_that_barely_counts(suspicion, close):
    assert close_call(seen(*suspicion), 4.0) is close


def test_one_that_barely_counts_is_settled_by_what_more_steps_would_find_again():
    barely, quiet = (-0.55, *(0.1 * k for k in range(9))), (0.0,) * 10
    for witness, close in (("memory", False), ("adversarial", True)):
        found = Scan({"latent": barely, "memory": quiet, "adversarial": quiet} | {witness: barely})
        assert 4.0 < found.suspicion[0] < 5.0
        assert close_call(found, 4.0) is close


def test_what_is_repaired_is_the_loudest_and_what_counts_at_both_looks():
    assert targets(Look(seen(9.0, 5.2, 0.0), None), 4.0) == [0]
    assert targets(Look(seen(6.2, 6.1, 0.0), seen(1.0, 8.0, 0.0)), 4.0) == [1], "the first choice was wrong"
    assert targets(Look(seen(0.0, 6.1, 6.0), seen(9.0, 4.6, 5.0)), 4.0) == [0, 2, 1], "the loudest need not have counted"
    assert targets(Look(seen(6.1, 6.0, 0.0), seen(7.0, 5.0, 6.5)), 4.0) == [0, 1], "the others must"
    assert targets(Look(seen(4.1, 4.0, 0.0), seen(3.0, 1.0, 0.0)), 4.0) == []


@pytest.fixture
def scans(monkeypatch):
    """The scans that a run is to be given, first to last, and what they were asked with."""
    queue, asked = [], []

    def scan(victim, build, score, seed, config, tick):
        asked.append((victim, seed, config.scan.steps))
        return queue.pop(0)

    monkeypatch.setattr(rounds, "scan", scan)
    return SimpleNamespace(queue=queue, asked=asked)


def test_only_a_close_call_is_looked_at_again_and_longer(scans, small, backdoored):
    case, config = small.case(backdoored.victim), DefendConfig(seed=7)
    scans.queue += [seen(9.0, 5.2, 0.0, 0.1), seen(6.2, 6.1, 0.0, 0.1), seen(1.0, 8.0, 0.0, 0.1)]
    clear = look(case.victim, case.splits, config, small.PRESET, QUIET)
    assert clear.closer is None and len(scans.asked) == 1 and clear.scan.suspicion[0] == 9.0
    close = look(case.victim, case.splits, config, small.PRESET, QUIET)
    assert close.scan.suspicion == (1.0, 8.0, 0.0, 0.1) and close.first.suspicion[0] == 6.2
    (_, first, steps), (_, second, more) = scans.asked[1:]
    assert first == 7 != second and more > 2 * steps


@pytest.fixture
def searches(monkeypatch, backdoored):
    """Instead of a search: the units that each is to prune, whether that helps, the price; what each was asked with."""
    queue, asked = [], []

    def search_mask(victim, splits, bank, scan, seed, preset, monitor):
        units, helps, *price = queue.pop(0)
        keep = torch.ones(victim.units, dtype=torch.bool)
        keep[units] = False
        asked.append((bank, victim.model[0].weight.detach().clone(), seed, preset.search.objective.max_acc_drop))
        outcome = SimpleNamespace(acceptable=torch.tensor([True]), asr=torch.tensor([0.0 if helps else 0.9]))
        return Found(Mask.of(victim, keep), bank, (SimpleNamespace(outcome=outcome),), 1.0, 10, 0.1, *price or [None])

    monkeypatch.setattr(rounds, "search_mask", search_mask)
    monkeypatch.setattr(rounds, "fit_bank", lambda stage, victim, scan, target, *rest: target)
    return SimpleNamespace(queue=queue, asked=asked)


def repaired(small, backdoored, look, preset=None):
    case = small.case(backdoored.victim)
    return repair_classes(case.victim, case.splits, look, DefendConfig(), preset or small.PRESET, QUIET)


def test_a_clear_case_is_one_round(scans, searches, small, backdoored):
    searches.queue += [([3], True)]
    found = repaired(small, backdoored, Look(seen(9.0, 5.2, 0.0, 0.0), None))
    assert [each.target for each in found.rounds] == [0] and found.works and not found.asked and not scans.asked
    assert searches.asked[0][2:] == (0, small.PRESET.search.objective.max_acc_drop)


def test_a_class_that_still_stands_out_is_repaired_on_the_repaired_network(scans, searches, small, backdoored):
    searches.queue += [([3], True), ([5], True)]
    scans.queue += [seen(6.0, 0.3, 4.2, 5.0)]
    found = repaired(small, backdoored, Look(seen(6.0, 4.9, 5.5, 0.0), seen(6.0, 5.0, 5.5, 5.4)))
    assert [each.target for each in found.rounds] == [0, 2], "class 1 no longer counts, class 3 did not at first"
    assert (~found.mask.keep).nonzero()[:, 0].tolist() == [3, 5] and found.works
    (_, before, seed, budget), (_, after, other, less) = searches.asked
    assert before[3].any() and not after[3].any() and seed != other and less <= budget
    assert scans.asked[0][0].units == backdoored.victim.units
    names = ImageSet(
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("eel", "dog", "cat", "ant")
    )
    first, second = told(Look(seen(6.0, 4.9, 5.5, 0.0), seen(6.0, 5.0, 5.5, 5.4)), found, 4.0, names)
    assert "eel (6.0), cat (5.5), dog (4.9) stood out" in first and "eel (6.0), cat (5.5), dog (5.0)." in first
    assert second == "On the network repaired for eel: cat (4.2), dog (0.3); counted, and cat repaired next."
    (note,) = told(Look(seen(0.0, 4.6, 0.0, 0.0), seen(0.0, 1.0, 0.0, 0.0)), None, 4.0, names)
    assert note.startswith("dog (4.6) stood out barely") and note.endswith("dog (1.0).")


def test_accuracy_that_is_spent_is_not_spent_again(scans, searches, small, backdoored):
    harmful = list(range(16))  # the whole first layer
    searches.queue += [(harmful, True), ([5], True)]
    scans.queue += [seen(6.0, 0.3, 4.2, 0.0)]
    repaired(small, backdoored, Look(seen(6.0, 0.0, 5.5, 0.0), seen(6.0, 0.0, 5.5, 0.0)))
    assert searches.asked[1][3] == 0.0 < searches.asked[0][3]


def test_what_one_class_leaves_unrepaired_is_no_repair(scans, small, backdoored, monkeypatch, searches):
    case = replace(small.case(backdoored.victim), known=None)
    scans.queue += [loud(0, 2), loud(0, 2), loud(0, 2)]
    searches.queue += [([3], True), ([5], False)]
    monkeypatch.setattr("onp.defend._audits", lambda *arguments: [])
    outcome = run(case, DefendConfig(quiet=True), small.PRESET, QUIET)
    report = outcome.report
    assert report.decision == "not-repairable" and bool(outcome.mask.keep.all()) and report.pruned_count == 0
    first, second = (case.clean.name(k) for k in report.target_classes)
    assert f"Class {first} could be repaired, but class {second} stands out too." in report.reason
    assert len(report.notes) == 2 and report.notes[1] in report.to_text().replace("\n  ", " ")
    assert len(report.evidence["looks_after_repairs"]) == 1 and report.notes[0] in outcome.html()


@pytest.mark.parametrize(("price", "advice"), [(0.0231, 0.025), (0.025, 0.025), (0.004, None), (None, None), (0.999, None)])
def test_a_refusal_says_which_budget_would_have_done(price, advice, scans, small, backdoored, monkeypatch, searches):
    case = replace(small.case(backdoored.victim), known=None)
    scans.queue += [loud(0), loud(0)]
    searches.queue += [([3], False, price)]
    monkeypatch.setattr("onp.defend._audits", lambda *arguments: [])
    report = run(case, DefendConfig(quiet=True), small.PRESET, QUIET).report
    assert report.decision == "not-repairable"
    said = "the model was not touched."
    if advice is not None:
        said += f" --max-acc-drop {advice} would have allowed a mask that takes most of that away."
    assert report.reason.endswith(said)


def test_a_wrong_first_choice_is_put_right_and_a_resumed_run_agrees(scans, small, backdoored, tmp_path, monkeypatch):
    case = replace(small.case(backdoored.victim), known=None)  # class 0 is the backdoor's
    wrong = loud(2, quieter=(0,))
    assert wrong.suspect == 2 and close_call(wrong, 4.0)
    config = DefendConfig(quiet=True, preset="fast", max_acc_drop=0.05)
    outcomes = []
    for _ in range(2):
        scans.queue += [wrong, loud(0)]
        with kept_in(State(tmp_path, {})):
            outcomes.append(run(case, config, small.PRESET, QUIET))
        # The second time everything that takes time is read.
        monkeypatch.setattr(fitting, "_fit", None)
        monkeypatch.setattr(Evaluator, "score", None)
        monkeypatch.setattr("onp.defend.details", lambda *arguments: SimpleNamespace())
    first, second = outcomes
    assert first.report.decision == "repaired" and first.report.target_class == 0 and first.report.target_classes == (0,)
    assert torch.equal(first.mask.keep, second.mask.keep) and first.report.notes == second.report.notes
    (triggered,) = backdoored.score_triggered
    left = attack_success(triggered.labels, predictions(first.network, triggered.images), 0).value
    assert left < 0.3 < 0.8 < attack_success(
        triggered.labels, predictions(backdoored.victim.model, triggered.images), 0).value  # fmt: skip
