"""Trigger families: images stay in range, parameters have gradients, and triggers do not depend on each other."""

import pytest
import torch
import torch.nn.functional as F

from onp.detect.trigger_families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_changes_images_within_range_and_has_gradients(family):
    shape = (3, 13, 17)
    parameters = tuple(value.requires_grad_() for value in family.start(4, shape, torch.Generator().manual_seed(0)))
    images = torch.rand(4, 5, *shape)
    out = family.apply(parameters, images)
    assert (
        len(parameters) == len(family.parameter_names) and out.shape == images.shape and bool(((out >= 0) & (out <= 1)).all())
    )
    assert family.cost(parameters).shape == (4,) and bool((family.cost(parameters) > 0).all())
    gradients = torch.autograd.grad(out.square().sum() + family.cost(parameters).sum(), parameters)
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_stronger_triggers_cost_so_many_times_more(family):
    parameters = family.start(2, (1, 12, 12), torch.Generator().manual_seed(2))
    stronger = family.stronger(parameters, torch.tensor([1.0, 1.5]))
    torch.testing.assert_close(family.cost(stronger), family.cost(parameters) * torch.tensor([1.0, 1.5]), rtol=0.02, atol=0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_trigger_of_a_family_is_its_own(family):
    parameters = family.start(3, (1, 12, 12), torch.Generator().manual_seed(1))
    images = torch.rand(3, 2, 1, 12, 12)
    together = family.apply(parameters, images)
    for row in range(3):
        alone = family.apply(tuple(value[row : row + 1] for value in parameters), images[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_a_warp_is_a_bicubic_interpolation_of_its_control_points():
    warp = next(family for family in FAMILIES if family.name == "warp")
    parameters = warp.start(3, (1, 20, 28), torch.Generator().manual_seed(0))
    wanted = F.interpolate(2.0 * torch.tanh(parameters[0]), (20, 28), mode="bicubic", align_corners=True)
    assert torch.allclose(warp.flow(parameters, 20, 28), wanted, atol=1e-5)
