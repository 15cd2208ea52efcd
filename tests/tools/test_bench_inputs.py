"""Images that are made up, given, surveyed and patched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tools.bench import inputs, synthetic
from tools.bench.patch import patch

BLOCK = synthetic.BLOCK
ROOT = Path(__file__).resolve().parents[2]


def test_made_up_images_are_the_same_everywhere(tmp_path: Path) -> None:
    # pinned: figures of different machines and years are about the same bytes
    synthetic.write(tmp_path / "a", synthetic.scattered(1 << 20, 256 << 10))
    assert (tmp_path / "a").stat().st_size == 1 << 20
    sums = subprocess.run(["sha256sum", tmp_path / "a"], capture_output=True, text=True, check=True)
    assert sums.stdout.split()[0] == PINNED


PINNED = "b2cf815740aafd37dc7a2c7ea2af3f1003dfcb6cd59428e24624896d37060bc5"


def test_blocks_compress_as_real_ones_do() -> None:
    raw = b"".join(synthetic.block(seed) for seed in range(64))
    gain = len(raw) / len(zstandard.ZstdCompressor(level=3).compress(raw))
    assert 2 < gain < 4


def test_scattered_holds_the_data_it_was_asked_for() -> None:
    recipe = synthetic.scattered(64 << 20, 16 << 20)
    data = len(recipe.seeds) * BLOCK
    assert 0.8 * (16 << 20) <= data <= 1.2 * (16 << 20)
    assert max(recipe.seeds) * BLOCK < 64 << 20
    assert max(recipe.seeds) * BLOCK > 48 << 20, "spread over the whole disk"


def test_changed_changes_as_many_blocks_as_it_says() -> None:
    first = synthetic.scattered(4 << 20, 2 << 20)
    second = synthetic.changed(first, 10, generation=2)
    differ = [index for index in first.seeds if first.seeds[index] != second.seeds[index]]
    assert len(differ) == 10
    assert first.seeds.keys() == second.seeds.keys()


def test_series_shares_blocks_between_states_and_machines(tmp_path: Path) -> None:
    images = inputs.made_up(tmp_path, 4 << 20)
    found = {each.name: each for each in inputs.survey(images)}
    assert [image.machine for image in images] == ["main"] * 4 + ["second"]
    assert found["base"].new == found["base"].data > 0
    assert 0 < found["v4"].new < 0.2 * found["v4"].data
    assert 0.4 < found["b"].new / found["b"].data < 0.6, "half of another machine's blocks"


def test_survey_counts_blocks_once_and_skips_zeros(tmp_path: Path) -> None:
    content = b"a" * BLOCK + bytes(BLOCK) + b"b" * BLOCK + b"a" * BLOCK + b"tail"
    (tmp_path / "x.img").write_bytes(content)
    (tmp_path / "y.img").write_bytes(b"b" * BLOCK + b"c" * BLOCK)
    images = inputs.given([str(tmp_path / "x.img"), str(tmp_path / "y.img")])
    first, second = inputs.survey(images)
    assert (first.size, first.data, first.new) == (len(content), 3 * BLOCK + 4, 2 * BLOCK + 4)
    assert (second.data, second.new) == (2 * BLOCK, BLOCK)


def test_limits_are_measured_for_each_image(tmp_path: Path) -> None:
    images = inputs.made_up(tmp_path, 4 << 20)
    words = ["-m", "tools.bench.kernels", "series", "--scratch", str(tmp_path)]
    output = subprocess.run(
        [sys.executable, *words, *(str(image.path) for image in images)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for measured in json.loads(output):
        assert 0 < measured["stored"] < measured["new"]
        assert all(measured[name] > 0 for name in ("read", "hash", "zstd", "write", "copy"))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".img"] * 5, "nothing left"


def test_given_images_take_their_machine_from_the_prefix(tmp_path: Path) -> None:
    for name in ("a.img", "b.img"):
        (tmp_path / name).touch()
    first, second = inputs.given([str(tmp_path / "a.img"), f"other:{tmp_path / 'b.img'}"])
    assert (first.name, first.machine, second.machine) == ("a", "main", "other")


@pytest.mark.parametrize("manifest", [False, True], ids=["files", "folder"])
@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["monday/disk.img", "tuesday/disk.img"], "tuesday/disk.img"),
        (["monday/disk.img", "tuesday/disk.raw"], "tuesday/disk.raw"),
        (["base.img", "all.img"], "all.img"),
        (["unchanged.img"], "unchanged.img"),
        (["again.img"], "again.img"),
        (["main.img"], "main.img"),
    ],
)
def test_images_whose_rows_or_states_would_be_one_are_refused(
    tmp_path: Path, files: list[str], taken: str, manifest: bool
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    words = [str(tmp_path / file) for file in files]
    if manifest:
        states = [{"name": Path(each).stem, "file": each, "machine": "main"} for each in files]
        (tmp_path / inputs.MANIFEST).write_text(json.dumps({"states": states}))
        words = [str(tmp_path)]
    with pytest.raises(ValueError, match="an image needs a name of its own") as refused:
        inputs.given(words)
    assert str(refused.value).startswith(f"{tmp_path / taken}: ")


def test_a_folder_is_read_through_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.img").touch()
    states = [{"name": "first", "file": "a.img", "machine": "main", "parent": None}]
    (tmp_path / "series.json").write_text(json.dumps({"states": states}))
    (image,) = inputs.given([str(tmp_path)])
    assert image == inputs.Image("first", (tmp_path / "a.img").resolve(), "main")


def test_missing_images_and_manifests_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no image at .*nothing\.img"):
        inputs.given([str(tmp_path / "nothing.img")])
    with pytest.raises(ValueError, match=r"series\.json"):
        inputs.given([str(tmp_path)])


@pytest.mark.parametrize("size", [0, 1, BLOCK, (3 << 20) + 17])
def test_patch_makes_files_equal_and_writes_only_what_differs(tmp_path: Path, size: int) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(os.urandom(size))
    new.write_bytes(old.read_bytes())
    assert patch(str(new), str(old)) == 0
    if size >= BLOCK:
        with new.open("r+b") as file:
            file.seek(size // BLOCK // 2 * BLOCK)
            file.write(b"changed")
        assert patch(str(new), str(old)) == min(BLOCK, size)
    assert old.read_bytes() == new.read_bytes()


def test_patch_sees_holes_on_either_side(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for file, at in ((old, 1), (new, 5)):
        with file.open("wb") as out:
            out.truncate(8 << 20)
            out.seek(at << 20)
            out.write(b"x" * BLOCK)
    patch(str(new), str(old))
    assert old.read_bytes() == new.read_bytes()
