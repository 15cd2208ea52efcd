"""The main job from end to end, by the real program on small images."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.cli import describe, main, output

BLOCK = 4096


def changed(source: Path, target: Path, writes: dict[int, bytes]) -> Path:
    """A copy of an image with some bytes replaced."""
    data = bytearray(source.read_bytes())
    for offset, new in writes.items():
        data[offset : offset + len(new)] = new
    target.write_bytes(data)
    return target


def test_import_reports_what_changed(cli, make_image, tmp_path) -> None:
    first = make_image("disk.img", {0: 1, 9: 2}, count=64, tail=10)
    second = changed(first, tmp_path / "disk2.img", {5000: b"hello", 64 * BLOCK: b"0123456789"})
    assert "empty vault" in cli("init").out
    out = cli("import", first, "-m", "one\nmore").out
    assert out.splitlines()[0].startswith("[main ")
    assert out.splitlines()[0].endswith("] one")
    assert out.splitlines()[1].split() == ["disk", "256.0", "KiB", "new"]
    out = cli("import", second, "--volume", "disk", "-m", "two").out
    assert f"{output.size(BLOCK + 10)} changed in 2 ranges" in out
    assert "unchanged" in cli("import", second, "--volume", "disk").out


def test_every_version_comes_out_as_it_went_in(cli, make_image, tmp_path) -> None:
    images = [make_image("v0.img", {0: 1, 30: 2}, count=100, tail=17)]
    cli("init")
    cli("import", images[0], "--volume", "vda")
    for step in range(1, 4):
        new = changed(images[-1], tmp_path / f"v{step}.img", {step * 7000: bytes([step]) * 9000})
        images.append(new)
        cli("import", new, "--volume", "vda", "-m", f"step {step}")
    for back, original in enumerate(reversed(images)):
        cli("export", f"main~{back}:vda", f"out{back}.img")
        assert (tmp_path / f"out{back}.img").read_bytes() == original.read_bytes()
        assert cli("diff", "--exit-code", f"main~{back}", original).out == ""
    cut = cli("cat", "main~3:vda", "--offset", "4000", "--length", "200").raw
    assert cut == images[0].read_bytes()[4000:4200]
    assert "OK" in cli("verify").out


def test_rollback_keeps_history_and_can_be_undone(world) -> None:
    out = world("rollback", "main", "main~1").out
    assert "It was at main@{#" in out
    undo = out.rstrip().rpartition(" ")[2]
    assert world("diff", "--exit-code", "main", "test").out == ""
    world("rollback", "main", undo)
    world("export", "main:vda", "after.img")
    assert (world.path / "after.img").read_bytes() == (world.path / "second.img").read_bytes()
    kinds = [move["kind"] for move in world("reflog", "--json").lines]
    assert kinds == ["rollback", "rollback", "import", "import", "branch"]
    assert [s["message"] for s in world("log", "--json").lines][-1] == "first"


def test_branches(world) -> None:
    world("branch", "-m", "test", "staging")
    world("switch", "staging")
    assert [b["name"] for b in world("branch", "--json").lines if b["current"]] == ["staging"]
    world("branch", "-d", "main")
    assert [b["name"] for b in world("branch", "--json").lines] == ["staging"]
    deleted = [b for b in world("branch", "--deleted", "--json").lines if b["deleted"]]
    assert [b["name"] for b in deleted] == ["main"]
    world("branch", "--restore", "main")
    world("switch", "-c", "next", "main~1")
    assert world("refs").out.splitlines()[0].endswith("  HEAD")
    assert world("log", "--oneline").out.splitlines()[0].endswith("first")
    out = world("branch").out.splitlines()
    assert [line[:10].split() for line in out] == [["main"], ["*", "next"], ["staging"]]


def test_a_branch_is_told_from_others_that_had_its_name(world) -> None:
    def told(*words: str) -> tuple[int, bool]:
        branch = world("branch", *words, "--json").json
        return branch["id"], branch["deleted"]

    older, _ = told("older", "main~1")
    newer, _ = told("x")
    assert told("-d", "x") == (newer, True)
    assert told("-m", "older", "x") == (older, False)
    assert told("-d", "x") == (older, True)
    assert told("--restore", "x") == (older, False)
    assert told("-m", "x", "older") == (older, False)
    assert told("--restore", "x") == (newer, False)


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another"])
def test_a_snapshot_of_a_deleted_branch(world, again) -> None:
    """It is of no branch that has a name, though another one has got the old name."""
    world("snapshot", "-b", "test", "-m", "the last")
    world("tag", "last", "test")
    world("branch", "-d", "test")
    if again:
        world("branch", "test", "main")
    shown = world("show", "last", "--json").json
    assert (shown["branch"], shown["snapshot"]["message"]) == (None, "the last")
    assert "State:" not in world("show", "last").out
    kinds = [event["kind"] for event in world("events", "last", "--json").lines]
    assert kinds == ["branch-created", "snapshotted"]
    refused = world("bisect", "start", "v1", "last", "--volume", "vda", code=2)
    assert "no branch that has a name" in refused.err


def test_tags(world) -> None:
    world("tag", "v2", "main")
    assert [t["name"] for t in world("tag", "--json").lines] == ["v1", "v2"]
    world("tag", "v2", "main~1", code=4)
    world("tag", "-f", "v2", "main~1")
    ids = {t["snapshot"] for t in world("tag", "--json").lines}
    assert len(ids) == 1
    world("tag", "-d", "v2")
    assert [line.split()[0] for line in world("tag").out.splitlines()] == ["v1"]
    world("tag", "-d", "v2", code=3)


def test_checkout_and_back(world) -> None:
    items = world("checkout", "main", "work", "--json").lines
    assert {item["name"]: item["mode"] for item in items} == {"vda": "new", "vdb": "new"}
    work = world.path / "work"
    assert (work / "vda.raw").read_bytes() == (world.path / "second.img").read_bytes()
    assert (work / "vdb.raw").read_bytes() == (world.path / "data.img").read_bytes()

    with open(work / "vda.raw", "r+b") as file:
        file.seek(100 * BLOCK)
        file.write(b"changed")
    saved = world("snapshot", "--from", "work", "-m", "edited", "--json").json
    assert saved["message"] == "edited"
    assert world("diff", "main~1", "main", "--extents").out == f"vda\t{100 * BLOCK}\t{BLOCK}\n"

    again = world("checkout", "main~1", "work", "--json").lines
    assert {item["name"]: item["mode"] for item in again}["vda"] == "update"
    assert {item["name"]: item["bytes_to_write"] for item in again}["vda"] <= 2 * BLOCK
    assert (work / "vda.raw").read_bytes() == (world.path / "second.img").read_bytes()


def test_a_checkout_goes_back_to_its_branch(world) -> None:
    world("branch", "dev")
    world("checkout", "dev", "work")
    with open(world.path / "work/vda.raw", "r+b") as file:
        file.write(b"changed")
    assert world("snapshot", "--from", "work", "-m", "edited").out.startswith("[dev ")
    assert world("log", "main", "--oneline").out.splitlines()[0].endswith("second")
    world("branch", "-m", "dev", "other")
    assert "no-branch" in world("snapshot", "--from", "work", "--json", code=3).err
    assert world("snapshot", "--from", "work", "-b", "other").out.startswith("[other ")


def test_a_checkout_reverts_nothing_that_is_newer(world) -> None:
    world("checkout", "main", "work")
    world("import", "second.img", "--volume", "vdb", "-m", "newer")
    with open(world.path / "work/vda.raw", "r+b") as file:
        file.write(b"changed")
    world("snapshot", "--from", "work", "-m", "edited")
    assert world("diff", "main~1", "main", "--extents").out == f"vda\t0\t{BLOCK}\n"
    world("import", "first.img", "--volume", "vda", "-m", "newer")
    with open(world.path / "work/vda.raw", "r+b") as file:
        file.write(b"CHANGED")
    refused = world("snapshot", "--from", "work", "--json", code=4).err
    assert "volume-changed" in refused
    assert "vda" in refused
    assert "changed" in world("snapshot", "--from", "work", "--force").out
    assert world("cat", "main:vda", "--length", "7").raw == b"CHANGED"


def test_checkout_dry_run_writes_nothing(finished, tmp_path) -> None:
    target = tmp_path / "work"
    assert "vda.raw" in finished("checkout", "--dry-run", "main", target).out
    assert not target.exists() or not list(target.iterdir())


def test_writes_are_events_and_any_of_them_can_be_gone_back_to(world) -> None:
    with Vault.open(world.path) as vault, vault.session("main") as session:
        device = session.device("vda")
        for value in (b"one", b"two"):
            device.write(10 * BLOCK, value)
            device.flush()
        device.trim(600 * BLOCK, BLOCK)
        device.zero(0, BLOCK)
        device.flush()
    logged = world("events", "main", "--since", "main~0", "--json").lines
    kinds = [event["kind"] for event in logged if event["kind"] != "imported"]
    assert kinds == ["wrote", "barrier", "wrote", "barrier", "trimmed", "zeroed", "barrier"]
    writes = [event for event in logged if event["kind"] == "wrote"]
    assert [(w["event"]["offset"], w["event"]["length"]) for w in writes] == [(10 * BLOCK, 3)] * 2
    first = f"main@{{#{writes[0]['seq'] + 1}}}"
    words = ["--offset", str(10 * BLOCK), "--length", "3"]
    assert world("cat", f"{first}:vda", *words).out == "one"
    assert world("cat", "HEAD:vda", *words).out == "two"
    assert "state main@{#" in world("show").out
    assert world("show", "--json").json["snapshot"] is None
    assert "changed in 3 ranges" in world("diff").out
    world("tag", "moment", first)
    assert world("cat", "moment:vda", *words).out == "one"


def test_events_read_names_again_only_for_what_came_since(tmp_path, capfd, monkeypatch) -> None:
    with Vault.create(tmp_path) as vault:
        for number in range(5):
            vault.create_branch(f"b{number}")
            vault.delete_branch(f"b{number}")
    read = []
    names = describe.branch_names
    monkeypatch.setattr(describe, "branch_names", lambda vault: read.append(1) or names(vault))
    assert main.run(["-V", str(tmp_path), "events"]) == 0
    assert capfd.readouterr().out.count("branch-deleted") == 5
    assert len(read) == 1


def test_events_are_limited(finished) -> None:
    everything = finished("events", "--json").lines
    assert [event["seq"] for event in everything] == list(range(1, len(everything) + 1))
    assert everything[0]["kind"] == "init"

    def seqs(*words: str) -> list[int]:
        return [event["seq"] for event in finished("events", "--json", *words).lines]

    last = everything[-1]["seq"]
    assert seqs("-n", "2") == [last - 1, last]
    assert seqs("-n", "0") == []
    assert seqs("--since", "1 day ago") == list(range(1, last + 1))
    assert seqs("--until", "1 day ago") == []
    assert seqs("--since", everything[-1]["time"], "-n", "5")[-1] == last
    assert seqs("--since", "v1", "--until", "main")[-1] == finished("show", "--json").json["seq"]
    text = finished("events", "-n", "1").out
    assert text.startswith(f"#{last} ")
    assert "test branch-created test from main@{#" in text


def test_log_forms(finished) -> None:
    lines = finished("log", "--oneline").out.splitlines()
    assert lines[0].endswith(" (HEAD -> main) second")
    assert lines[1].endswith("(test, tag: v1) first")
    assert len(finished("log", "-n", "1", "--oneline").out.splitlines()) == 1
    full = finished("log").out
    assert "Author:  bob" in full
    assert "\n    more to say\n" in full
    assert finished("log", "--graph", "--oneline", "--all").out.splitlines()[0].startswith("* ")
    assert len(finished("log", "--all", "test", "v1", "--json").lines) == 2
    assert finished("log", "v1", "--oneline").out.count("\n") == 1


@pytest.mark.parametrize(
    "line", ["log -n", "reflog -n", "events -n", "prune --dry-run --keep-daily"]
)
def test_more_than_there_can_be_is_all(world, line) -> None:
    assert world(*line.split(), 20 * "9").out


def test_diff_forms(finished) -> None:
    assert "vda" in finished("diff", "main~1").out
    extents = finished("diff", "main~1", "main", "--extents", "--volume", "vda").out
    assert extents == f"vda\t{7 * BLOCK}\t{2 * BLOCK}\nvda\t{1500 * BLOCK}\t{BLOCK}\n"
    new = {item["volume"]: item for item in finished("diff", "v1", "main", "--json").lines}
    assert new["vdb"]["size_a"] is None
    assert new["vda"]["changed"] == 3 * BLOCK
    assert finished("diff", "main", "main", "--exit-code").out == ""
    finished("diff", "v1", "main", "--exit-code", code=1)
    assert finished("diff", "v1", "first.img").out == ""
    finished("diff", "main", "./first.img", "--volume", "vda", "--exit-code", code=1)
    assert finished("diff", "main", "./data.img", "--volume", "vdb", "--exit-code").out == ""


def test_export_to_a_stream_and_over_a_file(finished, tmp_path) -> None:
    data = (finished.path / "data.img").read_bytes()
    with open(tmp_path / "out", "wb") as file:
        finished("export", "main:vdb", "-", stdout=file)
    assert (tmp_path / "out").read_bytes() == data
    target = tmp_path / "kept.img"
    target.write_bytes(b"precious")
    finished("export", "main:vdb", target, code=4)
    assert target.read_bytes() == b"precious"
    finished("export", "main:vdb", target, "--force", "--sync")
    assert target.read_bytes() == data
    assert {path.name for path in tmp_path.iterdir()} == {"kept.img", "out"}


@pytest.mark.parametrize("image_format", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_formats_of_other_programs(world, need_tool, image_format) -> None:
    need_tool("qemu-img")
    world("export", "main:vda", "out.img", "--format", image_format)
    world("import", "out.img", "--format", image_format, "--volume", "back", "-m", image_format)
    difference = world("diff", "main", "./second.img", "--volume", "back", "--json").lines
    assert difference == []


@pytest.mark.parametrize(
    ("name", "image_format"),
    [("a.qcow2", "qcow2"), ("a.VDI", "vdi"), ("a.vhd", "vpc"), ("a.img", "raw"), ("a", "raw")],
)
def test_the_ending_of_a_name_says_the_format(world, need_tool, name, image_format) -> None:
    need_tool("qemu-img")
    world("export", "main:vda", name)
    command = ["qemu-img", "info", "--output=json", world.path / name]
    told = subprocess.run(command, capture_output=True, check=True).stdout
    assert json.loads(told)["format"] == image_format
    world("export", "main:vda", name, "--force", "--format", "raw")
    assert (world.path / name).stat().st_size == world.path.joinpath("second.img").stat().st_size


def test_an_image_in_a_folder_whose_name_is_no_utf_8(world) -> None:
    folder = world.path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    (world.path / "first.img").rename(folder / "new.img")
    world("import", folder / "new.img")
    assert "d\N{REPLACEMENT CHARACTER}/new.img" in world("events", "-n", "1").out
    made = world("checkout", "main", folder / "work", "--json").lines
    assert {item["name"] for item in made} == {"vda", "vdb", "new"}
    (folder / "work" / "new.raw").write_bytes(b"changed")
    world("snapshot", "--from", folder / "work")
    assert "d\N{REPLACEMENT CHARACTER}/work" in world("events", "-n", "1").out
    world("verify")


def test_the_vault_is_found_named_and_told_apart(world, tmp_path) -> None:
    deep = world.path / "a" / "b"
    deep.mkdir(parents=True)
    assert world("refs", cwd=deep).out == world("refs").out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for words in (["-V", world.path, "refs"], ["refs", "--vault", world.path]):
        assert world(*words, cwd=elsewhere).out == world("refs").out
    env = {"BLOCKVAULT_VAULT": str(world.path)}
    assert world("refs", cwd=elsewhere, env=env).out == world("refs").out
    world("init", elsewhere)
    assert world("refs", cwd=elsewhere).out != world("refs").out
    assert world("refs", "-V", elsewhere, cwd=elsewhere, env=env).out.startswith("-")


def test_a_new_vault_is_made_where_the_command_line_names_it(world, tmp_path) -> None:
    working = tmp_path / "working"
    working.mkdir()
    named = {name: tmp_path / name for name in ("option", "variable", "argument")}
    env = {"BLOCKVAULT_VAULT": str(named["variable"])}
    world("init", "-V", named["option"] / ".blockvault", cwd=working)
    world("init", cwd=working, env=env)
    world("init", named["argument"], cwd=working, env=env)
    assert all((place / ".blockvault" / "data.mdb").exists() for place in named.values())
    assert not list(working.iterdir())


def test_rebuild_changes_nothing_in_a_sound_vault(world) -> None:
    before = {name: world(name).out for name in ("refs", "reflog", "log", "events")}
    assert world("rebuild", "--dry-run", "--json").json["changed_rows"] == 0
    assert world("rebuild", "--json").json["events"] == len(before["events"].splitlines())
    assert {name: world(name).out for name in before} == before


def test_every_form_of_a_revision(finished) -> None:
    """The forms in the table of docs/cli/README.md, each with the snapshot that it names."""
    second, first = (snapshot["id"] for snapshot in finished("log", "--json").lines)
    moves = finished("reflog", "main", "--json").lines
    named = {
        second: ["main", "HEAD", "main~0", "heads/main", second[:6], "main@{0 seconds ago}"],
        first: ["main~", "main~1", "main^", "v1", "tags/v1", "test", first[:4], first, "HEAD~1"],
    }
    named[second] += [moves[0]["revision"], "@{0 seconds ago}", f"@{{#{moves[0]['seq']}}}"]
    named[first] += [moves[1]["revision"], f"main@{{{moves[1]['time']}}}"]
    with Vault.open(finished.path) as vault:
        for oid, forms in named.items():
            for form in forms:
                assert vault.resolve(form).snapshot == bytes.fromhex(oid), form
