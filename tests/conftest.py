"""What all tests share: tools and certificates, the long ones, and reproducible randomness."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

from blockvault import Vault

# No test fails because the machine is slow; the commands to repeat a failure are printed.
settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")

# Who is started behind a shell's "&" ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same under nohup, which is meant for us alone.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the long versions of tests too")
    parser.addoption("--fault-seed", type=int, help="repeat what another run drew at random")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed of this run, or take that of the run that we are a part of."""
    told = getattr(config, "workerinput", {}).get("fault_seed")
    if told is not None:
        config.option.fault_seed = told
    elif config.option.fault_seed is None:
        config.option.fault_seed = random.SystemRandom().randrange(1 << 32)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell the seed to a process that is to run some of the tests."""
    node.workerinput["fault_seed"] = node.config.option.fault_seed


def pytest_report_header(config: pytest.Config) -> str:
    return f"drawn at random: --fault-seed={config.option.fault_seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--nightly"):
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="long: taken with --nightly"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeat above the last line what tools/check found wrong before the tests."""
    failed = os.environ.get("BLOCKVAULT_FAILED_CHECKS")
    if failed:
        terminalreporter.write_line(f"tools/check: FAILED before the tests: {failed}", red=True)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """An empty one; some tests make their own of this name, with something in it."""
    with Vault.create(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def nightly(request: pytest.FixtureRequest) -> bool:
    """True when the run may take long: tests scale their figures with it."""
    return bool(request.config.getoption("--nightly"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """One seed a run; printed in the header and shown again when a test fails."""
    chosen = int(request.config.getoption("--fault-seed"))
    print(f"seed {chosen}: repeat with --fault-seed={chosen}")
    return chosen


def skip(reason: str) -> NoReturn:
    """Skip the test on a machine that lacks what it needs, but fail it under ``CI=true``: there the
    test command has to provide everything, and a test that skips itself tells nothing.
    """
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI may not skip what needs it")
    pytest.skip(reason)


def find_tool(name: str) -> str:
    """The path of a program, searched for in the system's directories too; see ``skip``."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="session")
def need_tool() -> Callable[[str], str]:
    """``need_tool("qemu-img")`` in a test: its path, else skip (under CI: fail)."""
    return find_tool


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """``with no_threads()``: no thread can be started meanwhile."""

    @contextmanager
    def exhausted() -> Iterator[None]:
        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            yield

    return exhausted


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], None]], None]]:
    """``forked(work)``: fork a child that lives on until the test ends; return when it has done
    this work.
    """
    children: list[int] = []

    def fork(work: Callable[[], None]) -> None:
        ours, its = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads, on purpose
            child = os.fork()
        if not child:
            try:
                work()
                os.write(its, b"done")
                signal.pause()
            finally:
                os._exit(1)
        children.append(child)
        os.close(its)
        with open(ours, "rb", buffering=0) as told:
            assert told.read(4) == b"done"

    yield fork
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities with a client each, one server; named as libnbd and qemu expect them."""
    directory = tmp_path_factory.mktemp("tls")
    for authority in ("ca", "stranger-ca"):
        openssl(
            directory, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", f"{authority}-key.pem", "-out", f"{authority}-cert.pem",
            "-subj", f"/CN={authority}", "-addext", "basicConstraints=critical,CA:TRUE",
        )  # fmt: skip
    issue(directory, "server", "ca", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    issue(directory, "client", "ca", "extendedKeyUsage=clientAuth")
    issue(directory, "stranger", "stranger-ca", "extendedKeyUsage=clientAuth")
    return directory


def openssl(directory: Path, *arguments: str) -> None:
    command = [find_tool("openssl"), *arguments]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


def issue(directory: Path, name: str, authority: str, extension: str) -> None:
    openssl(
        directory, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}",
    )  # fmt: skip
    (directory / f"{name}.ext").write_text(extension + "\n")
    openssl(
        directory, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}-cert.pem",
        "-CAkey", f"{authority}-key.pem", "-CAcreateserial", "-extfile", f"{name}.ext",
        "-out", f"{name}-cert.pem",
    )  # fmt: skip
