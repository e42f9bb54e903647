"""Probabilities of the classes and of the network."""

import json
import math

import numpy as np
import pytest

from onp.detect.anomaly import DetectionScores, anomaly_index
from onp.detect.class_features import Place, class_features
from onp.detect.probability import (
    GROUPS,
    KINDS,
    Context,
    DetectorTerm,
    GroupModel,
    LearnedVerdict,
    added_by,
    averaged,
    learned_verdict,
    probabilities,
    read_verdict,
    target_probabilities,
)
from onp.errors import InputError

NAN = math.nan
COSTS = [1.0, 1.2, 0.9, 1.1, -2.0, 1.05, 0.95, 1.15]


def verdict(pair=0.0):
    term = DetectorTerm({"index": ((1.0, 0.0), (5.0, 5.0))}, missing=0.5)
    group = GroupModel(-4.0, -1.0, {"patch": term, "latent": term})
    return LearnedVerdict({"patch": 0.1, "latent": 0.1}, dict.fromkeys(GROUPS, group), pair, 0.6, 0.3, "test")


def found(costs, **options):
    scores = DetectionScores(costs, {})
    classes = len(next(iter(costs.values()))) if costs else 8
    return target_probabilities(scores, Context(classes, 500, True), verdict(**options))


def test_the_features_are_the_anomaly_index_and_the_cost():
    features = class_features(COSTS, floor=0.1)
    assert np.allclose(features["index"], [anomaly_index(COSTS, k, 0.1) for k in range(8)])
    scaled = class_features([3 * value + 7 for value in COSTS], floor=0.3)
    assert np.allclose(features["index"], scaled["index"])
    assert np.allclose(features["cheapness"], [-cost for cost in COSTS])


def test_the_spread_of_the_others():
    assert Place.of([3.0, 3.0, 4.0, 9.0]).spread.tolist() == pytest.approx([1.4826, 1.4826, 0.0, 0.0])
    assert np.isnan(Place.of([1.0, NAN, 2.0, 3.0]).spread).all()


def test_features_where_classes_were_not_measured():
    features = class_features([NAN, *COSTS, NAN], floor=0.1)
    assert np.isnan(features["index"][[0, 9]]).all()
    assert np.allclose(features["index"][1:9], class_features(COSTS, 0.1)["index"])
    assert np.isnan(class_features([1.0, 2.0, NAN], 0.1)["index"]).all()


def test_the_anomalous_class_is_the_probable_target():
    result = found({"patch": COSTS, "latent": COSTS})
    assert result.predicted_target == 4 and result.backdoor > 0.99
    assert result.evidence[4] == {"patch": 5.0, "latent": 5.0}
    assert sum(result.per_class) == pytest.approx(result.backdoor)
    assert found({"patch": [1.0, 1.1, 0.9, 1.0], "latent": [1.0, 1.1, 0.9, 1.0]}).backdoor < 0.5


def test_passes_are_averaged_in_log_odds():
    clear, other = found({"patch": COSTS}, pair=0.2), found({"patch": COSTS[::-1]}, pair=0.2)
    assert averaged([clear], verdict()) is clear
    both = averaged([clear, clear], verdict(0.2))
    assert both.backdoor == pytest.approx(clear.backdoor) and np.allclose(both.per_class, clear.per_class)
    apart = averaged([clear, other], verdict(0.2))
    assert apart.backdoor < clear.backdoor and apart.per_class[4] == pytest.approx(apart.per_class[3])
    assert apart.evidence[4]["patch"] == pytest.approx((clear.evidence[4]["patch"] + other.evidence[4]["patch"]) / 2)


def test_the_order_of_classes_changes_nothing():
    order = [3, 1, 4, 7, 6, 0, 2, 5]
    latent = [0.3, 0.1, NAN, 0.2, 0.0, 0.5, NAN, 0.4]
    plain = found({"patch": COSTS, "latent": latent}, pair=0.2)
    permuted = found({"patch": [COSTS[k] for k in order], "latent": [latent[k] for k in order]}, pair=0.2)
    assert permuted.backdoor == pytest.approx(plain.backdoor)
    assert np.allclose(permuted.per_class, [plain.per_class[k] for k in order])


def test_a_cheaper_class_is_never_less_probable():
    before = 0.0
    for cost in np.linspace(2.0, -3.0, 21):
        costs = [*COSTS[:2], float(cost), *COSTS[3:]]
        probability = found({"patch": costs, "latent": COSTS}, pair=0.3).per_class[2]
        assert probability >= before - 1e-12
        before = probability


@pytest.mark.parametrize("latent", [None, [NAN] * 8])
def test_a_detector_that_measured_nothing_adds_its_constant(latent):
    result = found({"patch": COSTS} if latent is None else {"patch": COSTS, "latent": latent})
    assert {each["latent"] for each in result.evidence} == {0.5}
    assert found({}).backdoor == pytest.approx(8 * math.exp(-3 - math.log(0.8)) / (1 + 8 * math.exp(-3 - math.log(0.8))))


def test_a_class_counts_that_is_cheap_among_its_own_and_among_all():
    term = DetectorTerm({"index": ((1.0, 0.0), (5.0, 4.0)), "cheapness": ((0.0, 0.0), (4.0, 4.0))}, missing=0.5)
    both = {"index": np.array([5.0, 5.0, 0.0, NAN]), "cheapness": np.array([4.0, -1.0, 4.0, NAN])}
    assert term.of(both).tolist() == [4.0, 0.0, 0.0, 0.0]
    assert term.of({**both, "cheapness": np.array([1.0, 4.0, 4.0, NAN])}).tolist() == [2.0, 4.0, 0.0, 0.0]
    assert term.of({name: np.full(3, NAN) for name in both}).tolist() == [0.5] * 3


def test_costs_of_images_of_another_size_are_not_compared_between_networks():
    term = DetectorTerm({"index": ((1.0, 0.0), (5.0, 4.0)), "cheapness": ((9.0, 0.0), (10.0, 4.0))}, missing=0.5)
    group = GroupModel(-4.0, -1.0, {"patch": term})
    learned = LearnedVerdict({"patch": 0.1}, dict.fromkeys(GROUPS, group), 0.0, 0.6, 0.3, "test")
    scores = DetectionScores({"patch": tuple(COSTS)}, {})
    added = {
        comparable: target_probabilities(scores, Context(8, 500, True, comparable=comparable), learned).evidence[4]["patch"]
        for comparable in (True, False)
    }
    assert added == {True: 0.0, False: 4.0}


def test_two_targets_are_both_probable():
    per_class, backdoor = probabilities(np.array([4.0, 4.0, -5.0]), pair=1.0)
    independent = 1 / (1 + math.exp(-4.0))
    assert per_class[0] == pytest.approx(independent, abs=0.01) and backdoor > 0.99
    assert probabilities(np.array([4.0, 4.0, -5.0]), pair=0.0)[0][0] == pytest.approx(0.5, abs=0.01)
    extreme, certain = probabilities(np.array([2000.0, 1999.0, -3000.0]), pair=0.1)
    assert np.isfinite(extreme).all() and certain == 1


def test_the_packaged_verdict_decides():
    packaged = learned_verdict()
    names = ("no-evidence", "inconclusive", "backdoor")
    assert [packaged.decision(value) for value in (0.0, packaged.none_below, packaged.backdoor_from)][::2] == [
        names[0],
        names[2],
    ]
    assert set(packaged.groups) == set(GROUPS)


def damaged(tmp_path, change):
    term = {"points": {"index": [[1.0, 0.0], [5.0, 4.0]]}, "missing": 0.0}
    group = {"bias": -4.0, "log_classes": -1.0, "terms": {"patch": term}}
    document = {"version": "x", "pair": 0.0, "backdoor_from": 0.6, "none_below": 0.3, "floors": {"patch": 0.1}}
    document["groups"] = {name: json.loads(json.dumps(group)) for name in GROUPS}
    change(document)
    path = tmp_path / "verdict.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("pair"),
        lambda document: document.update(none_below=0.9),
        lambda document: document["groups"].pop(GROUPS[0]),
        lambda document: document["groups"][GROUPS[0]]["terms"]["patch"]["points"].update(colour=[[0.0, 0.0], [1.0, 1.0]]),
        lambda document: document["groups"][GROUPS[0]]["terms"]["patch"].update(points={"cheapness": [[0.0, 0.0], [1.0, 1.0]]}),
        lambda document: document["floors"].clear(),
        lambda document: document["groups"][GROUPS[0]]["terms"]["patch"]["points"].update(index=[[0, 1], [1, 0]]),
    ],
)
def test_a_damaged_verdict_is_refused(tmp_path, change):
    assert read_verdict(damaged(tmp_path, lambda document: None)).floors == {"patch": 0.1}
    with pytest.raises(InputError, match="not a learned verdict"):
        read_verdict(damaged(tmp_path, change))


def test_detectors_of_one_kind_add_the_norm_of_what_they_say():
    """Two that see the same are no two witnesses; one of another kind is."""
    nats = np.array([[3.0, 4.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    added = added_by(nats, ["patch", "warp", "latent", "somebody's own"])
    assert added.sum(1).tolist() == pytest.approx([5.0 + 2.0 + 1.0, 0.0])
    assert added[0, :2].tolist() == pytest.approx([9 / 5, 16 / 5])
    more = nats.copy()
    more[0, 0] += 1.0
    assert (added_by(more, ["patch", "warp", "latent", "somebody's own"]).sum(1) >= added.sum(1)).all()


def test_features_of_what_leads_nowhere_easily_count_little():
    names = ["patch", "separability", "warp"]
    nats = np.array([[0.3, 9.0, 0.4], [3.0, 5.0, 4.0], [0.0, 5.0, 0.0]])
    assert added_by(nats, names)[:, 1].tolist() == pytest.approx([0.5, 5.0, 0.0])
    assert added_by(nats[:, :1], names[:1])[:, 0].tolist() == pytest.approx([0.3, 3.0, 0.0])
    gratings = added_by(np.array([[1.5, 9.0, 0.0]]), ["gratings", "separability", "probe_field"])
    assert gratings[0].tolist() == pytest.approx([1.5, 1.5, 0.0]), "what a grating leads to counts as what a trigger does"


def test_every_detector_of_the_package_is_of_a_kind():
    named = [name for names in KINDS.values() for name in names]
    assert sorted(named) == sorted(set(named)) and set(learned_verdict().floors) <= set(named)
