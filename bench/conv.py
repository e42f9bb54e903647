"""One 3x3 convolution of `torch_backend.winograd` against oneDNN's fused primitive, one thread:
`python bench/conv.py` prints the table.

Both answers are compared with conv2d in float64 before anything is timed. Best of ROUNDS, float32, bias and ReLU included.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onp.engine.steps import Activation, ConvStep
from onp.engine.torch_backend.onednn import bind_onednn
from onp.engine.torch_backend.winograd import bind_winograd, filters_of

ROUNDS = 5
CASES = ((64, 16, 32), (64, 32, 32), (64, 64, 32), (64, 64, 16), (64, 128, 16), (64, 256, 8), (64, 512, 4), (4, 512, 7))


def best(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    run(x)
    taken = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        run(x)
        taken.append(time.thread_time() - start)
    return min(taken)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
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


if __name__ == "__main__":
    main()
