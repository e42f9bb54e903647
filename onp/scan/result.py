"""What a scan returns, and the exit code that goes with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from onp.defend.decision import EVIDENCE, NOTHING, UNUSABLE, exit_code
from onp.scan.row import Row


@dataclass(frozen=True, eq=False)
class ScanResult:
    """The rows of all models, and what was left out of the folders."""

    rows: tuple[Row, ...]  #: highest probability first, those without a verdict last
    left_out: Counter[str] = field(default_factory=Counter)  #: number of other files and folders, by what they are
    text: str | None = None  #: the report of the model, where there is one model only and it was scanned now

    def exit_code(self, fail_on: str = "evidence") -> int:
        """The worst exit code of the models.

        Args:
            fail_on: "evidence": evidence of a backdoor, or a checkpoint that can run code when it is opened, is 1;
                "inconclusive": so is an inconclusive scan, and a model that could not be scanned; "never": neither.
                Whatever it is, the code is 2 where no model could be examined.
        """
        if all(row.kind in ("unusable", "crashed") for row in self.rows):
            return UNUSABLE
        codes = [NOTHING]
        for row in self.rows:
            if row.decision is not None:
                codes.append(exit_code(row.decision, fail_on))
            elif fail_on == "inconclusive" or (row.kind == "unsafe" and fail_on == "evidence"):
                codes.append(EVIDENCE)
        return max(codes)

    def summary(self) -> str:
        """One line: how many models came to what, and what was left out."""
        counts = Counter(row.status for row in self.rows)
        found = ", ".join(f"{count} {status}" for status, count in counts.items())
        others = self.others()
        models = "1 model" if len(self.rows) == 1 else f"{len(self.rows)} models"
        return f"{models}: {found}." + (f" Left out: {others}." if others else "")

    def others(self) -> str:
        """What was left out, in words; empty for nothing."""
        return ", ".join(f"{count} {what}" for what, count in sorted(self.left_out.items()))
