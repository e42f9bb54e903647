"""BN-statistics residual: how the running means of the batch norms differ from the means of clean images.

A batch norm stores the mean of each channel over its training images. Where a share of them carried a trigger, that mean lies
away from the mean over clean images, by the share times what the trigger changes in the channel. BNP prunes by this difference
(Zheng et al., NeurIPS 2022, "Pre-activation Distributions Expose Backdoor Neurons").

A different class prior moves the means too, within the span of the class means, which clean images show. The residual is what
lies outside that span. What lies inside it estimates the shift of the class prior: poisoned images count as the target class.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from onp.data.augment import random_crops
from onp.data.images import ImageSet
from onp.model.capture import op_name
from onp.model.channel_flow import CHANNELWISE
from onp.model.interpret import constant, run_graph
from onp.model.pruned import pruned_units
from onp.model.victim import Victim

SHARE = 0.1  # of the training images, assumed to carry the trigger; the residual is divided by it
LATE = 0.25  # share of the norms, the last ones, whose channels stand for classes
CHI_SQUARED_MEDIAN = 0.455  # of one degree of freedom
CHANNELS_PER_CLASS = 2  # with fewer channels a class prior could explain any shift


@dataclass(frozen=True, eq=False)
class NormStatistics:
    """One batch norm: what it stored in training and what it reads of clean images. All on the CPU.

    What a norm reads of an image is averaged over positions.
    """

    name: str  #: its node in the victim's graph
    source: str  #: the node it reads
    running_mean: Tensor  #: float64 `[C]`
    std: Tensor  #: float64 `[C]`, the square root of the running variance
    clean: Tensor  #: float64 `[N, C]`, of each clean image
    cropped: Tensor | None  #: float64 `[N, C]`, of a random crop of each; None for early norms

    def shift(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Running mean minus the mean of clean images, or of those `chosen` (bool `[N]`), in running standard deviations."""
        return (self.running_mean - self.clean[chosen].mean(0)) / self.std

    def disagreement(self) -> float:
        """Squared difference of the running and the clean mean by its sampling variance, median over channels.

        1 where they differ by no more than the mean of that many clean images is uncertain by.
        """
        variance = self.clean.var(0).clamp_min(1e-12) / len(self.clean)
        return float(((self.running_mean - self.clean.mean(0)).square() / variance).median()) / CHI_SQUARED_MEDIAN

    def class_directions(self, labels: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Mean of each class minus the mean of all, float64 `[C, classes]`, in running standard deviations."""
        clean, labels = self.clean[chosen], labels[chosen]
        means = torch.stack([clean[labels == k].mean(0) for k in labels.unique()]) - clean.mean(0)
        return means.T / self.std[:, None]

    def crop_direction(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """What random crops, with which networks are trained, change in the mean, float64 `[C]`."""
        assert self.cropped is not None
        return (self.cropped - self.clean)[chosen].mean(0) / self.std


@dataclass(frozen=True, eq=False)
class BnStatistics:
    """The batch norms of a network against clean images; made by `bn_statistics`, once a network."""

    labels: Tensor  #: int64 `[N]` of the clean images, on the CPU
    classes: int  #: of the network
    residual: dict[str, Tensor]
    """Per norm, in execution order: running mean minus clean mean outside the span of the class means, float32 `[C]` on the
    CPU, in running standard deviations. Norms with too few channels for the number of classes are left out."""
    late: tuple[NormStatistics, ...]  #: the last `LATE` of all norms, in execution order
    norms: int  #: how many the network has; 0 where nothing was measured
    left_out: bool = False  #: nothing was measured, since the network is a repaired one, or is taken for one
    pruned: int = 0  #: units that are pruned already
    disagreement: float = math.nan
    """How far running means lie from clean means, median over the norms of `NormStatistics.disagreement`; nan where nothing was
    measured. At about 1 the statistics say nothing: they may have been taken anew on clean images."""

    @staticmethod
    def nothing(victim: Victim, clean: ImageSet) -> BnStatistics:
        """Of a repaired network: its norms have no say."""
        return BnStatistics(clean.labels.cpu(), victim.classes, {}, (), 0, True, pruned_units(victim).pruned_count)

    def late_residual(self) -> dict[str, Tensor]:
        """The residual of as many of the last norms that have one."""
        names = list(self.residual)
        return {name: self.residual[name] for name in names[-_late(self.norms) :]}

    def of_units(self, victim: Victim) -> Tensor:
        """The residual of each unit, float32 `[U]`; 0 where no norm reads it.

        A unit has the residual of its own norm, or of the first norm that reads the sum it is added to.
        """
        out = torch.zeros(victim.units)
        readers = _reading_norms(victim)
        for layer in victim.layers:
            residual = self.residual.get(readers.get(layer.node, ""))
            if residual is not None and len(residual) == layer.units:
                out[layer.offset : layer.offset + layer.units] = residual
        return out


def bn_statistics(victim: Victim, clean: ImageSet) -> BnStatistics:
    """Measure what every batch norm reads of the clean images: two forward passes, one of them of random crops.

    Nothing is measured where units are pruned already: their norms stored the means of the network before that, and the
    difference between them and those of clean images is what the pruning changed.

    Args:
        victim: the network; norms without running statistics are left out.
        clean: clean images with labels; those that detection and search may see, not the holdout.
    """
    if pruned_units(victim).pruned_count:
        return BnStatistics.nothing(victim, clean)
    norms, labels = batch_norms(victim.program), clean.labels.cpu()
    if not norms:
        return BnStatistics(labels, victim.classes, {}, (), 0)
    pixels, late = clean.pixels(), norms[-_late(len(norms)) :]
    plain, cropped = channel_means(victim, norms, pixels), channel_means(victim, late, random_crops(pixels))
    residual, kept, disagreement = {}, [], []
    for norm in norms:
        mean, variance = (constant(victim.program, argument(norm, i)).double().cpu() for i in (3, 4))
        std = variance.clamp_min(1e-12).sqrt()
        one = NormStatistics(norm.name, argument(norm, 0).name, mean, std, plain.pop(norm.name), cropped.get(norm.name))
        disagreement.append(one.disagreement())
        if one.clean.shape[1] >= CHANNELS_PER_CLASS * len(labels.unique()):
            shift, span = one.shift(), one.class_directions(labels)
            residual[norm.name] = (shift - span @ combination(span, shift)).float()
        if one.cropped is not None:
            kept.append(one)
    return BnStatistics(labels, victim.classes, residual, tuple(kept), len(norms), disagreement=statistics.median(disagreement))


def prior_shift(bn: BnStatistics) -> Tensor | None:
    """Shift of the class prior: what share more of the training images than of the clean ones looks like each class.

    The combination of class means that explains the last norm's running mean best, beside the direction of random crops.

    Returns:
        float32 `[classes]`; None where the last norm has too few channels, or there is none.
    """
    classes = bn.labels.unique()
    last = bn.late[-1] if bn.late else None
    if last is None or last.clean.shape[1] < CHANNELS_PER_CLASS * len(classes):
        return None
    # On clean networks the crops' direction alone would look like a larger share of the class that odd images are taken for.
    weights = combination(torch.column_stack((last.class_directions(bn.labels), last.crop_direction())), last.shift())[:-1]
    return torch.zeros(bn.classes).index_copy(0, classes, weights.float())


@torch.no_grad()
def bn_shift_gain(victim: Victim, bn: BnStatistics, images: ImageSet) -> Tensor | None:
    """Logit gain of each class when the residual is added to the output of a late norm.

    The residual is divided by `SHARE`, the share of training images assumed to carry the trigger. One forward pass and one
    more for each late norm.

    Args:
        victim: the network that `bn` was measured on.
        bn: its BN statistics.
        images: clean images with labels; those of a class itself do not count for it.

    Returns:
        float32 `[classes]`: rise of the logit in standard deviations of all logits, mean over images of other classes and over
        norms; None where no norm has a residual.
    """
    late = bn.late_residual()
    if not late:
        return None
    inputs = victim.normalisation(images.pixels().to(victim.device))
    plain = torch.cat([victim.model(part) for part in inputs.split(64)]).cpu()
    rises = []
    for name, residual in late.items():

        def add(node: fx.Node, value: Any, name: str = name, residual: Tensor = residual) -> Any:
            if node.name != name:
                return value
            scale = constant(victim.program, node.args[1]) if isinstance(node.args[1], fx.Node) else 1.0
            shift = scale * residual.to(value) / SHARE
            return value + shift.view(1, -1, *[1] * (value.dim() - 2))

        shifted = torch.cat([run_graph(victim.program, part, add)[0] for part in inputs.split(64)]).cpu()
        rises.append((shifted - plain) / plain.std())
    rise, labels = torch.stack(rises).mean(0), images.labels.cpu()
    return torch.stack([rise[labels != k, k].mean() for k in range(victim.classes)])


@torch.no_grad()
def channel_means(victim: Victim, norms: list[fx.Node], images: Tensor) -> dict[str, Tensor]:
    """What norms read of images float32 `[N, C, H, W]` in [0, 1], mean over positions: float64 `[N, channels]` on the CPU."""
    means: dict[str, list[Tensor]] = {norm.name: [] for norm in norms}
    readers: dict[fx.Node, list[str]] = {}
    for norm in norms:
        readers.setdefault(argument(norm, 0), []).append(norm.name)

    def record(node: fx.Node, value: Any) -> Any:
        for name in readers.get(node, ()):
            means[name].append(pooled(value))
        return value

    for part in images.split(64):
        run_graph(victim.program, victim.normalisation(part.to(victim.device)), record)
    return {name: torch.cat(parts).double().cpu() for name, parts in means.items()}


def pooled(value: Tensor) -> Tensor:
    """The mean over positions: `[N, C, ...]` to `[N, C]`."""
    return value.flatten(2).mean(2) if value.dim() > 2 else value


def combination(span: Tensor, shift: Tensor) -> Tensor:
    """Least-squares weights `[K]` of the columns of `span` `[C, K]`, the shortest ones: the class directions sum to nothing."""
    return torch.linalg.lstsq(span, shift[:, None], rcond=1e-10, driver="gelsd").solution[:, 0]


def batch_norms(program: fx.GraphModule) -> list[fx.Node]:
    """Batch norms with stored statistics, in execution order."""
    nodes = [node for node in program.graph.nodes if op_name(node) == "batch_norm"]
    return [node for node in nodes if all(isinstance(node.args[i], fx.Node) for i in (3, 4))]


def argument(norm: fx.Node, i: int) -> fx.Node:
    """The node that a norm takes as its argument i: 0 what it reads, 3 and 4 its running mean and variance."""
    node = norm.args[i]
    assert isinstance(node, fx.Node)
    return node


def _late(norms: int) -> int:
    """How many of that many norms are late."""
    return max(1, round(LATE * norms))


def _reading_norms(victim: Victim) -> dict[str, str]:
    """Per layer node, the first batch norm that reads it through sums and other channelwise operations of its width."""
    readers = {}
    for layer in victim.layers:
        reached = {layer.node}
        for node in victim.program.graph.nodes:
            if not any(source.name in reached for source in node.all_input_nodes):
                continue
            if op_name(node) == "batch_norm":
                readers[layer.node] = node.name
                break
            if op_name(node) in CHANNELWISE:
                reached.add(node.name)
    return readers
