"""What networks without a backdoor show for the fresh triggers of the audit, measured once by `bench/clean_reference.py`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from onp.errors import InputError

LIMIT = 2**20  #: bytes of the file that are read


@dataclass(frozen=True)
class CleanReference:
    """The surrogate ASR that few networks without a backdoor exceed.

    Triggers of a family that is anomalously cheap for the target class carry what the backdoor does, and clean networks hardly
    follow them. Those of another family lead many clean networks to the class as well, so it has a share of its own.

    Example:
        >>> reference = CleanReference({"patch": 0.2}, 24, "2026-11-29-0a1b2c3d", ordinary={"patch": 0.7})
        >>> reference.share("patch", 8.1), reference.share("patch", 0.4), reference.share("known")
        (0.2, 0.7, None)
    """

    shares: dict[str, float]  #: per trigger family that was measured: 95th percentile, in [0, 1]
    networks: int  #: clean networks that they were measured on
    version: str  #: date and hash of the recipe
    ordinary: dict[str, float] = field(default_factory=dict)  #: the same of families that are not anomalously cheap
    anomalous_from: float = 3.5  #: anomaly index of the target class from which a family is anomalously cheap

    def share(self, family: str, anomaly_index: float | None = None) -> float | None:
        """The share of a trigger family; None where it was not measured.

        Args:
            family: by its plain name.
            anomaly_index: of the target class by the family's cost; None for a trigger that was given.
        """
        cheap = anomaly_index is None or anomaly_index >= self.anomalous_from
        return (self.shares if cheap else self.ordinary).get(family)


@cache
def clean_reference() -> CleanReference:
    """The reference that is part of the package.

    Raises:
        InputError: the installed file is missing or damaged.
    """
    with as_file(files("onp") / "pretrained" / "clean_reference.json") as path:
        return read_clean_reference(path)


def read_clean_reference(path: Path) -> CleanReference:
    """Read a file of `bench/clean_reference.py`.

    Args:
        path: JSON with `shares` and `ordinary` (family to a share in [0, 1], or null where it was not measured), `networks`,
            `version` and `anomalous_from`.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            document: Any = json.loads(file.read(LIMIT))
        shares, ordinary = _measured(document["shares"]), _measured(document["ordinary"])
        networks, version, index = document["networks"], document["version"], float(document["anomalous_from"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path) from error
    in_range = all(0 <= share <= 1 for share in (*shares.values(), *ordinary.values())) and math.isfinite(index)
    if not (in_range and type(networks) is int and networks >= 0 and isinstance(version, str)):
        raise _damaged(path)
    return CleanReference(shares, networks, version, ordinary, index)


def _measured(shares: Any) -> dict[str, float]:
    return {str(family): float(share) for family, share in shares.items() if share is not None}


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is missing or damaged; install onp again.")
