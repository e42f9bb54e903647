"""Learning the verdict from dossiers."""

import datetime
import gzip
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers import made_dossiers
from scipy.optimize import check_grad

from onp.detect.anomaly import DetectionScores
from onp.detect.probability import probabilities, read_verdict, target_probabilities
from onp.errors import InputError
from onp.zoo.learn import LearnConfig, learn
from onp.zoo.learn.candidates import CANDIDATES, hand_made, tails
from onp.zoo.learn.design import Design
from onp.zoo.learn.logit import likelihood, weights
from onp.zoo.learn.metrics import Judged, auc, calibration_error, cross_entropy, figures, right_class, threshold, true_positives
from onp.zoo.learn.networks import networks_of, read_networks
from onp.zoo.learn.tails import fit_tails, tail
from onp.zoo.learn.validation import Calibration, calibrate, calibrated, folds, out_of_fold
from onp.zoo.learn.verdict_file import as_json, learned, thresholds

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def design():
    return Design.of(networks_of(made_dossiers.lines()))


def test_networks_are_what_their_cards_say(design):
    assert len(design.networks) == 59, "the one whose backdoor does not work is left out"
    one = next(network for network in design.networks if network.working and network.working[0]["attack"] == "badnets")
    assert one.targets == (one.card["backdoors"][0]["target"],) and one.families == {"patch"}
    everywhere = next(
        network for network in design.networks if network.working and network.working[0]["attack"] == "badnets_a2a"
    )
    assert len(everywhere.targets) == everywhere.classes
    assert np.isnan(design.costs[~design.exists]).all() and not design.is_target[design.clean].any()


def test_a_backdoor_that_does_not_work_makes_no_network_clean():
    line = next(line for line in made_dossiers.lines() if line["card"]["backdoors"])
    line["card"] |= {"clean": True, "backdoors": [line["card"]["backdoors"][0] | {"asr": 0.1, "works": False}]}
    assert not networks_of([line])[0].known
    line["card"]["after"] = "repaired"
    assert networks_of([line])[0].clean


def test_nobody_is_judged_by_a_model_that_saw_its_family_or_architecture(design):
    seen = []
    for fold in folds(design.networks):
        seen += fold.judged
        for judged in fold.judged:
            for one in (design.networks[i] for i in fold.learned):
                assert one.arch != design.networks[judged].arch
                assert not (design.networks[judged].families & one.families)
            assert any(design.networks[i].clean for i in fold.learned)
    assert sorted(seen) == list(range(len(design.networks)))


def test_the_likelihood_is_that_of_the_probabilities_and_its_derivative():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (4, 5))
    scores[1, 4] = -np.inf
    targets = np.zeros((4, 5), dtype=bool)
    targets[1, 2] = targets[2, 1] = targets[2, 3] = True
    targets[3] = True
    nats, by_score, by_pair = likelihood(scores, targets, -1.0)
    _, backdoor = probabilities(scores[0], np.exp(-1.0))
    assert nats[0] == pytest.approx(-np.log(1 - backdoor))
    assert nats[3] == pytest.approx(-np.log(probabilities(scores[3], np.exp(-1.0))[1]))
    for row in range(4):
        there = np.isfinite(scores[row])
        kept, known = scores[row : row + 1, there], targets[row : row + 1, there]
        loss = lambda x, known=known: likelihood(x[None], known, -1.0)[0][0]  # noqa: E731
        slope = lambda x, known=known: likelihood(x[None], known, -1.0)[1][0]  # noqa: E731
        assert check_grad(loss, slope, kept[0]) < 1e-5
        step = 1e-6
        numeric = (likelihood(kept, known, -1 + step)[0] - likelihood(kept, known, -1 - step)[0]) / (2 * step)
        assert by_pair[row] == pytest.approx(numeric[0], abs=1e-6)
    assert np.isfinite(by_score).all()


def test_what_is_shipped_computes_what_was_fitted(design, tmp_path):
    rows = np.arange(len(design.owner))
    fitted = fit_tails(design, rows)
    calibration = Calibration(0.8, (-0.3, 0.2), 0.07)
    path = tmp_path / "verdict.json"
    path.write_text(as_json(learned(fitted, calibration, (0.9, 0.4), datetime.date(2026, 1, 31))))
    verdict = read_verdict(path)
    for row in (0, 5, 40):
        network, measured = design.networks[design.owner[row]], design.measured[row]
        log_odds = calibration.log_odds(fitted.log_odds(rows[row : row + 1]), design.group[row : row + 1])[0, : network.classes]
        per_class, backdoor = probabilities(log_odds, 0.07)
        found = target_probabilities(DetectionScores(measured.log_costs, {}), network.context(measured), verdict)
        assert found.backdoor == pytest.approx(backdoor, abs=0.01)
        assert np.allclose(found.per_class, per_class, atol=0.01)
    assert set(verdict.groups["no_batch_norms"].terms) == {"strong", "noise"}, "the group never has the weak one"
    learned_weights = dict(zip(design.detectors, weights(fitted, rows), strict=True))
    assert learned_weights["strong"] > learned_weights["noise"]


def test_the_tail_of_clean_classes():
    values = np.random.default_rng(0).exponential(2.0, 20_000)
    corners, heights = zip(*tail(values, np.ones(len(values))), strict=True)
    assert np.interp(-1.0, corners, heights) == 0
    for index in (4.0, 8.0, 20.0, 40.0):  # the share of values beyond x is exp(-x / 2), and what half of them have adds nothing
        assert np.interp(index, corners, heights) == pytest.approx(index / 2 - np.log(2), rel=0.1)


def test_learned_models_find_what_the_detectors_show(design):
    judged = calibrated(design, out_of_fold(design, tails))
    assert auc(judged) > 0.9 and right_class(judged) > 0.9
    assert cross_entropy(judged) < 0.45
    calibration = calibrate(
        design, np.where(design.exists, 3.0 * design.is_target - 1.5, -np.inf), np.arange(len(design.owner))
    )
    assert calibration.slope > 1, "scores that are never wrong count more"
    fold = folds(design.networks)[0]
    for name, candidate in CANDIDATES.items():
        scores = candidate(design, design.rows_of(fold.learned), design.rows_of(fold.judged))
        assert (np.isfinite(scores) == design.exists[design.rows_of(fold.judged)]).all(), name
    assert (hand_made(design, np.arange(0), np.arange(3)).max(1) >= 0).all()


def test_figures_of_known_probabilities():
    probability = np.array([0.1, 0.2, 0.3, 0.9, 0.8, 0.25])
    backdoored = np.array([False, False, False, True, True, True])
    judged = Judged.of(np.arange(6), backdoored, probability, np.array([False, False, False, True, False, True]))
    assert auc(judged) == pytest.approx(8 / 9)
    assert 0.3 < threshold(judged) <= 0.8 and true_positives(judged) == pytest.approx(2 / 3) and right_class(judged) == 0.5
    assert cross_entropy(judged) == pytest.approx(-np.log([0.9, 0.8, 0.7, 0.9, 0.8, 0.25]).mean())
    assert calibration_error(judged) == pytest.approx((0.1 + abs(0.45 - 1) + 0.3 + 0.1 + 0.2) / 6)
    low, high = figures(judged, 200)["auc"][1:]
    assert low < 8 / 9 < high
    apart = judged.subset(np.array([0, 1, 2, 3, 4]))
    assert thresholds(apart) == (0.5, 0.5)


def test_a_network_with_three_splits_counts_once():
    probability = np.array([0.1, 0.3, 0.9, 0.8, 0.25, 0.4, 0.4, 0.4])
    owner = np.array([0, 1, 2, 3, 4, 5, 5, 5])
    backdoored = np.isin(owner, [2, 3, 5])
    many, once = Judged.of(owner, backdoored, probability, backdoored), slice(0, 6)
    one = Judged.of(owner[once], backdoored[once], probability[once], backdoored[once])
    for name, (value, *_) in figures(many, 10).items():
        assert value == pytest.approx(figures(one, 10)[name][0]), name
    assert thresholds(many) == thresholds(one) and threshold(many) == threshold(one)
    assert np.allclose(tail(probability, many.weight), tail(probability[once], one.weight), rtol=0.2)


@pytest.mark.parametrize(("lowest", "below"), [(0.2, 0.2), (0.01, 0.05)])
def test_no_more_clean_networks_stay_open_than_a_fifth(lowest, below):
    """The lowest backdoored network decides, unless too many clean ones lie above it."""
    clean, backdoored = [0.05] * 8 + [0.3, 0.6], [lowest, 0.9, 0.95]
    named = np.zeros(13, dtype=bool)
    judged = Judged.of(np.arange(13), np.arange(13) >= 10, np.array(clean + backdoored), named)
    assert thresholds(judged) == (pytest.approx(0.6, abs=1e-3), pytest.approx(below, abs=1e-3))


def test_the_command_writes_verdict_figures_and_card(tmp_path, monkeypatch):
    monkeypatch.setattr("onp.zoo.learn.run.CANDIDATES", {"tails": tails, "hand_made": hand_made})
    dossiers = made_dossiers.write(tmp_path / "detection.jsonl.gz")
    (tmp_path / "README.md").write_text("# Before\n")
    config = LearnConfig(
        dossiers=str(dossiers), pretrained=str(tmp_path), figures=str(tmp_path / "figures.json"), draws=20, quiet=True
    )
    assert learn(config) == 0
    first = (tmp_path / "verdict.json").read_text(), (tmp_path / "README.md").read_text()
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["zoo"] == {
        **{"networks": 60, "clean": 30, "backdoored": 29, "left_out": 1, "rows": 118},
        "groups": {"batch_norms": 60, "no_batch_norms": 58},
    }
    assert document["detectors"]["weak"]["patch"]["no batch norms"]["auc"] == 0.5
    assert document["detectors_alone"]["strong"] > document["detectors_alone"]["noise"]
    assert 0.2 < document["recipe_only"]["logistic"]["auc"][0] < 0.8
    assert first[1].startswith("# Before\n\n<!-- verdict")
    assert learn(config) == 0
    assert ((tmp_path / "verdict.json").read_text(), (tmp_path / "README.md").read_text()) == first, "it is repeatable"
    _the_page_gets_its_tables(tmp_path)


def _the_page_gets_its_tables(folder):
    pytest.importorskip("matplotlib")
    script = runpy.run_path(str(ROOT / "bench" / "detection.py"))
    page = (ROOT / "docs" / "detection.md").read_text()
    document = json.loads((folder / "figures.json").read_text())
    text = script["with_tables"](page, document)
    assert "60 networks: 30 clean, 29 with a backdoor that works, 1 not used" in text
    assert "| tails, norm within kinds (shipped) | 0.9" in text and "| `strong` | " in text
    assert script["with_tables"](text, document) == text, "tables replace tables"


def test_dossiers_that_cannot_be_used_are_refused(tmp_path):
    path = tmp_path / "detection.jsonl.gz"
    with pytest.raises(InputError, match="holds no dossiers"):
        read_networks(path)
    with gzip.open(path, "wt") as file:
        file.write('{"index": 1}\n')
    with pytest.raises(InputError, match="holds other lines"):
        read_networks(path)
    made_dossiers.write(path, networks=8)
    with pytest.raises(InputError, match="12 each are needed"):
        learn(LearnConfig(dossiers=str(path), pretrained=str(tmp_path), quiet=True))
