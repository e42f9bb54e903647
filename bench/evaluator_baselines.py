"""Ways to count the hits of masks: what users write by hand, torch.compile, and Evaluator. Each has `score(masks)`.

`score` takes bool `[B, U]` and returns int64 `[B, 2]` on the CPU: clean images classified as labelled, triggered images of
other classes classified as the target. A peer's images are those of a case (bench/cases.py); the time of one of its masks
does not depend on the mask, Evaluator's does.
"""

import copy
import operator
from collections.abc import Callable

import torch
from cases import Case
from torch import Tensor, fx, nn

from onp.engine.evaluator import Evaluator
from onp.engine.settings import EvaluatorSettings
from onp.model.interpret import expand_units, logits_node
from onp.model.victim import victim_from_module

BATCH = {"cpu": 125, "cuda": 500}  # images that a peer runs together


class _Batched:
    """Hits over the images of a case, a batch at a time; `last`: the logits of the last mask."""

    def __init__(self, case: Case, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        self.layers = case.victim.layers
        self.device, self.dtype, self.precise = case.victim.device, dtype, dtype == torch.float32
        images = torch.cat([case.clean.images, case.triggered.images]).to(self.device, dtype, memory_format=memory_format)
        # Batches of one size: another size would be compiled anew.
        self.batches = images.tensor_split(-(-len(images) // BATCH[self.device.type]))
        self.expected = torch.cat([case.clean.labels, case.triggered.target]).to(self.device)
        counts = torch.cat([torch.ones_like(case.clean.labels).bool(), case.triggered.labels != case.triggered.target])
        self.counts, self.border = counts.to(self.device), len(case.clean.labels)

    @torch.no_grad()
    def score(self, masks: Tensor) -> Tensor:
        rows = []
        for mask in masks.to(self.device):
            self.apply(mask)
            self.last = logits = torch.cat([self.logits(batch).float() for batch in self.batches])
            hits = (logits.argmax(1) == self.expected) & self.counts
            rows.append(torch.stack([hits[: self.border].sum(), hits[self.border :].sum()]))
        return torch.stack(rows).cpu()

    def apply(self, mask: Tensor) -> None:
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Hooks(_Batched):
    """(a) The network itself in float32, masks multiplied in by forward hooks: what every public defence does."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, torch.float32, torch.contiguous_format)
        self.model = copy.deepcopy(case.victim.model)
        modules = dict(self.model.named_modules())
        self.gates: list[Tensor] = [torch.ones(layer.units, device=self.device) for layer in self.layers]
        for number, layer in enumerate(self.layers):
            # Masking a conv alone would leave the shift of the norm after it; some are read by norms and by a sum.
            owners = {modules[key.rpartition(".")[0]] for key in layer.norm}
            if layer.node in layer.mask_nodes:
                owners.add(modules[layer.name])
            for owner in owners:
                owner.register_forward_hook(self._hook(number, 1 if layer.kind == "conv" else -1))

    def _hook(self, number: int, dim: int):
        return lambda module, inputs, output: output * expand_units(self.gates[number], output.dim(), dim)

    def apply(self, mask: Tensor) -> None:
        self.gates = [mask[layer.offset : layer.offset + layer.units].float() for layer in self.layers]

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images)


class Folded(_Batched):
    """(b) The network channels-last in `dtype`, masks folded into its weights, norms left as they are."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        super().__init__(case, dtype, torch.channels_last)
        self.model = copy.deepcopy(case.victim.model).to(dtype=dtype, memory_format=torch.channels_last)
        state = self.model.state_dict()
        self.owned = [(layer, state[key]) for layer in self.layers for key in (layer.weight, layer.bias, *layer.norm) if key]
        self.original = [tensor.clone() for _, tensor in self.owned]

    def apply(self, mask: Tensor) -> None:
        for (layer, tensor), original in zip(self.owned, self.original, strict=True):
            gate = mask[layer.offset : layer.offset + layer.units]
            torch.mul(original, expand_units(gate, tensor.dim(), 0), out=tensor)

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images)


class Compiled(_Batched):
    """(c) torch.compile at its best: norms folded by freezing (CPU), max-autotune with CUDA graphs (GPU); channels-last.

    Freezing takes the weights for constants, so the masks are an input and multiply the outputs of the layers.
    """

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        super().__init__(case, dtype, torch.channels_last)
        victim = case.victim
        model = copy.deepcopy(victim.model).to(dtype=dtype, memory_format=torch.channels_last)
        captured = victim_from_module(model, victim.normalisation, victim.input_shape, device=self.device)  # in float32
        gated = _gated(captured).to(dtype=dtype, memory_format=torch.channels_last)
        if self.device.type == "cpu":
            torch._inductor.config.freezing = True
            self.model = torch.compile(gated)
        else:
            torch.backends.cudnn.benchmark = True  # for the convs that are left to cuDNN
            self.model = torch.compile(gated, mode="max-autotune")

    def apply(self, mask: Tensor) -> None:
        self.gates = mask.to(self.dtype)

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images, self.gates)


def _gated(victim) -> nn.Module:
    """The captured graph with a second input: gates `[U]` that multiply the outputs of the layers."""
    graph = copy.deepcopy(victim.program.graph)
    (image,) = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(image):
        gates = graph.placeholder("gates")
    layers = {name: layer for layer in victim.layers for name in layer.mask_nodes}
    last = logits_node(graph).name
    for node in list(graph.nodes):
        if (layer := layers.get(node.name)) is None or node.name == last:
            continue
        shape = [-1, 1, 1] if layer.kind == "conv" else [-1]
        with graph.inserting_after(node):
            part = graph.call_function(operator.getitem, (gates, slice(layer.offset, layer.offset + layer.units)))
        with graph.inserting_after(part):
            part = graph.call_method("view", (part, shape))
        with graph.inserting_after(part):
            product = graph.call_function(torch.mul, (node, part))
        node.replace_all_uses_with(product, delete_user_cb=lambda user, product=product: user is not product)
    return fx.GraphModule(victim.program, graph)


class Ours:
    """(d) Evaluator as a user gets it; `commit` as in an episode.

    On a GPU always in bfloat16: a random network's logits lie so close together that "auto" may take float32 for it.
    """

    def __init__(self, case: Case, **options) -> None:
        if case.victim.device.type == "cuda":
            options = {"precision": "bfloat16"} | options
        self.evaluator = Evaluator(case.victim, case.clean, [case.triggered], settings=EvaluatorSettings(**options))
        self.commit, self.precise = self.evaluator.commit, self.evaluator.precision == "float32"

    def score(self, masks: Tensor) -> Tensor:
        scores = self.evaluator.score(masks)
        return torch.cat([scores.acc_count[:, None], scores.asr_count], 1)


def peers(case: Case) -> dict[str, Callable[[], _Batched]]:
    """What makes the peers, by name, but for the hooks; where bfloat16 has no matrix units, their float32 variants too."""
    slow = case.victim.device.type == "cpu" and not torch.cpu._is_amx_tile_supported()
    best = torch.float32 if slow else torch.bfloat16
    found: dict[str, Callable[[], _Batched]] = {"(b) folded, bfloat16": lambda: Folded(case, torch.bfloat16)}
    if slow:
        found["(b) folded, float32"] = lambda: Folded(case, torch.float32)
    found[f"(c) torch.compile, {str(best).removeprefix('torch.')}"] = lambda: Compiled(case, best)
    return found
