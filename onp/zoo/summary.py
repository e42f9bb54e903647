"""What a zoo holds, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


def line(card: dict[str, Any]) -> str:
    """A network in one line."""
    training = card["training"]
    found = "  ".join(f"{each['attack']} ASR {100 * each.get('asr', math.nan):.0f} %" for each in card["backdoors"])
    after = "" if card["after"] == "none" else f"  {card['after']}"
    network = f"{card['index']:04d}  {training['data']:<8}{card['arch']:<46}ACC {100 * card['acc']:.0f} %"
    return f"{network}  {found or 'clean'}{after}  {card['seconds']:.0f} s"


def summary(cards: Sequence[dict[str, Any]]) -> str:
    """What the networks of a zoo are, in a few lines."""
    clean = sum(bool(card["clean"]) for card in cards)
    working = sum(any(each["works"] for each in card["backdoors"]) and not card["clean"] for card in cards)
    planted = Counter(each["attack"] for card in cards for each in card["backdoors"])
    works = Counter(each["attack"] for card in cards for each in card["backdoors"] if each["works"])
    lines = (
        f"{len(cards)} networks: {clean} clean, {working} with a backdoor that works, {len(cards) - clean - working} with one "
        "that does not.",
        "Backdoors that work: " + ", ".join(f"{name} {works[name]} of {count}" for name, count in sorted(planted.items())),
        "Networks: " + _counted(card["training"]["arch"] for card in cards),
        "Data: " + _counted(card["training"]["data"] for card in cards),
        "After the training: " + _counted(card["after"] for card in cards),
    )
    return "\n".join(lines)


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))
