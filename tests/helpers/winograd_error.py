"""How far a convolution by Winograd's minimal filtering may be from the exact one, derived from the operations it consists of.

Every rounding of an intermediate value v makes an error of at most u |v| with u = 2^-24. Rounding errors are nearly independent
of each other and of mean zero, so their squares add up (Higham and Mary 2019, A New Approach to Probabilistic Rounding Error
Analysis, https://doi.org/10.1137/18M1226312). The transforms carry them to the output as in Barabasz, Anderson, Soodhalter and
Gregg 2020, Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks,
https://arxiv.org/abs/1803.10986, with the squares of the matrices' entries in place of their absolute values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT = 2.0**-24
A, B = 0.625, 1.5  # the points of csrc/winograd/tiles.h along the width
HIGH_IN = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float64)
HIGH_FILTER = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
HIGH_OUT = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float64)
WIDE_IN = torch.tensor(
    [
        [A * A * B * B, 0, -A * A - B * B, 0, 1, 0],
        *([0, -sign * A * B * B, -B * B, sign * A, 1, 0] for sign in (1, -1)),
        *([0, -sign * B * A * A, -A * A, sign * B, 1, 0] for sign in (1, -1)),
        [0, A * A * B * B, 0, -A * A - B * B, 0, 1],
    ],
    dtype=torch.float64,
)
NEAR, FAR = 1 / (2 * A * A * (A * A - B * B)), 1 / (2 * B * B * (B * B - A * A))
WIDE_FILTER = torch.tensor(
    [
        [1 / (A * A * B * B), 0, 0],
        *([NEAR, sign * A * NEAR, A * A * NEAR] for sign in (1, -1)),
        *([FAR, sign * B * FAR, B * B * FAR] for sign in (1, -1)),
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
WIDE_OUT = torch.tensor([[1, *(p**i for p in (A, -A, B, -B)), int(i == 3)] for i in range(4)], dtype=torch.float64)
WIDE_OUT[1:, 0] = 0
# Roundings on the way of a value through the transform of the inputs and that of the outputs, at most.
INPUT_ROUNDINGS, OUTPUT_ROUNDINGS = 5, 7


def squared_error(x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """The convolution by minimal filtering in float64, and the expected square of its float32 error, at most.

    Args:
        x: `[N, C, H, W]`.
        weight: `[K, C, 3, 3]`.
        padding: on every side.

    Returns:
        Two float64 `[N, K, H', W']`; the second in units of `UNIT` squared.
    """
    height, width = (size + 2 * padding - 2 for size in x.shape[2:])
    rows, columns = -(-height // 2), -(-width // 4)
    right, below = 4 * columns + 2 - x.shape[3] - padding, 2 * rows + 2 - x.shape[2] - padding
    padded = F.pad(x.double(), (padding, right, padding, below))
    tiles = padded.unfold(2, 4, 2).unfold(3, 6, 4)  # [N, C, rows, columns, 4, 6]

    def transform(values: Tensor, high: Tensor, wide: Tensor) -> Tensor:
        return high @ values @ wide.T

    filters = transform(weight.double(), HIGH_FILTER, WIDE_FILTER)
    inputs, most = transform(tiles, HIGH_IN, WIDE_IN), transform(tiles.abs(), HIGH_IN.abs(), WIDE_IN.abs())
    products = torch.einsum("ncrsij,kcij->ncrskij", inputs, filters)
    partial = products.cumsum(1)  # in the order of the kernel
    sums = partial[:, -1]
    # The stored filters and the products are rounded, the sum after every channel, and the inputs in their transform.
    variance = 2 * products.square().sum(1) + partial.square().sum(1)
    variance += INPUT_ROUNDINGS * torch.einsum("ncrsij,kcij->nrskij", most.square(), filters.square())
    exact = transform(sums, HIGH_OUT, WIDE_OUT)
    variance = transform(variance, HIGH_OUT.square(), WIDE_OUT.square())
    variance += OUTPUT_ROUNDINGS * transform(sums.abs(), HIGH_OUT.abs(), WIDE_OUT.abs()).square()

    def image(values: Tensor) -> Tensor:  # [N, rows, columns, K, 2, 4] -> [N, K, H', W']
        return values.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]

    return image(exact), image(variance)
