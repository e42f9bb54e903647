"""How much to try: the numbers behind --preset."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onp.detect.config import DetectConfig, InversionConfig
from onp.engine.metrics import VALUES_AT_ONCE
from onp.model.heal import HealConfig
from onp.search.agent import PAPER, AgentConfig
from onp.search.first_order import FirstOrderConfig
from onp.search.objective import Objective
from onp.search.setup import SearchConfig
from onp.search.single_toggles import Patience


@dataclass(frozen=True)
class Preset:
    """Settings of detection, search, healing and tuning."""

    detect: DetectConfig
    search: SearchConfig
    heal: HealConfig | None = HealConfig()  #: None for pruning alone
    values_at_once: int = VALUES_AT_ONCE  #: pixel values of the images that triggers are inverted on together
    tuning_passes: int = 1_000_000  #: images a stage of --tune may process; no recipe needs as many for a few hundred images

    def with_objective(self, objective: Objective) -> Preset:
        """The same with another objective of the search."""
        return replace(self, search=replace(self.search, objective=objective))

    def with_max_acc_drop(self, share: float) -> Preset:
        """The same with another accuracy budget, a share of the images."""
        return self.with_objective(self.search.objective.with_budget(share))

    def with_budget_parts(self, parts: tuple[float, ...]) -> Preset:
        """The same with other parts of the accuracy budget that masks may cost, see `SearchConfig.budget_parts`."""
        return replace(self, search=replace(self.search, budget_parts=parts))

    def with_known_trigger(self) -> Preset:
        """The same for a known trigger.

        The ASR is then that of the attack itself, so its last per cent counts for more than accuracy within the budget,
        agreement on augmented images of the target class and the number of units; the backdoor score, which stands for what
        surrogate triggers miss, counts nothing.
        """
        objective = self.search.objective
        w_acc, w_target, w_size = objective.w_acc / 2, objective.w_target / 16, objective.w_size / 16
        return self.with_objective(replace(objective, w_acc=w_acc, w_target=w_target, w_size=w_size, w_backdoor=0.0))


_FAST = DetectConfig(passes=1, refine=InversionConfig(steps=40, images=12, min_confidence=0.97), starts=3)
_THOROUGH = DetectConfig(passes=4, refine=InversionConfig(steps=150, images=32, min_confidence=0.97), starts=8)

PRESETS = {
    "fast": Preset(_FAST, SearchConfig(FirstOrderConfig(max_evaluations=100))),
    "default": Preset(DetectConfig(), SearchConfig(FirstOrderConfig(max_evaluations=100))),
    "thorough": Preset(
        _THOROUGH, SearchConfig(FirstOrderConfig(max_evaluations=3000, patience=Patience(samples=24, least_gain=0.0)), rounds=2)
    ),
    # A graph network learns which units to toggle; all else as in "default".
    "agent": Preset(DetectConfig(), SearchConfig(AgentConfig(max_evaluations=200))),
    # The paper uses the activations on clean images, no BN statistics, and pruning alone.
    "paper": Preset(
        DetectConfig(refine=replace(DetectConfig().refine, bn_match_weight=0.0)),
        SearchConfig(replace(PAPER, max_evaluations=1000), Objective(w_backdoor=0.0)),
        heal=None,
    ),
}
