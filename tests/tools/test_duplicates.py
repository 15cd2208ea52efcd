"""The finder of duplicates finds them, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "duplicates"

ORIGINAL = """
def total(rows, limit):
    count = 0
    for row in rows:
        if row.size > limit and row.name not in seen:
            count += row.size * 2
            seen.add(row.name)
        else:
            log.warning("skipped %s", row.name)
    return count
"""


def find(folder: Path, *sources: str) -> tuple[int, str]:
    for number, source in enumerate(sources):
        (folder / f"m{number}.py").write_text(source)
    done = subprocess.run(
        [sys.executable, str(TOOL), "--weight", "40", str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_renamed_code_is_found(tmp_path) -> None:
    copy = ORIGINAL.replace("rows", "items").replace("row", "item").replace("2", "7")
    code, text = find(tmp_path, ORIGINAL, "import os\n" + copy)
    assert code == 1
    assert text.count("alike") == 1
    assert "m0.py:3-10" in text
    assert "m1.py:4-11" in text


def test_a_part_of_a_function_is_found(tmp_path) -> None:
    longer = ORIGINAL.replace("    return count", "    rows.clear()\n    return -count")
    code, text = find(tmp_path, ORIGINAL, longer)
    assert code == 1
    assert "m0.py:3-9" in text


def test_other_code_is_not_found(tmp_path) -> None:
    other = ORIGINAL.replace("row.size", "row.length")
    assert find(tmp_path, ORIGINAL, other) == (0, "")


def test_code_is_no_duplicate_of_itself(tmp_path) -> None:
    assert find(tmp_path, ORIGINAL) == (0, "")
