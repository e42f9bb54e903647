import pytest
import torch

from onp.search.objective import MaskEffects, Objective, expected_acc_loss


def effects_of(**values) -> MaskEffects:
    """Two masks: the first changes nothing."""
    return MaskEffects(
        **{name: torch.tensor([0.0, values.get(name, 0.0)], dtype=torch.float64) for name in MaskEffects.__dataclass_fields__}
    )


@pytest.mark.parametrize(
    ("effects", "phi"),
    [
        ({"asr": 0.5}, -0.5),
        ({"expected_acc_loss": 0.02}, -2 * 0.02 - 14 * (0.02 - 0.01 / 1.5)),
        ({"target_loss": 0.3}, -0.15),
        ({"target_loss": -0.3}, 0.0),
        ({"counted_acc_loss": 0.03}, 0.0),
        ({"pruned": 0.25}, -0.25),
        ({"backdoor_left": 0.4}, -0.2),
    ],
)
def test_each_term_of_the_potential(effects, phi):
    first, second = Objective().potential(effects_of(**effects)).tolist()
    assert first == 0.0 and second == pytest.approx(phi)


def test_a_mask_is_acceptable_within_the_expected_loss():
    objective = Objective(acc_budget=0.03)
    assert objective.limit == pytest.approx(0.02), "two thirds of the budget: the best of many masks costs more than expected"
    assert objective.acceptable(effects_of(counted_acc_loss=0.9, expected_acc_loss=0.02)).tolist() == [True, True]
    assert objective.acceptable(effects_of(expected_acc_loss=0.021)).tolist() == [True, False]


def test_the_expected_loss_rises_with_wrong_images_and_divergence_and_is_never_a_gain():
    counted, nats = torch.tensor([0.0, 0.04, 0.0, -0.04, -0.04]), torch.tensor([0.0, 0.0, 0.1, 0.1, 0.0])
    assert expected_acc_loss(counted, nats).tolist() == pytest.approx([0.0, 0.01, 0.02, 0.01, 0.0])


def test_budgets():
    objective = Objective(w_size=3.0).with_budget(0.04)
    assert (objective.acc_budget, objective.w_size) == (0.04, 3.0)
    assert objective.part(0.25).acc_budget == pytest.approx(0.01)
    assert objective.after_loss(0.03).acc_budget == pytest.approx(0.01), "what is lost already is taken from the budget"
    assert objective.after_loss(0.05).acc_budget == 0.0


def test_effects_are_put_together_and_taken_apart():
    effects = effects_of(asr=0.5, pruned=0.1)
    again = MaskEffects.joined([effects.at(1), effects.at(0), effects.at(1)])
    assert again.asr.tolist() == [0.5, 0.0, 0.5] and again.pruned.tolist() == pytest.approx([0.1, 0.0, 0.1])
