"""The contract of every op in plain torch: what the compiled versions must return, in any floating dtype.

Slow on purpose where that is plainer. These are also the ops' torch backend, so they must be right on every device.
"""

import torch
from torch import Tensor


def spmm(indptr: Tensor, indices: Tensor, weight: Tensor | None, x: Tensor, reduce: str = "sum") -> Tensor:
    """`out[v] = sum over the edges e of row v of weight[e] * x[indices[e]]`, divided by their number for `mean`.

    | argument | shape     | dtype        | meaning                                          |
    |----------|-----------|--------------|--------------------------------------------------|
    | indptr   | [V + 1]   | int32, int64 | row v owns edges indptr[v] .. indptr[v + 1] - 1  |
    | indices  | [E]       | as indptr    | the row of x an edge reads                       |
    | weight   | [E], None | as x         | None: every weight is one                        |
    | x        | [U, F]    | floating     |                                                  |
    | returns  | [V, F]    | as x         | zero for a row without edges                     |
    """
    degree = indptr.diff()
    rows = torch.repeat_interleave(torch.arange(len(degree), device=x.device), degree)
    messages = x.index_select(0, indices)
    if weight is not None:
        messages = messages * weight[:, None]
    out = x.new_zeros(len(degree), x.shape[1]).index_add(0, rows, messages)
    return out / degree.clamp(min=1).to(x.dtype)[:, None] if reduce == "mean" else out
