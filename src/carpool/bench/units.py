"""Quantities as people type them on a command line: `60s`, `1h`, `10-50`, `200..1000`."""

from __future__ import annotations

import re

from carpool.errors import ConfigError

_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str, may_be_none: bool = False) -> float:
    """`500ms`, `60s`, `2m`, `1h`, or a plain number of seconds; `0` only if that means something."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|)", text.strip())
    if not found or not (float(found[1]) or may_be_none):
        raise ConfigError(f'duration "{text}" is not one', "allowed: 500ms, 60s, 2m, 1h")
    return float(found[1]) * _SECONDS[found[2]]


def span(text: str) -> tuple[int, int]:
    """`128`, or `10-50`: the least and the most."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise ConfigError(f'"{text}" is no number of tokens', "allowed: 128, or a range such as 10-50")
    return low, high


def numbers(text: str) -> list[int]:
    """`200,500,1000`, or `200..1000` for five evenly spread from the first to the last."""
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", text.strip()):
        low, high = int(found[1]), int(found[2])
        listed = sorted({low + (high - low) * step // 4 for step in range(5)})
    else:
        listed = [int(part) for part in text.split(",") if part.strip().isdecimal()]
        listed = listed if len(listed) == len(text.split(",")) else []
    if not listed or min(listed) < 1:
        raise ConfigError(f'"{text}" is no list of numbers', "allowed: 200,500,1000, or 200..1000")
    return listed
