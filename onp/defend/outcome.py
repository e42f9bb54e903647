"""What a run returns."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from torch import nn

from onp.defend.folder import check_folder
from onp.defend.outputs import write_outputs
from onp.defend.report.diagnostics import Diagnostics
from onp.defend.report.page import render
from onp.defend.report.report import Report
from onp.defend.report.sections import Provenance
from onp.detect.known_trigger import KNOWN
from onp.model.logits_alone import as_given
from onp.model.mask import Mask
from onp.model.victim import Victim

LONGEST = 180  # characters of a sentence in the short form


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """The report, and the repaired network where there is one."""

    report: Report
    diagnostics: Diagnostics  #: what the page shows beside the report
    mask: Mask  #: what was pruned; all units are kept where nothing was
    victim: Victim  #: repaired, and tuned with --tune; the network as given where nothing was repaired

    @property
    def network(self) -> nn.Module:
        """The repaired network, in eval mode, float32; a copy of the given one where nothing was repaired."""
        return as_given(self.victim.model)

    def with_provenance(self, provenance: Provenance) -> Outcome:
        """The same with the files that it comes from."""
        return replace(self, report=replace(self.report, provenance=provenance))

    def save(self, folder: str | Path) -> None:
        """Write what `--out` writes: the report, and for a repair the network, the mask and a model card.

        A live network, which comes from no file, is written as `model.safetensors`: its state dict under its own names.

        Args:
            folder: new or empty.

        Raises:
            InputError: it holds something, or the disk refused.
        """
        check_folder(Path(folder), resume=False)
        write_outputs(self, str(folder))

    def html(self) -> str:
        """The page: one self-contained document."""
        return render(self.report, self.diagnostics)

    def __str__(self) -> str:
        """Decision, what was measured, ACC and the strongest surrogate, the warning, and what to do; `report.to_text()` is the
        whole report."""
        report = self.report
        before, after = report.before, report.final
        figures = f"ACC {100 * before.acc.value:.1f} % -> {100 * after.acc.value:.1f} %"
        if after.asr_surrogate:
            name = max(after.asr_surrogate, key=lambda family: after.asr_surrogate[family].value)
            shares = (100 * each.asr_surrogate[name].value for each in (before, after))
            what = "known trigger" if name == KNOWN else f"strongest surrogate trigger ({name})"
            figures += f"; {what}: ASR {' -> '.join(f'{share:.1f} %' for share in shares)}"
        lines = [f"Decision: {report.decision}", report.headline, f"{figures}."]
        lines += [f"Warning: {report.warning}"] if report.warning else []
        lines += [f"What to do: {report.next_steps[0]}"] if report.next_steps else []
        short = (textwrap.shorten(line, LONGEST, placeholder=" ...") for line in lines)
        return "\n  ".join(short)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # In a frame of its own, so that the styles of page and notebook leave each other alone.
        return (
            f'<iframe title="onp report" style="width: 100%; height: 40em; border: 0" srcdoc="{escape(self.html())}"></iframe>'
        )
