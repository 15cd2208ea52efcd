"""Names: what is allowed, and that whatever is allowed is safe where it is used."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from blockvault.errors import BadRequest
from blockvault.model import refs
from blockvault.model.names import (
    MAX_NAME_BYTES,
    check_new_name,
    check_ref_name,
    check_volume_name,
)

GOOD_REFS = ["main", "feature/x", "v1.0", "a-b_c", "größe", "x@y", "a{b}", "1234abcd", "a/b/c", "é"]
BAD_REFS = [
    *("", "HEAD", "@", "-x", "/a", "a/", "a//b", ".a", "a/.b", "a.", "a./b", "a..b", "a.lock"),
    *("a.lock/b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a@{1}", "a\n", "a\x7f"),
    *("a\u200b", "a\u202eb", "\ud800", "x" * (MAX_NAME_BYTES + 1), "é" * (MAX_NAME_BYTES // 2 + 1)),
]
GOOD_VOLUMES = ["vda", "disk 1", "My VM (2)", "root.ext4", "größe", "a~b", "x@y", "v" * 200]
BAD_VOLUMES = [
    *("", ".", "..", ".hidden", "-rf", " a", "a ", "a.", "a/b", "a\\b", "a:b", "a*", 'a"b', "a<b"),
    *("a|b", "a?", "a\0b", "a\nb", "a\x1b[31m", "con", "NUL.raw", "COM1", "a\u2028b", "a\xa0b"),
    "\ud800",
    "v" * (MAX_NAME_BYTES + 1),
]


@pytest.mark.parametrize("name", GOOD_REFS)
def test_good_names_of_branches(name: str) -> None:
    assert check_ref_name(name) == name


@pytest.mark.parametrize("name", BAD_REFS)
def test_bad_names_of_branches(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_ref_name(name)
    assert caught.value.reason == "bad-name"
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("name", ["heads/x", "tags/v1", "heads/a/b", *BAD_REFS])
def test_bad_names_of_new_branches(name: str) -> None:
    """What a revision would take for a branch ``x`` or a tag ``v1``."""
    with pytest.raises(BadRequest) as caught:
        check_new_name(name)
    assert caught.value.reason == "bad-name"


@pytest.mark.parametrize("name", ["heads", "tags", "headstone/x", "a/heads/x", *GOOD_REFS])
def test_good_names_of_new_branches(name: str) -> None:
    assert check_new_name(name) == name


@pytest.mark.parametrize("name", GOOD_VOLUMES)
def test_good_names_of_volumes(name: str) -> None:
    assert check_volume_name(name) == name


@pytest.mark.parametrize("name", BAD_VOLUMES)
def test_bad_names_of_volumes(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_volume_name(name)
    assert caught.value.reason == "bad-name"
    assert caught.value.message.isprintable()


@given(st.text(max_size=12))
def test_a_valid_name_is_a_revision_of_itself(name: str) -> None:
    try:
        check_ref_name(name)
    except BadRequest:
        assume(False)
    for text in (name, f"{name}~2^", f"{name}@{{#7}}"):
        assert refs.parse(text, 0).base == name
        assert refs.split_volume(f"{text}:vda") == (text, "vda")


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(st.text(st.sampled_from("ab/\\.: ~\0\n-_conul1"), max_size=6))
def test_a_valid_volume_name_is_one_file_name(name: str) -> None:
    try:
        check_volume_name(name)
    except BadRequest:
        assume(False)
    file = f"{name}.raw"
    assert os.path.normpath(os.path.join("/x", file)) == f"/x/{file}"
    assert PurePosixPath(file).name == PureWindowsPath(file).name == file
    assert refs.split_volume(f"main:{name}") == ("main", name)


@pytest.mark.parametrize("name", GOOD_REFS)
def test_git_accepts_the_names_that_we_accept(need_tool: Callable[[str], str], name: str) -> None:
    command = [need_tool("git"), "check-ref-format", "--branch", name]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
