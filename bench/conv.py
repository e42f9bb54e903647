"""Convolutions of the compiled module against oneDNN's, one thread: `python bench/conv.py` prints two tables.

The first: one 3x3 convolution of `torch_backend.winograd` against oneDNN's fused primitive, bias and ReLU included. The second:
the gradient of a first convolution to the images, `torch_backend.image_gradient`, against that of `conv2d`. All answers are
compared with conv2d in float64 before anything is timed. Best of ROUNDS, float32.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.engine.steps import Activation, ConvStep
from onp.engine.torch_backend.image_gradient import image_gradient
from onp.engine.torch_backend.onednn import bind_onednn
from onp.engine.torch_backend.winograd import bind_winograd, filters_of

ROUNDS = 5
CASES = ((64, 16, 32), (64, 32, 32), (64, 64, 32), (64, 64, 16), (64, 128, 16), (64, 256, 8), (64, 512, 4), (4, 512, 7))


FIRST = (  # images, channels, filters, pixels a side, kernel, stride
    *((64, 1, 16, 28, 3, 1), (80, 3, 16, 32, 3, 1), (80, 3, 32, 32, 3, 1), (80, 3, 64, 32, 3, 1)),
    *((8, 3, 64, 224, 7, 2), (8, 3, 32, 224, 3, 2)),
)


def best(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    run(x)
    taken = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        run(x)
        taken.append(time.thread_time() - start)
    return min(taken)


@torch.no_grad()
def convolutions() -> None:
    print("| images | channels | pixels | oneDNN, ms | onp, ms | times faster | error over oneDNN's |")
    print("|---" * 7 + "|")
    for images, channels, size in CASES:
        x = torch.randn(images, channels, size, size).relu().contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(channels, channels, 3, 3) / (3 * channels**0.5), torch.randn(channels)
        relu = Activation(torch.ops.aten.relu.default, ())
        step = ConvStep("y", ("x",), None, weight, bias, (1, 1), (1, 1), (1, 1), 1, relu)
        runs = bind_onednn(step, None, torch.float32, tuple(x.shape)), bind_winograd(step, None, filters_of(weight))
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
        usual, ours = ((run(x).double() - exact).square().mean().sqrt().item() for run in runs)
        if ours > 2 * usual:
            raise AssertionError(f"{channels} channels: an error of {ours:.1e}, oneDNN's is {usual:.1e}")
        theirs, mine = (1000 * best(run, x) for run in runs)
        row = (f"{theirs:.2f}", f"{mine:.2f}", f"{theirs / mine:.1f}", f"{ours / usual:.1f}")
        print(f"| {images} | {channels} | {size} x {size} | {' | '.join(row)} |", flush=True)


def gradients() -> None:
    print("| images | channels | filters | pixels | oneDNN, ms | onp, ms | times faster | error over oneDNN's |")
    print("|---" * 8 + "|")
    for images, channels, filters, size, kernel, stride in FIRST:
        x = torch.randn(images, channels, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight, padding = torch.randn(filters, channels, kernel, kernel), kernel // 2
        y = F.conv2d(x, weight, None, stride, padding)
        given = torch.randn_like(y)

        def usual(given: Tensor, y: Tensor = y, x: Tensor = x) -> Tensor:
            return torch.autograd.grad(y, x, given, retain_graph=True)[0]

        def ours(given: Tensor, weight: Tensor = weight, size: int = size, stride: int = stride) -> Tensor:
            return image_gradient(given, weight, (size, size), stride, weight.shape[2] // 2)

        wide = x.detach().double().requires_grad_()
        exact = torch.autograd.grad(F.conv2d(wide, weight.double(), None, stride, padding), wide, given.double())[0]
        theirs_off, off = ((run(given).double() - exact).square().mean().sqrt().item() for run in (usual, ours))
        if off > 2 * theirs_off:
            raise AssertionError(f"{filters} filters: an error of {off:.1e}, oneDNN's is {theirs_off:.1e}")
        theirs, mine = (1000 * best(run, given) for run in (usual, ours))
        row = (f"{theirs:.2f}", f"{mine:.2f}", f"{theirs / mine:.1f}", f"{off / theirs_off:.1f}")
        shape = f"{size} x {size}, {kernel} x {kernel}, stride {stride}"
        print(f"| {images} | {channels} | {filters} | {shape} | {' | '.join(row)} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    convolutions()
    gradients()


if __name__ == "__main__":
    main()
