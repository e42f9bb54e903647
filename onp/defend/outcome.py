"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape

from torch import nn

from onp.defend.report.diagnostics import Diagnostics
from onp.defend.report.page import render
from onp.defend.report.report import Report
from onp.defend.report.sections import Provenance
from onp.model.mask import Mask
from onp.model.victim import Victim


@dataclass(frozen=True, eq=False)
class Outcome:
    """The report, and the repaired network where there is one."""

    report: Report
    diagnostics: Diagnostics  #: what the page shows beside the report
    mask: Mask  #: what was pruned; all units are kept where nothing was
    victim: Victim  #: repaired, and tuned with --tune; the network as given where nothing was repaired

    @property
    def network(self) -> nn.Module:
        """The repaired network, in eval mode, float32; a copy of the given one where nothing was repaired."""
        return self.victim.model

    def with_provenance(self, provenance: Provenance) -> Outcome:
        """The same with the files that it comes from."""
        return replace(self, report=replace(self.report, provenance=provenance))

    def html(self) -> str:
        """The page: one self-contained document."""
        return render(self.report, self.diagnostics)

    def __str__(self) -> str:
        return self.report.to_text()

    def _repr_html_(self) -> str:
        # In a frame of its own, so that the styles of page and notebook leave each other alone.
        return (
            f'<iframe title="onp report" style="width: 100%; height: 40em; border: 0" srcdoc="{escape(self.html())}"></iframe>'
        )
