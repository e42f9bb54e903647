"""One search problem: what every search over masks is given."""

from __future__ import annotations

from dataclasses import dataclass

from onp.search.env import PruneEnv
from onp.search.features import NodeFeatures, Saliency
from onp.search.neuron_graph import NeuronGraph


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """The environment, and what is known of the units before the first mask is scored."""

    env: PruneEnv
    features: NodeFeatures
    saliency: Saliency  #: measures the attributions of `features` again at other masks
    graph: NeuronGraph
