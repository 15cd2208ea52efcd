"""The file that results are kept in: what must be in it for all that reads results to work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.bench import shape
from tools.bench.shape import NUMBER, TEXT, Every

FACTS = {
    "when": str,
    "commit": str,
    "mode": str,
    "plan": {"part": [int]},
    "duration": NUMBER,
    "processor": str,
    "cores": int,
    "memory": NUMBER,
    "system": str,
    "kernel": str,
    "python": str,
    "file_system": str,
    "load_before": NUMBER,
    "load_after": NUMBER,
    "images": str,
    "inputs": [{"name": str, "size": NUMBER, "data": NUMBER, "new": NUMBER}],
    "libraries": Every(str),
    "contenders": Every({"title": str, "missing": TEXT, "version": TEXT}),
}
ROW = {
    "key": str,
    "group": str,
    "title": str,
    "unit": str,
    "limit": str,
    "series": str,
    "work": NUMBER,
}
MAYBE = (*NUMBER, type(None))
SAMPLE = {"value": NUMBER, "cpu": MAYBE, "peak": MAYBE, "settle": MAYBE}
CELL = {"state": str, "reason": str, "samples": [SAMPLE]}
ORIGIN = (3, 4, 6)  # words: commit, time, part; in later ones processor; and cores, file system
DOCUMENT = {
    "facts": FACTS,
    "rows": [ROW],
    "cells": Every(Every(CELL)),
    "commands": Every(Every([str])),
    "origins": Every([[str]]),
    "scopes?": Every({"mode": TEXT}),
}


def read(path: Path, version: int) -> dict[str, Any]:
    """The document in a file; ``ValueError`` names the file, and what is wrong with it."""
    document = shape.read(path)
    if not isinstance(document, dict) or document.get("format") != version:
        raise ValueError(f"{path}: holds no benchmark results of format {version}")
    if problem := shape.wrong(document, DOCUMENT) or _loose(document):
        raise ValueError(f"{path}: {problem}")
    return document


def _loose(document: dict[str, Any]) -> str | None:
    """What is said of rows that are not there, or not said of one that is."""
    keys = {row["key"] for row in document["rows"]}
    if lost := keys - document["cells"].keys():
        return f"row {min(lost)!r} has no cells"
    for name in ("cells", "commands", "origins"):
        if lost := document[name].keys() - keys:
            return f"{name} has {min(lost)!r}, which is no row"
    for key, origins in document["origins"].items():
        if not origins or any(len(each) not in ORIGIN for each in origins):
            return f"origins.{key} is not a list of runs"
    return None
