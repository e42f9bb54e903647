"""Graph layers over `message_passing.csr.Csr`, named and parametrised as PyG's, so that their state dicts can be exchanged.

`x`: [K] [V, in_channels]; a layer works on K copies of the graph at once. `keep`: bool [K] [V] or None, False for pruned nodes,
which send nothing and receive nothing but a layer's own part. No layer adds self-loops: see `Csr.with_self_loops`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.errors import InputError
from onp.search.message_passing.csr import Csr
from onp.search.message_passing.ops import REDUCTIONS, attention, spmm


class SAGEConv(nn.Module):
    """`lin_l(aggregate of the neighbours) + lin_r(x)` (GraphSAGE, https://arxiv.org/abs/1706.02216).

    aggr: "mean", "sum" or "max". A weight per edge, float32 [K] [E], may scale what it carries.
    Raises InputError for another aggr.
    """

    def __init__(self, in_channels: int, out_channels: int, aggr: str = "mean", bias: bool = True) -> None:
        super().__init__()
        if aggr not in REDUCTIONS:
            raise InputError(f"aggr={aggr!r} is not known: choose {', '.join(REDUCTIONS)}.")
        self.aggr = aggr
        self.lin_l = nn.Linear(in_channels, out_channels, bias=bias)
        self.lin_r = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, graph: Csr, x: Tensor, weight: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """[K] [V, out_channels]."""
        gathered = spmm(graph, weight, x, self.aggr, keep)
        return F.linear(x, self.lin_r.weight, self.lin_l.bias) + F.linear(gathered, self.lin_l.weight)


class GATv2Conv(nn.Module):
    """Attention over the neighbours (GATv2, https://arxiv.org/abs/2105.14491): PyG's with `add_self_loops=False`.

    Returns [K] [V, heads * out_channels], or the mean over heads [K] [V, out_channels] where `concat` is False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.out_channels, self.concat, self.negative_slope = heads, out_channels, concat, negative_slope
        self.lin_l = nn.Linear(in_channels, heads * out_channels, bias=bias)
        self.lin_r = nn.Linear(in_channels, heads * out_channels, bias=bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self.bias = nn.Parameter(torch.zeros(heads * out_channels if concat else out_channels)) if bias else None
        for weight in (self.lin_l.weight, self.lin_r.weight, self.att):
            nn.init.xavier_uniform_(weight)

    def forward(self, graph: Csr, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """[K] [V, heads * out_channels] or [K] [V, out_channels]."""
        shape = (*x.shape[:-1], self.heads, self.out_channels)
        source, target = self.lin_l(x).view(shape), self.lin_r(x).view(shape)
        out = attention(graph, source, target, self.att[0], self.negative_slope, keep)
        out = out.flatten(-2) if self.concat else out.mean(-2)
        return out if self.bias is None else out.add_(self.bias)  # nobody else has it


class GINConv(nn.Module):
    """`nn((1 + eps) * x + sum of the neighbours)` (GIN, https://arxiv.org/abs/1810.00826); `nn` is any module.

    eps is a parameter where `train_eps` is set, else a constant.
    """

    eps: Tensor

    def __init__(self, nn: nn.Module, eps: float = 0.0, train_eps: bool = False) -> None:
        super().__init__()
        self.nn = nn
        value = torch.tensor([eps])
        if train_eps:
            self.eps = torch.nn.Parameter(value)
        else:
            self.register_buffer("eps", value)

    def forward(self, graph: Csr, x: Tensor, weight: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """What `nn` makes of [K] [V, in_channels]."""
        return self.nn((1 + self.eps) * x + spmm(graph, weight, x, keep=keep))
