"""Figures for Prometheus: the format, and that they say what is there."""

from __future__ import annotations

import re
from pathlib import Path

from blockvault.model.retention import Policy
from blockvault.ops import forget, gc, metrics, policy, prune
from blockvault.vault import Vault

LABEL = r'[a-z]+="(?:[^"\\\n]|\\.)*"'
LINE = re.compile(rf"(blockvault_[a-z_]+)(\{{{LABEL}(?:,{LABEL})*\}})? (\S+)")


def values(vault: Vault) -> dict[str, float]:
    found = {}
    for line in metrics.render(metrics.of_vault(vault)).splitlines():
        if not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, line
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_they_say_what_is_there(tmp_path: Path) -> None:
    with Vault.create(tmp_path) as vault:
        with vault.session("main") as session:
            session.create_volume("vda", 40960).write(0, b"x" * 4096)
            session.snapshot("one")
            session.snapshot("two")
        vault.create_branch("test")
        vault.delete_branch("test")
        policy.hold(vault, "main~1")
        found = values(vault)
        assert found["blockvault_snapshots"] == 2
        assert found["blockvault_branches"] == found["blockvault_deleted_branches"] == 1
        assert found["blockvault_holds"] == 1
        with vault.read() as reader:
            assert found["blockvault_events_total"] == reader.last().seq
            assert found["blockvault_last_event_seconds"] == reader.last().time_us / 1e6
        assert found["blockvault_file_bytes"] > found['blockvault_table_bytes{table="frames"}'] > 0
        assert found["blockvault_last_prune_seconds"] == 0
        forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
        half = gc.Collection(vault)
        half.mark()
        half.condemn()
        found = values(vault)
        assert found["blockvault_last_prune_seconds"] > 0
        gc.collect(vault)
        assert values(vault)["blockvault_gc_interrupted"] == 0
        assert values(vault)["blockvault_last_new_frame_gc_seconds"] > 0


def test_servers_have_labels_that_are_escaped() -> None:
    export = {
        "connections": 2, "errors": 0, "bytes_read": 1 << 40, "bytes_written": 7,
        "requests": {"read": 3, "write": 1},
    }  # fmt: skip
    answer = {"pid": 12, "exports": {'a"b\\c/vda': export}}
    text = metrics.render(metrics.of_servers([answer]))
    assert 'blockvault_nbd_bytes_read_total{pid="12",export="a\\"b\\\\c/vda"} 1099511627776' in text
    assert 'kind="write"} 1\n' in text
    assert text.count("# TYPE blockvault_nbd_errors_total counter\n") == 1
    assert metrics.render(metrics.of_servers([])).count("# HELP") == 5
