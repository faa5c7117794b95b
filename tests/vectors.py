"""Reads ``protocol/vectors``; knows nothing of Soloist, as any implementer's tests would not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent.parent / "protocol" / "vectors"
ID_BYTES = 16


def load(name: str) -> list[dict[str, Any]]:
    """Give the cases of one file: ``messages``, ``cases`` (of ``invalid``) or ``dialogues``."""
    file = {"cases": "invalid"}.get(name, name)
    return json.loads((VECTORS / f"{file}.json").read_text(encoding="utf-8"))[name]


class Values:
    """What stands for a value in a file, and the values that one play of a dialogue has met.

    Attributes:
        kept: what was heard, by the name under which ``$kept`` finds it.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self._fresh: dict[str, bytes] = {}

    def of(self, item: Any) -> Any:
        """Give the value that a piece of JSON stands for."""
        if isinstance(item, list):
            return [self.of(element) for element in item]
        if not isinstance(item, dict):
            return item
        [key, *others] = item or [""]
        if others or not key.startswith("$"):
            return {key: self.of(value) for key, value in item.items()}
        return self._special(key, item[key])

    def _special(self, key: str, about: Any) -> Any:
        match key:
            case "$bin":
                return bytes.fromhex(about)
            case "$int":
                return int(about)
            case "$repeat":
                return about[0] * about[1]
            case "$fresh":
                return self._fresh.setdefault(about, os.urandom(ID_BYTES))
            case "$fresh_text":
                return self._fresh.setdefault(f"{about} as text", os.urandom(ID_BYTES)).hex()
            case "$kept":
                return self.kept[about]
        raise ValueError(f"{key} stands for nothing")


def value_of(item: Any) -> Any:
    """Give the value that a piece of JSON without ``$fresh`` and ``$kept`` stands for."""
    return Values().of(item)


def find(value: Any, path: str) -> tuple[bool, Any]:
    """Whether there is something at ``path`` (keys and places, with dots between), and what."""
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return False, None
    return True, value
