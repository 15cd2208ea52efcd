"""What a user does to keep a vault small: policies, holds, prune and gc, through the program."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from blockvault import Vault, pins
from blockvault.cli import main
from blockvault.ops import policy, prune
from tests.conftest import skip

BLOCK = 4096


def write(world, *blocks: int) -> None:
    with Vault.open(world.path) as vault, vault.session("main") as session:
        for number in blocks:
            session.device("vda").write(number * BLOCK, bytes([number]) * BLOCK)
        session.flush()


def snapshots(world, count: int) -> list[str]:
    made = []
    for number in range(count):
        write(world, number, number + 10)
        made.append(world("snapshot", "-m", f"number {number}", "--json").json["id"])
    return made


def test_prune_forgets_and_gc_gives_back(world) -> None:
    made = snapshots(world, 5)
    world("hold", made[1], "-m", "audit")
    plan = world("prune", "--keep-last", "1", "--keep-events", "0", "--dry-run").out
    assert "held: audit" in plan
    assert "newest of main" in plan
    assert "Would forget 4 snapshots" in plan, "three of ours and 'second', but not the tag's"
    assert world("log", "--json").lines[1]["id"] == made[3], "a dry run changes nothing"
    done = world("prune", "--keep-last", "1", "--keep-events", "0", "--json").json
    assert {each["id"] for each in done["snapshots"]} >= {made[0], made[2], made[3]}
    assert [each["id"] for each in world("log", "--json").lines][:2] == [made[4], made[1]]
    refused = world("show", made[0], code=3)
    assert "no branch, tag or snapshot" in refused.err or "pruned" in refused.err
    freed = world("gc", "--json").json["done"]
    assert freed["complete"]
    assert freed["objects"] > 0
    world("verify")
    assert world("rebuild", "--dry-run", "--json").json["changed_rows"] == 0
    world("export", "v1:vda", "old.img")


def test_both_at_once(world) -> None:
    snapshots(world, 3)
    rules = ("--keep-last", "1", "--keep-events", "0", "--gc")
    would = world("prune", *rules, "--dry-run")
    assert "Would forget 3 snapshots" in would.out
    assert world("gc", "--dry-run", "--json").json["plan"]["dead_objects"] == 0
    done = world("prune", *rules).out
    assert "Forgot 3 snapshots" in done
    assert "Removed" in done
    assert "blockvault gc" not in done
    snapshots(world, 2)
    forgot, freed = world("prune", *rules, "--json").lines
    assert len(forgot["snapshots"]) == 2
    assert freed["done"]["objects"] > 0
    assert world("gc", "--dry-run", "--json").json["plan"]["dead_objects"] == 0
    world("verify")


def test_a_moment_that_was_pruned_names_its_neighbours(world) -> None:
    write(world, 1)
    seq = world("show", "main", "--json").json["seq"]
    write(world, 2)
    world("snapshot", "-m", "later")
    world("prune", "--keep-last", "1", "--keep-events", "0")
    refused = world("show", f"main@{{#{seq}}}", code=3)
    assert "pruned" in refused.err
    assert "main@{#" in refused.err.split("kept:")[1]


def test_without_rules_nothing_is_pruned(world) -> None:
    assert "policy set" in world("prune", code=2).err
    assert "--keep-" in world("policy", "set", code=2).err


def test_policies_are_stored_and_shown(world) -> None:
    world("policy", "set", "--keep-daily", "7", "--keep-events", "2d")
    world("policy", "set", "-b", "test", "--keep-last", "3", "--keep-tag", "v*")
    shown = world("policy").out.splitlines()
    assert shown == [
        "(every other branch): --keep-daily 7 --keep-events 2d",
        "test: --keep-events 2d --keep-last 3 --keep-tag v*",
    ]
    assert [each["branch"] for each in world("policy", "--json").lines] == [None, "test"]
    world("policy", "clear", "-b", "test")
    assert len(world("policy").out.splitlines()) == 1
    assert "no policy" in world("policy", "clear", "-b", "test", code=3).err
    kinds = [line.split()[4] for line in world("events", "-n", "3").out.splitlines()]
    assert kinds == ["policy-set"] * 3


def test_cold_frames_are_packed_by_policy(world) -> None:
    """Kept apart from what is kept: a policy of packing forgets nothing."""
    snapshots(world, 3)
    world("policy", "set", "--recompress", "19", "--untouched", "1d")
    assert world("policy").out == "(cold frames): --recompress 19 --untouched 1d\n"
    assert world("policy", "--json").lines == [{"packing": {"level": 19, "untouched": 86400}}]
    assert "policy set" in world("prune", code=2).err
    assert "Packed 0 frames" in world("gc").out, "nothing is a day old"
    packed = world("gc", "--older", "0s", "--json").lines[0]["packed"]
    assert packed["frames"] > 0
    assert "packed" not in world("gc", "--recompress", "0", "--json").lines[0]
    world("policy", "set", "--recompress", "0")
    assert world("policy").out == ""
    assert "packed" not in world("gc", "--json").lines[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "-b", "main", "--recompress", "3"), "whole vault"),
        (("set", "--keep-last", "3", "--untouched", "3d"), "--recompress"),
        (("show", "--recompress", "3"), "takes no such option"),
        (("clear", "--keep-last", "3"), "takes no such option"),
        (("set", "--recompress", "23"), "23"),
    ],
)
def test_options_of_packing_that_make_no_sense(world, words: tuple[str, ...], says: str) -> None:
    assert says in world("policy", *words, code=2).err
    assert world("policy").out == ""


def test_a_deleted_branch_can_be_restored_until_it_is_pruned(world) -> None:
    world("branch", "-d", "test")
    world("prune", "--keep-last", "9")
    world("branch", "--restore", "test")
    world("branch", "-d", "test")
    world("branch", "test", "main~1")
    told = world("branch", "--restore", "test", "old", "--json").json
    assert (told["name"], told["deleted"]) == ("old", False)
    world("branch", "-d", "old")
    world("branch", "-d", "test")
    pruned = world("prune", "--keep-last", "9", "--keep-events", "0", "--json").json
    assert sorted(pruned["dropped"]) == ["old", "test"]
    assert world("branch", "--restore", "test", code=3).code == 3
    world("events")
    world("verify")


def test_holds_are_listed_and_released(world) -> None:
    world("hold", "main~1", "-m", "why not")
    assert "why not" in world("hold").out
    world("unhold", "main~1")
    assert world("hold").out == ""
    assert "not held" in world("unhold", "main~1", code=3).err


def test_foreign_text_makes_no_lines_of_its_own(world) -> None:
    """Of a list that has one line for each thing."""
    (world.path / "first.img").rename(world.path / "a\n#998 forged")
    world("import", "a\n#998 forged", "--volume", "vda")
    world("hold", "main", "-m", "why\n#999 2026-11-23 10:00:05.000000 main rolled-back")
    events = world("events", "--json").lines
    assert [line.split()[0] for line in world("events").out.splitlines()] == [
        f"#{event['seq']}" for event in events
    ]
    plan = world("prune", "--keep-last", "1", "--keep-events", "0", "--dry-run").out
    assert "held: why\n" in plan
    assert "rolled-back" not in plan


def test_a_prune_tells_what_it_did_and_not_what_it_meant_to_do(
    world, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What came to be needed since it was planned has stayed."""
    made = snapshots(world, 3)
    world("branch", "-d", "test")
    planned = prune.plan

    def plan(vault: Vault, *asked: Any) -> prune.Plan:
        found = planned(vault, *asked)
        policy.hold(vault, made[0])
        policy.hold(vault, "v1")
        vault.restore_branch("test")
        return found

    rules = ["--keep-last", "1", "--keep-events", "0", "--keep-tag", "none"]
    meant = world("prune", *rules, "--dry-run", "--json").json
    monkeypatch.setattr(prune, "plan", plan)
    assert main.run(["-V", str(world.path), "prune", *rules, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (meant["dropped"], meant["tags"]) == (["test"], ["v1"])
    assert (done["dropped"], done["tags"]) == ([], [])
    stayed = {each["id"] for each in meant["snapshots"]} - {e["id"] for e in done["snapshots"]}
    assert made[0] in stayed
    assert done["kept"] == meant["kept"] + len(stayed)
    assert {each["id"] for each in world("log", "--json").lines} >= stayed


def test_pruning_what_nothing_is_left_of_says_so(world) -> None:
    world("prune", "--keep-last", "99", "--keep-events", "0")
    again = world("prune", "--keep-last", "99", "--keep-events", "0")
    assert "Forgot 0 snapshots" in again.out
    assert "gc" not in again.out


def test_gc_tells_of_what_another_user_left(world) -> None:
    if os.geteuid():
        skip("only root can give files away")
    left = world.path / ".blockvault" / "import-x"
    left.mkdir()
    os.chown(left, 1234, 4321)
    assert f"{left} is another user's" in world("gc").out
    assert world("gc", "--json").json["done"]["foreign"] == [str(left)]


def test_repair_is_refused_beside_gc_before_it_looks(world) -> None:
    with pins.sole(world.path / ".blockvault", "gc"):
        assert "is doing gc" in world("repair", code=5).err
        assert "nothing is wrong" in world("repair", "--dry-run").out
