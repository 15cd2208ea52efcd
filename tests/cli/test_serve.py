"""serve, status, attach, and snapshot of a branch that is being served: the real program."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.cli.common import Command
from tests.cli.conftest import COMMAND, World, environment
from tests.cli.test_json import command, paths
from tests.nbd import messages as m
from tests.nbd.conftest import Client


@pytest.fixture
def home(world: World) -> World:
    return world


class Server:
    """A running ``blockvault serve``; what it announced, and an end that leaves nothing behind."""

    def __init__(self, world: World, *words: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *words], cwd=world.path, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """End it; its exit code and what it said on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def serve(home: World) -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(*words: str) -> Server:
        running.append(Server(home, *words))
        return running[-1]

    yield start
    for server in running:
        server.close()


def tool(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_guest_s_disk_from_start_to_end(home, serve, need_tool) -> None:
    qemu_io = need_tool("qemu-io")
    server = serve()
    assert server.first.startswith("Serving main/vda at nbd+unix:///main/vda?socket=")
    uri = home("attach", "main:vda", "--for", "uri").out.strip()
    assert uri == server.first.split()[-1]
    tool(qemu_io, "-f", "raw", "-c", "write -P 0x11 0 64k", "-c", "flush", uri)
    home("snapshot", "-m", "while it runs")
    tool(qemu_io, "-f", "raw", "-c", "write -P 0x22 0 64k", uri)
    past = home("attach", "main~0:vda", "--for", "uri").out.strip()
    tool(qemu_io, "-r", "-f", "raw", "-c", "read -P 0x11 0 64k", past)
    tool(qemu_io, "-f", "raw", "-c", "read -P 0x22 0 64k", uri)
    changed = json.loads(tool(need_tool("nbdinfo"), "--map=blockvault:diff:main~0", "--json", uri))
    assert [(e["offset"], e["length"]) for e in changed if e["type"]] == [(0, 65536)]
    assert server.stop() == (0, "")
    assert home("cat", "main:vda", "--length", "1").raw == b"\x22"
    kinds = [event["kind"] for event in home("events", "main", "--json").lines]
    assert {"wrote", "barrier", "snapshotted"} <= set(kinds)


def test_status(home, serve, need_tool) -> None:
    assert home("status").out == "Nothing is being served; 'blockvault serve' does.\n"
    assert home("status", "--json").out == ""
    server = serve("--export", "main", "--export", "v1")
    uri = home("attach", "main:vda", "--for", "uri").out.strip()
    tool(need_tool("qemu-io"), "-f", "raw", "-c", "write 0 64k", "-c", "read 0 4k", uri)
    assert "not used yet: main/vdb, v1/vda" in home("status").out
    assert "main/vda  0 clients" in home("status").out
    (line,) = home("status", "--json").lines
    assert line["pid"] == server.process.pid
    export = line["exports"]["main/vda"]
    assert export["requests"]["write"] == 1
    assert export["bytes_written"] == 65536
    line["branches"] = {"NAME": line["branches"]["main"]}
    shaped = dict.fromkeys(("rates", "requests", "latency_us"))
    line["exports"] = {"NAME": export | shaped}
    line["clients"] = [{"peer": "", "export": None, "since": ""}]
    assert set(paths(line)) | {"machine"} == set(shape("status"))


def shape(name: str) -> set[str]:
    found = command(name)
    assert isinstance(found, Command)
    return set(found.shape)


def test_serve_announces_in_json(serve) -> None:
    announced = json.loads(serve("--json").first)
    assert set(paths(announced)) == shape("serve")
    assert [export["name"] for export in announced["exports"]] == ["main/vda", "main/vdb"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_with_exit_code_0(home, serve, number) -> None:
    server = serve()
    assert server.stop(number) == (0, "")
    assert not (home.path / ".blockvault" / "nbd.sock").exists()
    assert list((home.path / ".blockvault" / "servers").iterdir()) == []


def test_what_nohup_ignores_stays_ignored(home, serve) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a process that begins now inherits it
    try:
        server = serve()
    finally:
        signal.signal(signal.SIGHUP, before)
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert server.process.poll() is None
    home("attach", "main:vda")
    assert server.stop() == (0, "")


def test_a_second_server_of_a_branch_is_refused_by_name(home, serve) -> None:
    server = serve()
    refused = home("serve", "--socket", "other.sock", code=5)
    assert f"process {server.process.pid}" in refused.err
    assert "an NBD server" in refused.err
    assert not (home.path / "other.sock").exists()
    taken = home("serve", "--read-only", code=5)
    assert "another server listens" in taken.err
    for words in (("rollback", "main", "v1"), ("import", "first.img", "--volume", "vda")):
        assert f"process {server.process.pid}" in home(*words, code=5).err


def test_other_commands_work_meanwhile(home, serve) -> None:
    serve()
    home("branch", "other", "main~1")
    home("log")
    home("diff", "main~1", "main")
    home("snapshot", "-b", "other", "-m", "not served")
    home("verify")


def test_read_only_and_copy_on_write(home, serve, need_tool) -> None:
    qemu_io = need_tool("qemu-io")
    serve("--read-only", "--socket", "ro.sock")
    serve("--copy-on-write", "--socket", "cow.sock")
    before = home("cat", "main:vda").raw
    for name, code in (("ro", 1), ("cow", 0)):
        uri = f"nbd+unix:///main/vda?socket={home.path}/{name}.sock"
        words = [qemu_io, "-f", "raw", "-c", "write -P 9 0 4k", "-c", "read -P 9 0 4k", uri]
        assert subprocess.run(words, capture_output=True).returncode == code
    assert home("cat", "main:vda").raw == before


def test_tcp_without_tls_is_for_loopback_only(home, serve, need_tool) -> None:
    server = serve("--listen", "127.0.0.1:0", "--insecure")
    assert "at nbd://127.0.0.1:" in server.first
    assert "export-size" in tool(need_tool("nbdinfo"), server.first.split()[-1])
    assert not (home.path / ".blockvault" / "nbd.sock").exists()


def tls_options(certificates: Path) -> list[str]:
    files = {"cert": "server-cert", "key": "server-key", "ca": "ca-cert"}
    named = [(f"--tls-{what}", certificates / f"{name}.pem") for what, name in files.items()]
    return [str(word) for pair in named for word in pair]


def test_tls_on_all_addresses(serve, certificates, need_tool) -> None:
    server = serve("--listen", ":0", *tls_options(certificates))
    uri = server.first.split()[-1]
    assert uri.startswith(f"nbds://{socket.gethostname()}:")
    uri = uri.replace(socket.gethostname(), "localhost", 1)  # for which the certificate is
    told = tool(need_tool("nbdinfo"), f"{uri}?tls-certificates={certificates}")
    assert "with TLS" in told


@pytest.mark.parametrize(
    "words",
    [
        ["--listen", "127.0.0.1:0"],
        ["--listen", "0.0.0.0:0", "--insecure"],
        ["--listen", ":0", "--insecure"],
        ["--listen", "nonsense"],
        ["--listen", "127.0.0.1:99999", "--insecure"],
        ["--listen", "127.0.0.1:0", "--tls-cert", "x"],
        ["--tls-cert", "x", "--tls-key", "x", "--tls-ca", "x"],
        ["--listen", "127.0.0.1:0", "--tls-cert", "x", "--tls-key", "x", "--tls-ca", "x"],
        ["--read-only", "--copy-on-write"],
        ["--max-connections", "0"],
        ["--cache", "much"],
    ],
)
def test_usage_that_is_refused(finished, words) -> None:
    refused = finished("serve", *words, code=2)
    assert len(refused.err.splitlines()) == 1


def test_what_cannot_be_served(home) -> None:
    assert "no branch, tag or snapshot" in home("serve", "--export", "nobody", code=3).err
    (home.path / "file").touch()
    assert "not a socket" in home("serve", "--socket", "file", code=4).err
    home("serve", "--socket", "nowhere/nbd.sock", code=3)
    home("snapshot", "-m", "the branch is free again")


def test_a_client_puts_nothing_but_text_into_the_log(home, serve) -> None:
    server = serve("-v")
    client = Client(home.path / ".blockvault" / "nbd.sock")
    client.socket.sendall(m.go("v1/vd\nforged \x1b[2J") + m.option(m.ABORT))
    while not client.at_end():
        pass
    client.close()
    code, said = server.stop()
    assert code == 0
    assert "\x1b" not in said
    (line,) = (line for line in said.splitlines() if "forged" in line)
    assert "no such export" in line


def test_a_limit_of_connections(home, serve) -> None:
    serve("--max-connections", "1", "--socket", "few.sock")
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.settimeout(10)
            client.connect(str(home.path / "few.sock"))
        assert len(first.recv(18)) == 18
        assert second.recv(18) == b""


def test_attach_without_a_server(finished) -> None:
    home = finished
    told = home("attach", "v1:vda")
    assert told.out.startswith("Nothing serves it now")
    answer = home("attach", "v1:vda", "--json").json
    assert (answer["export"], answer["read_only"], answer["served"]) == ("v1/vda", True, False)
    assert answer["recipes"]["uri"].endswith(f"?socket={home.path}/.blockvault/nbd.sock")
    assert "read-only=on" in answer["recipes"]["qemu-system"]
    assert not home("attach", "main:vda", "--json").json["read_only"]
    assert "vda, vdb" in home("attach", code=2).err
    home("attach", "nobody", code=3)


def test_attach_says_how_to_serve_what_is_not_served(home, serve) -> None:
    assert "start with: blockvault serve\n" in home("attach", "main:vda").out
    assert "start with: blockvault serve\n" in home("attach", "v1:vda").out
    told = home("attach", "test:vda", "--json").json
    assert (told["start"], told["read_only"]) == ("blockvault serve --export test", False)
    serve(*shlex.split(told["start"])[2:])
    assert home("attach", "test:vda", "--json").json == told | {"start": None, "served": True}


def test_attach_names_what_a_server_offers_and_nothing_else(home, serve, need_tool) -> None:
    serve("--only", "--read-only")
    told = home("attach", "main:vda", "--json").json
    assert (told["export"], told["served"], told["read_only"]) == ("HEAD/vda", True, True)
    tool(need_tool("nbdinfo"), told["recipes"]["uri"])
    told = home("attach", "test:vda", "--json").json
    assert (told["served"], told["export"]) == (False, "test/vda")
    serve("--only", "--export", "v1", "--socket", "past.sock")
    assert home("attach", "main~1:vda", "--json").json["export"] == "v1/vda"
    assert home("attach", "test:vda", "--json").json == told
    serve(*shlex.split(told["start"])[2:])
    assert home("attach", "test:vda", "--json").json == told | {"start": None, "served": True}
    tool(need_tool("nbdinfo"), told["recipes"]["uri"])


def test_attach_tells_of_copies_what_they_are_and_offers_no_others(home, serve) -> None:
    thrown_away = "What is written there is thrown away when the server ends."
    serve("--export", "v1", "--copy-on-write")
    told = home("attach", "v1:vda", "--json").json
    assert [told[key] for key in ("served", "read_only", "copy")] == [True, False, True]
    assert thrown_away in home("attach", "v1:vda").out
    pasted = home("attach", "v1:vda", "--for", "qemu-system")
    assert pasted.out == told["recipes"]["qemu-system"] + "\n"
    assert pasted.err.startswith(thrown_away)
    assert "blockvault branch NAME v1 && blockvault serve --export NAME --socket " in pasted.err
    told = home("attach", "main:vda", "--json").json
    assert [told[key] for key in ("served", "read_only", "copy")] == [False, False, False]
    assert told["start"].startswith("blockvault serve --export main ")
    assert thrown_away not in home("attach", "main:vda").out
    serve(*shlex.split(told["start"])[2:])
    assert home("attach", "main:vda", "--json").json == told | {"start": None, "served": True}


def test_who_pastes_a_line_for_a_copy_of_a_branch_hears_how_to_keep_what_is_written(
    home, serve
) -> None:
    serve("--copy-on-write")
    for program in ("qemu-system", "libvirt", "uri"):
        told = home("attach", "main:vda", "--for", program)
        assert told.out
        assert "thrown away" in told.err
    _, _, keep = told.err.strip().rpartition("serves: ")
    serve(*shlex.split(keep)[2:])
    told = home("attach", "main:vda", "--for", "uri")
    assert (told.err, "nbd2.sock" in told.out) == ("", True)


@pytest.mark.parametrize("only", [[], ["--only"]])
def test_a_copy_of_the_current_branch_stays_one_of_that(home, serve, only) -> None:
    server = serve("--copy-on-write", *only)
    assert server.first.startswith("Serving main/vda")
    told = home("attach", ":vda", "--json").json
    assert (told["export"], told["copy"]) == ("main/vda", True)
    home("switch", "test")
    assert not home("attach", ":vda", "--json").json["served"]
    assert home("attach", "main:vda", "--json").json == told


def test_a_socket_whose_path_is_too_long_for_clients(finished, tmp_path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    home = World(deep)
    home("init")
    with Vault.open(deep) as vault, vault.session("main") as session:
        session.create_volume("vda", 1 << 20)
    assert "--socket PATH" in home("attach", code=2).err
    server = Server(home)
    try:
        assert server.first.startswith("Serving main/vda")
        assert "--socket PATH" in home("attach", code=2).err
    finally:
        code, said = server.stop()
    assert code == 0
    assert "107 bytes" in said
    server = Server(home, "--socket", str(tmp_path / "short"))
    assert home("attach", "--for", "uri").out.split() == server.first.split()[-1:]
    assert server.stop() == (0, "")


def test_stock_clients_over_tls_with_what_attach_says(
    home, serve, certificates, need_tool, tmp_path
) -> None:
    serve("--listen", "127.0.0.1:0", *tls_options(certificates))
    told = home("attach", "main:vda", "--json").json["recipes"]
    words = {name: shlex.split(line.replace("CERTIFICATES", str(certificates)))
             for name, line in told.items()}  # fmt: skip
    tool(need_tool("nbdinfo"), *words["nbdinfo"][1:])
    copy = [word.replace("FILE", str(tmp_path / "copy")) for word in words["nbdcopy"]]
    tool(need_tool("nbdcopy"), *copy[1:])
    assert (tmp_path / "copy").read_bytes() == home("cat", "main:vda").raw
    device, plain = "--connect=/dev/nbd0", tmp_path / "plain.sock"
    assert device in words["qemu-nbd"]
    bridge = [word.replace(device, f"--socket={plain}") for word in words["qemu-nbd"]]
    running = subprocess.Popen([need_tool("qemu-nbd"), "--persistent", *bridge[1:]])
    try:
        deadline = time.monotonic() + 20
        while not plain.exists():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        said = tool(need_tool("nbdinfo"), "--json", f"nbd+unix:///?socket={plain}")
        assert json.loads(said)["exports"][0]["export-size"] == (tmp_path / "copy").stat().st_size
        trim = ("-f", "raw", "-c", "discard 0 64k", f"nbd+unix:///?socket={plain}")
        tool(need_tool("qemu-io"), *trim)
        assert "trimmed vda offset 0 length 65536" in home("events").out
    finally:
        running.terminate()
        running.wait(20)


def test_qemu_starts_with_what_attach_says(home, serve, need_tool) -> None:
    qemu = need_tool("qemu-system-x86_64")
    serve()
    words = shlex.split(home("attach", "main:vda", "--for", "qemu-system").out)
    command = [qemu, "-M", "q35,accel=tcg", "-nodefaults", "-display", "none", "-S", *words]
    machine = subprocess.Popen([*command, "-qmp", f"unix:{home.path}/qmp,server=on,wait=off"])
    try:
        deadline = time.monotonic() + 20
        while "main/vda  1 client" not in home("status").out:
            assert machine.poll() is None
            assert time.monotonic() < deadline
    finally:
        machine.terminate()
        machine.wait(20)
