"""TLS with certificates on both sides: own client, stock clients, and who must stay out."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockvault.errors import BadRequest
from blockvault.nbd.exports import Exports
from blockvault.nbd.server import Server
from blockvault.nbd.tls import TLSChannel, server_context
from tests.conftest import openssl
from tests.nbd import messages as m
from tests.nbd.conftest import SlowFlush, wait_until
from tests.nbd.memory import MemoryVolume


@pytest.fixture
def context(certificates: Path) -> ssl.SSLContext:
    return server_context(
        certificates / "server-cert.pem",
        certificates / "server-key.pem",
        certificates / "ca-cert.pem",
    )


@pytest.fixture
def port(exports: Exports, context: ssl.SSLContext) -> Iterator[int]:
    server = Server(exports, tls=context, handshake_seconds=2)
    yield server.listen_tcp("127.0.0.1", 0)
    server.stop(1.0)


def plain(port: int) -> socket.socket:
    """A connection that has greeted in plaintext."""
    connected = socket.create_connection(("127.0.0.1", port), timeout=10)
    assert connected.recv(18, socket.MSG_WAITALL) == m.GREETING
    connected.sendall(m.client_flags())
    return connected


def secured(port: int, certificates: Path, client: str | None = "client") -> ssl.SSLSocket:
    """The same after STARTTLS, with the certificate of ``client``."""
    context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    if client:
        context.load_cert_chain(
            certificates / f"{client}-cert.pem", certificates / f"{client}-key.pem"
        )
    connected = plain(port)
    connected.sendall(m.option(m.STARTTLS))
    assert connected.recv(20, socket.MSG_WAITALL)[12:16] == b"\0\0\0\x01"
    try:
        # An end that is not announced shall raise.
        return context.wrap_socket(
            connected, server_hostname="localhost", suppress_ragged_eofs=False
        )
    except OSError:
        connected.close()
        raise


def exactly(connected: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connected.recv(size - len(data))
        assert more
        data += more
    return data


def test_data_over_tls(port: int, certificates: Path, volume: MemoryVolume) -> None:
    with secured(port, certificates) as client:
        client.sendall(m.option(m.EXPORT_NAME, b"vda"))
        exactly(client, 10)
        data = bytes(range(256)) * 12_000
        client.sendall(m.write(1, data) + m.request(m.FLUSH))
        assert exactly(client, 32)[4:8] == bytes(4)
        client.sendall(m.request(m.READ, 1, len(data)))
        assert exactly(client, 16 + len(data))[16:] == data
        assert volume.device.durable[1 : len(data) + 1] == data
        client.sendall(m.request(m.DISC))
        assert client.recv(1) == b"", "the end is announced: a cut stream would raise"


def test_reading_goes_on_while_a_flush_waits(
    port: int, certificates: Path, slow_flush: SlowFlush
) -> None:
    """Two threads of the server use one TLS session at the same time."""
    with secured(port, certificates) as client:
        client.sendall(m.option(m.EXPORT_NAME, b"vda"))
        exactly(client, 10)
        client.sendall(m.request(m.FLUSH, cookie=7))
        for _ in range(300):
            client.sendall(m.request(m.READ, 0, 20_000))
            assert exactly(client, 16 + 20_000)[16:] == bytes(20_000)
        slow_flush.proceed.set()
        assert exactly(client, 16)[15] == 7


def test_stop_answers_a_flush_and_announces_the_end(
    exports: Exports, context: ssl.SSLContext, certificates: Path, slow_flush: SlowFlush
) -> None:
    server = Server(exports, tls=context)
    port = server.listen_tcp("127.0.0.1", 0)
    with ThreadPoolExecutor(1) as pool, secured(port, certificates) as client:
        client.sendall(m.option(m.EXPORT_NAME, b"vda"))
        exactly(client, 10)
        client.sendall(m.request(m.FLUSH, cookie=7))
        assert slow_flush.begun.wait(10)
        stopped = pool.submit(server.stop)
        wait_until(lambda: all(t.name != "nbd reader" for t in threading.enumerate()))
        slow_flush.proceed.set()
        assert exactly(client, 16)[15] == 7
        assert client.recv(1) == b""
        stopped.result(10)


def test_a_long_reply_is_not_there_twice(context: ssl.SSLContext, certificates: Path) -> None:
    """Short pieces go together, long ones as they are."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.settimeout(10)
    client = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    client.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
    channel = TLSChannel(ours, context)
    reply = [b"head", bytes(16 << 20), *[b"short"] * 5000, bytes(100 << 10), bytes(200 << 10)]
    taken = bytearray(sum(map(len, reply)))

    def take() -> None:
        with client.wrap_socket(theirs, server_hostname="localhost") as secured:
            rest = memoryview(taken)
            while rest:
                rest = rest[secured.recv_into(rest) :]

    with ours, theirs, ThreadPoolExecutor(1) as pool:
        taking = pool.submit(take)
        channel.handshake(lambda: None)
        tracemalloc.start()
        try:
            channel.send(reply)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        taking.result(10)
    assert taken == b"".join(reply)
    assert peak < 4 << 20


def test_two_way_traffic_with_many_flushes(
    port: int, certificates: Path, volume: MemoryVolume
) -> None:
    with secured(port, certificates) as client:
        client.sendall(m.option(m.EXPORT_NAME, b"vda"))
        exactly(client, 10)
        rounds = 200
        requests = b"".join(
            m.write(n * 100, bytes([n % 256]) * 100) + m.request(m.FLUSH, cookie=2)
            for n in range(rounds)
        )
        client.sendall(requests)
        for _ in range(2 * rounds):
            assert exactly(client, 16)[4:8] == bytes(4)
    assert volume.device.durable[: rounds * 100] == volume.device.data[: rounds * 100]


@pytest.mark.parametrize("client", [None, "stranger"])
def test_strangers_stay_out(
    port: int, certificates: Path, volume: MemoryVolume, client: str | None
) -> None:
    def attempt() -> bytes:
        with secured(port, certificates, client) as connected:
            connected.sendall(m.option(m.EXPORT_NAME, b"vda"))
            return connected.recv(10)

    with pytest.raises(OSError, match=r"(?i)alert|certificate|reset|pipe|EOF"):
        assert attempt() != b"", "the handshake of TLS 1.3 may end late, but it must not succeed"
    assert volume.opened == 0


def test_old_tls_versions_are_refused(port: int, certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates / "ca-cert.pem")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with plain(port) as connected:
        connected.sendall(m.option(m.STARTTLS))
        exactly(connected, 20)
        with pytest.raises(OSError, match=r"(?i)alert|version|protocol"):
            context.wrap_socket(connected, server_hostname="localhost")


@pytest.mark.parametrize("injected", [m.option(m.STRUCTURED), m.go("vda"), b"\x16\x03\x01"])
def test_plaintext_sent_with_starttls_is_not_taken_for_more(
    port: int, certificates: Path, volume: MemoryVolume, injected: bytes
) -> None:
    with plain(port) as connected:
        connected.sendall(m.option(m.STARTTLS) + injected)
        assert connected.recv(100) == b""
    assert volume.opened == 0


def test_what_was_agreed_before_tls_is_forgotten(certificates: Path, port: int) -> None:
    with secured(port, certificates) as client:
        client.sendall(m.option(m.SET_META, m.meta_data("vda", "base:allocation")))
        assert exactly(client, 20)[12:16] == b"\x80\0\0\x03", "structured replies are needed again"


def test_nothing_without_tls(port: int, volume: MemoryVolume) -> None:
    with plain(port) as connected:
        connected.sendall(m.option(m.LIST))
        assert exactly(connected, 20)[12:16] == b"\x80\0\0\x05"
    assert volume.opened == 0


@pytest.mark.parametrize("drip", [b"", b"\x16"])
def test_a_tls_handshake_that_stalls_or_drips_meets_the_deadline(port: int, drip: bytes) -> None:
    with plain(port) as connected:
        connected.sendall(m.option(m.STARTTLS))
        exactly(connected, 20)
        begin = time.monotonic()
        connected.sendall(b"\x16\x03\x01\x40\x00")  # a record of 16 KiB is announced
        connected.settimeout(0.1)
        ended = False
        while not ended and time.monotonic() - begin < 4:
            try:
                connected.sendall(drip)
                ended = connected.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended
        assert time.monotonic() - begin < 4


def test_who_leaves_in_the_handshake_is_not_waited_for(
    exports: Exports, context: ssl.SSLContext
) -> None:
    server = Server(exports, tls=context)
    with plain(server.listen_tcp("127.0.0.1", 0)) as connected:
        connected.sendall(m.option(m.STARTTLS))
        exactly(connected, 20)
    wait_until(lambda: not server.status()["clients"])
    server.stop()


def test_who_is_connected(exports: Exports, context: ssl.SSLContext, certificates: Path) -> None:
    server = Server(exports, tls=context)
    with secured(server.listen_tcp("127.0.0.1", 0), certificates) as client:
        client.sendall(m.option(m.EXPORT_NAME, b"vda"))
        exactly(client, 10)
        wait_until(lambda: server.status()["clients"][0]["export"] == "vda")
        assert server.status()["clients"][0]["peer"].endswith(", client")
    server.stop()


@pytest.mark.parametrize(
    "names",
    [
        ("missing.pem", "server-key.pem", "ca-cert.pem"),
        ("server-cert.pem", "client-key.pem", "ca-cert.pem"),
        ("server-cert.pem", "server-key.pem", "missing.pem"),
        ("server-cert.pem", "server-key.pem", "server-key.pem"),
        ("server.ext", "server-key.pem", "ca-cert.pem"),
    ],
)
def test_certificates_that_cannot_be_used(certificates: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest, match="cannot use"):
        server_context(*(certificates / name for name in names))


def test_an_encrypted_key_is_refused_and_nobody_is_asked(certificates: Path) -> None:
    files = ("-in", "server-key.pem", "-out", "locked-key.pem")
    openssl(certificates, "pkey", *files, "-aes256", "-passout", "pass:secret")
    names = ("server-cert.pem", "locked-key.pem", "ca-cert.pem")
    with pytest.raises(BadRequest, match=r"locked-key\.pem is encrypted"):
        server_context(*(certificates / name for name in names))


# -- stock clients ---------------------------------------------------------------------------------


def test_nbdinfo_over_tls(port: int, certificates: Path, need_tool: Callable[[str], str]) -> None:
    def info(directory: Path) -> subprocess.CompletedProcess[str]:
        uri = f"nbds://localhost:{port}/vda?tls-certificates={directory}"
        return subprocess.run([need_tool("nbdinfo"), uri], capture_output=True, text=True)

    done = info(certificates)
    assert done.returncode == 0, done.stderr
    assert "with TLS" in done.stdout
    done = subprocess.run(
        [need_tool("nbdinfo"), f"nbd://localhost:{port}/vda"], capture_output=True, text=True
    )
    assert done.returncode != 0


def test_qemu_img_over_tls(
    port: int, certificates: Path, volume: MemoryVolume, need_tool: Callable[[str], str]
) -> None:
    volume.device.data[:5] = b"hello"
    done = subprocess.run(
        [
            need_tool("qemu-img"), "dd", "--object",
            f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates}", "--image-opts",
            f"if=driver=nbd,host=localhost,port={port},export=vda,tls-creds=tls0",
            "-O", "raw", f"of={certificates}/out.img", "bs=512", "count=1",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (certificates / "out.img").read_bytes()[:5] == b"hello"
