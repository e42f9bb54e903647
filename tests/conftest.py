"""Shared fixtures. The first lines must stay first: triton and torch read these variables when they are first imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # for subprocesses, too: as many processes as CPUs, each with one thread

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import evaluator_cases, small_backdoor
from helpers.made_verdict import made_verdict
from helpers.random_numbers import rng  # noqa: F401 (a fixture)

import onp
from onp.data.images import ImageSet
from onp.defend import run_pipeline
from onp.defend.config import DefendConfig
from onp.defend.run import Run
from onp.detect import targets
from onp.engine.metrics import accuracy, attack_success, predictions
from onp.search.features import FeatureBatches, Saliency, node_features


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def preact():
    """The pre-activation network of the evaluator's tests."""
    return evaluator_cases.lively_victim(evaluator_cases.NETWORKS["preact"])


@pytest.fixture
def poison() -> Iterator[None]:
    """Memory from torch.empty holds NaN, so an output element that nobody wrote cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def small():
    """The functions of small_backdoor.py."""
    return small_backdoor


@pytest.fixture(scope="session")
def backdoored(small):
    """A tiny victim with a planted patch backdoor; trained once, read by all."""
    return small.backdoored()


@pytest.fixture(scope="module")
def plain_verdict():
    """Detection with a verdict that is not learned, for networks unlike those that it was learned from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "learned_verdict", made_verdict)
        yield made_verdict()


@pytest.fixture(scope="session")
def outcome(small, backdoored):
    """A repair of the tiny victim."""
    return run_pipeline(small.case(backdoored.victim), Run(DefendConfig(quiet=True), small.PRESET))


@pytest.fixture(scope="session")
def report_schema():
    """Validates what report.json holds; raises `jsonschema.ValidationError`."""
    jsonschema = pytest.importorskip("jsonschema")
    text = (Path(onp.__file__).parent / "defend" / "report" / "templates" / "report.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return jsonschema.Draft202012Validator(json.loads(text))


@pytest.fixture(scope="session")
def saliency(backdoored):
    """Its first-order effects on the build images."""
    return Saliency(backdoored.victim, FeatureBatches.of(backdoored.build, backdoored.build_triggered, (1.0,)))


@pytest.fixture(scope="session")
def features(backdoored, saliency):
    """Its node features."""
    return node_features(backdoored.victim, saliency.batches)


@pytest.fixture(scope="session")
def pictures(backdoored):
    """160 images like those that its network was trained on."""
    images, labels = small_backdoor.pictures(160, torch.Generator().manual_seed(5))
    return ImageSet((images * 255).round().to(torch.uint8), labels, ("a", "b", "c", "d"))


@pytest.fixture(scope="session")
def figures(backdoored):
    """ACC and ASR that unmodified network code has, as a function of the victim."""

    def measure(victim):
        (triggered,) = backdoored.score_triggered
        acc = accuracy(backdoored.score.labels, predictions(victim.model, backdoored.score.images)).value
        return acc, attack_success(triggered.labels, predictions(victim.model, triggered.images), 0).value

    return measure
