"""What networks without a backdoor show for the fresh triggers of the audit, measured once by `bench/clean_reference.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from onp.errors import InputError

LIMIT = 2**20  #: bytes of the file that are read


@dataclass(frozen=True)
class CleanReference:
    """The surrogate ASR that few networks without a backdoor exceed.

    Example:
        >>> reference = CleanReference({"patch": 0.2}, 24, "2026-11-29-0a1b2c3d")
        >>> reference.share("patch"), reference.share("known")
        (0.2, None)
    """

    shares: dict[str, float]  #: per trigger family that was measured: 95th percentile, in [0, 1]
    networks: int  #: clean networks that they were measured on
    version: str  #: date and hash of the recipe

    def share(self, family: str) -> float | None:
        """The share of a trigger family by its plain name; None where it was not measured."""
        return self.shares.get(family)


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
        path: JSON with `shares` (family to a share in [0, 1], or null where it was not measured), `networks` and `version`.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            document: Any = json.loads(file.read(LIMIT))
        networks, version = document["networks"], document["version"]
        shares = {str(family): float(share) for family, share in document["shares"].items() if share is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path) from error
    in_range = all(0 <= share <= 1 for share in shares.values())
    if not (in_range and type(networks) is int and networks >= 0 and isinstance(version, str)):
        raise _damaged(path)
    return CleanReference(shares, networks, version)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is missing or damaged; install onp again.")
