"""docs/decisions: every library in use has a page that says why, and all pages look alike."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))


def libraries() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    return {re.split(r"[<>=~!\[; ]", name)[0] for name in (*project["dependencies"], *extras)}


def test_every_library_has_a_decision() -> None:
    first_paragraphs = " ".join(page.read_text().split("\n## ")[0] for page in PAGES)
    assert {name for name in libraries() if f"`{name}`" not in first_paragraphs} == set()


def test_the_list_names_every_page_in_order() -> None:
    listed = re.findall(r"^(\d+)\. \[(.+)\]\((.+)\)$", (FOLDER / "README.md").read_text(), re.M)
    assert [name for _, _, name in listed] == [page.name for page in PAGES]
    for at, (number, title, name) in enumerate(listed, 1):
        assert int(number) == at
        assert name.startswith(f"{at:03d}-")
        assert (FOLDER / name).read_text().startswith(f"# {at}. {title}\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_says_what_why_and_at_what_cost(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.M) == ["Why", "What it costs", "Instead of"]
    assert len(text.splitlines()) <= 60
