"""The family of few frequencies: an orthonormal transform, and a sinusoid is cheaper than what needs many frequencies."""

import torch

from onp.detect.config import DetectRun, InversionConfig
from onp.detect.inversion import InversionTask, invert
from onp.detect.spectrum import Spectrum, cosines


def test_the_transform_is_orthonormal_and_the_image_has_the_coefficients_squared():
    rows = cosines(12, torch.device("cpu"))
    torch.testing.assert_close(rows @ rows.T, torch.eye(12), atol=1e-5, rtol=0)
    roots = torch.zeros(1, 1, 12, 10)
    roots[0, 0, 3, 0] = -0.5
    image = Spectrum().image((roots,), 12, 10)
    torch.testing.assert_close(image.square().sum(), torch.tensor(0.25**2))
    assert float(Spectrum().cost((roots,))) == 0.25
    torch.testing.assert_close(image[0, 0, :, 0], -0.25 * rows[3] / 10**0.5)


def logits(x):
    """Class 0; 1 where a sinusoid of the rows is strong, 2 where random pixels are as strong."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(12, 12, generator=generator).sign() / 12
    wave = cosines(12, x.device)[5][:, None] / 12**0.5
    found = [((x[:, 0] - 0.5) * pattern.expand(12, 12)).sum((1, 2)) for pattern in (wave, noise)]
    return torch.stack((torch.zeros(len(x)), *(20 * (each - 0.8) for each in found)), 1)


def test_a_class_that_a_sinusoid_leads_to_is_cheaper_than_one_that_noise_leads_to(one_thread):
    images, labels = torch.rand(60, 1, 12, 12) * 0.2 + 0.4, torch.zeros(60, dtype=torch.int64)
    found = invert(Spectrum(), InversionTask((logits,), images, labels, (1, 2)), InversionConfig(40, 8), DetectRun())
    assert found.worked.tolist() == [True, True] and float(found.cost[0]) < 0.5 * float(found.cost[1])
