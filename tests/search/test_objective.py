import pytest
import torch

from onp.search.objective import COUNTED_SHARE, MaskEffects, Objective


def effects_of(**values) -> MaskEffects:
    """Two masks: the first changes nothing."""
    return MaskEffects(
        **{name: torch.tensor([0.0, values.get(name, 0.0)], dtype=torch.float64) for name in MaskEffects.__dataclass_fields__}
    )


@pytest.mark.parametrize(
    ("effects", "phi"),
    [
        ({"asr": 0.5}, -0.5),
        ({"expected_acc_loss": 0.02}, -2 * 0.02 - 14 * 0.01),
        ({"augment_loss": 0.3}, -0.3),
        ({"augment_loss": -0.3}, 0.0),
        ({"counted_acc_loss": 0.03}, -2 * 0.02 / 0.01),
        ({"counted_acc_loss": 0.009}, 0.0),
        ({"pruned": 0.25}, -0.25),
        ({"backdoor_left": 0.4}, -0.2),
        ({"acc_loss": 0.9}, 0.0),
    ],
)
def test_each_term_of_the_potential(effects, phi):
    first, second = Objective().potential(effects_of(**effects)).tolist()
    assert first == 0.0 and second == pytest.approx(phi)


def test_a_mask_is_acceptable_within_the_counted_and_the_estimated_loss():
    objective = Objective(counted_acc_drop=0.01, acc_budget=0.02)
    assert objective.acceptable(effects_of(counted_acc_loss=0.01, acc_loss=0.02)).tolist() == [True, True]
    assert objective.acceptable(effects_of(counted_acc_loss=0.011)).tolist() == [True, False]
    assert objective.acceptable(effects_of(acc_loss=0.021)).tolist() == [True, False]


def test_a_budget_of_the_user_is_the_estimated_loss_and_half_of_it_may_be_counted():
    objective = Objective(w_size=3.0).with_budget(0.04)
    assert (objective.acc_budget, objective.counted_acc_drop, objective.w_size) == (0.04, COUNTED_SHARE * 0.04, 3.0)


def test_accuracy_that_is_lost_already_is_taken_from_the_budget():
    objective = Objective().with_budget(0.04).after_loss(0.03)
    assert objective.acc_budget == pytest.approx(0.01) and objective.counted_acc_drop == 0.0
