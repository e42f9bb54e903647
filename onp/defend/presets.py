"""How much to try: the numbers behind --preset."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onp.detect.bank import BankConfig
from onp.detect.inversion import FitConfig
from onp.search.agent import PAPER, AgentConfig
from onp.search.env import COUNTED, Objective
from onp.search.setup import SearchConfig


@dataclass(frozen=True)
class Preset:
    """Settings of the bank and of the search."""

    bank: BankConfig
    search: SearchConfig

    def with_max_acc_drop(self, share: float) -> Preset:
        """The same with another accuracy budget."""
        objective = replace(self.search.objective, max_acc_drop=COUNTED * share, budget=share)
        return replace(self, search=replace(self.search, objective=objective))

    def with_trigger_given(self) -> Preset:
        """The same for the attacker's own trigger: S is then the ASR itself, so that its last per cent counts for more than
        accuracy within the budget, changed copies and the number of units, and what carriers stand for is seen.
        """
        given = self.search.objective
        objective = replace(
            given, accuracy=given.accuracy / 2, changed=given.changed / 16, size=given.size / 16, remembered=0.0
        )
        return replace(self, search=replace(self.search, objective=objective))


_FAST = BankConfig(scan=FitConfig(steps=40, images=8), refine=FitConfig(steps=40, images=12, keep=0.97), starts=3)
_THOROUGH = BankConfig(scan=FitConfig(steps=120, images=24), refine=FitConfig(steps=150, images=32, keep=0.97), starts=8)

PRESETS = {
    "fast": Preset(_FAST, SearchConfig(AgentConfig(max_evaluations=100))),
    "default": Preset(BankConfig(), SearchConfig(AgentConfig(max_evaluations=200))),
    "thorough": Preset(_THOROUGH, SearchConfig(AgentConfig(max_evaluations=3000, draws=24, flips=0.5), rounds=2)),
    # The paper reads the activations on clean images and no statistics of the norms.
    "paper": Preset(
        BankConfig(refine=replace(BankConfig().refine, recall=0.0)),
        SearchConfig(replace(PAPER, max_evaluations=1000), Objective(remembered=0.0)),
    ),
}
