"""What people from outside found, in forms that the table of cases cannot say."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import HERE, FakeServer, spool_files

import hauski_ingest
from hauski_ingest import AsyncClient, Client, IngestError, SettingsError, flush_spool, ingest_event, ingest_events

EVENT = {"event": "demo", "status": "ok"}


def child(work: Any) -> int:
    """The exit code of a forked child that does this; 14 if it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        code = 1
        try:
            code = work() or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ------------------------------------------------------------------------------------------------------------- forks


def test_children_share_no_connection(server: FakeServer) -> None:
    """If this fails, children read each other's answers: events are lost, doubled, or said to be refused."""
    with Client(url=server.url, token="t", retries=0) as client:
        client.ingest_event("example.com", {"n": -1})

        def work(k: int) -> None:
            for n in range(40):
                assert client.ingest_event("example.com", {"n": 1000 * k + n}) == "ok"

        children = []
        for k in range(4):
            pid = os.fork()
            if pid == 0:
                try:
                    work(k)
                    os._exit(0)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(1)
            children.append(pid)
        work(9)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert Counter(server.numbers()) == Counter([-1] + [1000 * k + n for k in (0, 1, 2, 3, 9) for n in range(40)])
    assert server.connections == 5


_shared: Client | None = None


def _pooled_call(n: int) -> str:
    assert _shared is not None
    return _shared.ingest_event("example.com", {"n": n})


def test_multiprocessing(server: FakeServer) -> None:
    """If this fails, a pool of processes made by fork cannot use the client it inherited."""
    global _shared
    _shared = Client(url=server.url, token="t", retries=0)
    _shared.ingest_event("example.com", {"n": -1})
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_pooled_call, range(30)) == ["ok"] * 30
    assert sorted(server.numbers()) == list(range(-1, 30))
    _shared.close()


def test_a_fork_while_every_lock_is_held(server: FakeServer, tmp_path: Path, dead_url: str) -> None:
    """If this fails, a child hangs on a lock that a thread of its parent held."""
    with Client(url=dead_url, token="t", retries=0, spool=tmp_path / "spool", backoff=0) as client:
        client.ingest_event("example.com", EVENT)
        spool = client._rules.spool
        assert spool is not None
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            locks = [hauski_ingest._FileLock(str(tmp_path / "spool/example.com" / name)) for name in ("last", "lock")]
            assert all(lock.take() for lock in locks)
            held.set()
            over.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(20)
        try:
            assert child(lambda: 0 if client.ingest_event("example.com", EVENT) == "spooled" else 3) == 0
        finally:
            over.set()
            thread.join()
    assert len(spool_files(tmp_path / "spool")) == 2


def test_a_child_does_not_keep_a_lock_of_the_spool(server: FakeServer, tmp_path: Path, dead_url: str) -> None:
    """If this fails, nobody delivers a domain as long as a child lives that was forked at the wrong moment."""
    spool = tmp_path / "spool"
    ingest_event("example.com", EVENT, url=dead_url, token="t", retries=0, spool=spool)
    pids = []

    def answer(_request: Any) -> Any:
        # The domain is locked now, by this process.
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        pids.append(pid)
        return 202

    server.answer = answer
    try:
        assert flush_spool(url=server.url, token="t", spool=spool) == 1
        with open(spool / "example.com" / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert pids


def test_the_flushing_thread_of_a_child(server: FakeServer, tmp_path: Path) -> None:
    """If this fails, what a child spools waits for somebody else, and its close() hangs or loses the last attempt."""
    answers = {"good": False}
    server.answer = lambda request: 202 if answers["good"] else (503, "")
    with Client(url=server.url, token="t", retries=0, spool=tmp_path / "spool", backoff=0, flush_every=3600) as client:
        client.ingest_event("example.com", {"n": 1})

        def work() -> int:
            if client.ingest_event("example.com", {"n": 2}) != "spooled":
                return 3
            names = [thread.name for thread in threading.enumerate()]
            return 0 if "hauski-flush" in names else 4

        assert child(work) == 0
        answers["good"] = True
    assert server.numbers() == [1, 2]


def test_an_async_client_in_one_loop_after_the_other(server: FakeServer) -> None:
    """If this fails, a client that outlives asyncio.run() raises RuntimeError, or leaves an event out."""
    client = AsyncClient(url=server.url, token="t", retries=0)
    for n in range(3):
        assert asyncio.run(client.ingest_event("example.com", {"n": n})) == "ok"

    async def both() -> None:
        async with client:
            await asyncio.gather(*(client.ingest_event("example.com", {"n": n}) for n in range(3, 10)))

    asyncio.run(both())
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(asyncio.run(client.ingest_event("example.com", {"n": n}))))
        for n in range(10, 16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["ok"] * 6
    assert sorted(server.numbers()) == list(range(16))

    async def in_a_child() -> int:
        await client.ingest_event("example.com", {"n": 16})
        code = child(lambda: 0)
        # The child must not have taken this loop's connection away.
        await client.ingest_event("example.com", {"n": 17})
        return code

    assert asyncio.run(in_a_child()) == 0
    assert child(lambda: 0 if asyncio.run(client.ingest_event("example.com", {"n": 18})) == "ok" else 3) == 0
    assert sorted(server.numbers()) == list(range(19))


# ------------------------------------------------------------------------------------------- every failure is one kind

WEIRD: list[Any] = [RuntimeError("x"), ValueError("x"), MemoryError(), OSError(24, "Too many open files"), KeyError("x")]


@pytest.mark.parametrize("error", WEIRD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("where", ["socket", "getaddrinfo", "transport", "made"])
def test_whatever_fails_below(
    error: Exception, kind: str, where: str, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a caller meets the error of a library below, and the event is in no spool."""
    url = server.url.replace("127.0.0.1", "localhost")

    def failing(*_arguments: Any, **_more: Any) -> Any:
        raise error

    class Transport(httpx.MockTransport):
        def __init__(self) -> None:
            super().__init__(failing)

    more: dict[str, Any] = {}
    if where == "socket":
        monkeypatch.setattr(hauski_ingest._DeadlineBackend, "connect_tcp", failing)
        monkeypatch.setattr(hauski_ingest._AsyncBackend, "connect_tcp", failing)
    elif where == "getaddrinfo":
        monkeypatch.setattr(hauski_ingest.socket, "getaddrinfo", failing)
    elif where == "transport":
        more["transport"] = Transport()
    else:
        monkeypatch.setattr(hauski_ingest, "_network", failing)

    def call(**settings: Any) -> str:
        settings = {"url": url, "token": "secret-token", "retries": 0, **more, **settings}
        if kind == "sync":
            return ingest_event("example.com", EVENT, **settings)
        return asyncio.run(hauski_ingest.aingest_event("example.com", EVENT, **settings))

    with pytest.raises(IngestError) as raised:
        call()
    assert raised.value.written == ("maybe" if where == "transport" else "no")
    assert raised.value.retryable
    assert call(spool=tmp_path / "spool") == "spooled"
    monkeypatch.undo()
    assert flush_spool(url=server.url, token="t", spool=tmp_path / "spool") == 1
    assert server.stored == {"example.com": [EVENT]}


@pytest.mark.parametrize(
    "settings",
    [
        {"url": 7},
        {"url": "http://[::1"},
        {"url": "http://x:99999"},
        {"url": "http://x y"},
        {"url": "http://\ud800"},
        {"spool": 7},
        {"spool": "a\0b"},
        {"timeout": [1]},
        {"gzip": "perhaps"},
        {"proxy": "http://user:secret-token@[::1"},
        {"proxy": "quux://h"},
        {"verify": "/nowhere.pem", "url": "https://h"},
        {"token_file": "/nowhere"},
        {"token_file": "a\0b"},
        {"token_file": 7},
    ],
    ids=str,
)
def test_settings_of_any_kind(settings: Any) -> None:
    """If this fails, a wrong setting ends in an error of another library, or in one that shows a password."""
    token = {} if "token_file" in settings else {"token": "secret-token"}
    with pytest.raises(IngestError) as raised:
        ingest_event("example.com", EVENT, **{"retries": 0, "timeout": 1, **token, **settings})
    assert "secret-token" not in f"{raised.value} {raised.value!r} {raised.value.__cause__!r}"


@pytest.mark.parametrize("domain", [None, 7, b"a", "\ud800", "a\ud800b", ["a"]])
@pytest.mark.parametrize("spool", ["", "spool"])
def test_domains_of_any_kind(domain: Any, spool: str, server: FakeServer, tmp_path: Path) -> None:
    """If this fails, a wrong domain is an AttributeError or a UnicodeEncodeError."""
    settings: Any = {"url": server.url, "token": "t", "spool": tmp_path / spool if spool else ""}
    with pytest.raises(IngestError, match="domain"):
        ingest_event(domain, EVENT, **settings)
    with pytest.raises(IngestError, match="domain"):
        ingest_events(domain, [EVENT], **settings)
    assert server.requests == []


def test_at_the_end_of_the_program(server: FakeServer, tmp_path: Path) -> None:
    """If this fails, an event that is sent while the interpreter ends is lost without an error."""
    program = (
        "import asyncio, atexit, threading, hauski_ingest as h\n"
        "late = h.Client(flush_every=3600)\n"
        "aclient = h.AsyncClient()\n"
        "def last():\n"
        "    print(h.ingest_event('example.com', {'n': 1}), flush=True)\n"
        "    print(asyncio.new_event_loop().run_until_complete(aclient.ingest_event('example.com', {'n': 2})), flush=True)\n"
        "atexit.register(last)\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE.parent), "LEITSTAND_URL": server.url}
    environment |= {"LEITSTAND_TOKEN": "t", "LEITSTAND_SPOOL": str(tmp_path / "spool")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("ok\nok\n", ""), done
    assert sorted(server.numbers()) == [1, 2]


def test_a_client_that_nobody_closes_tries_once_more(server: FakeServer, tmp_path: Path) -> None:
    """If this fails, what was spooled in a program's last seconds waits for the next program."""
    answers = iter([(503, "")])
    server.answer = lambda request: next(answers, 202)
    program = (
        "import hauski_ingest as h\nclient = h.Client(flush_every=3600, backoff=0)\n"
        "print(client.ingest_event('example.com', {'n': 1}))\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE.parent), "LEITSTAND_URL": server.url}
    environment |= {"LEITSTAND_TOKEN": "t", "LEITSTAND_SPOOL": str(tmp_path / "spool")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("spooled\n", ""), done
    assert server.numbers() == [1]


# ------------------------------------------------------------------------------------------------- connections, spool


def test_gzip(server: FakeServer) -> None:
    """If this fails, a compressed request is not what its headers say, or small ones are compressed too."""
    import gzip

    bodies = []

    def handler(request: httpx.Request) -> httpx.Response:
        coded = request.headers.get("content-encoding")
        bodies.append((coded, gzip.decompress(request.content) if coded else request.content))
        return httpx.Response(202, text="ok")

    events = [{"n": n, "text": "x" * 100} for n in range(100)]
    with Client(url="http://test", token="t", gzip=True, transport=httpx.MockTransport(handler)) as client:
        client.ingest_events("example.com", events)
        client.ingest_event("example.com", EVENT)
    assert [coded for coded, _ in bodies] == ["gzip", None]
    assert bodies[0][1].count(b"\n") == 100


def test_a_server_of_old(server: FakeServer) -> None:
    """If this fails, a server that knows only the old path gets no single events any more."""
    server.answer = lambda request: 202 if request.path.startswith("/ingest/") else (404, "{}")
    with Client(url=server.url, token="t") as client:
        for n in range(3):
            assert client.ingest_event("example.com", {"n": n}) == "ok"
    assert [request.path for request in server.requests] == ["/v1/ingest"] + ["/ingest/example.com"] * 3
    assert server.numbers() == [0, 1, 2]


def test_one_domain_that_is_refused_holds_no_other(server: FakeServer, dead_url: str, tmp_path: Path) -> None:
    """If this fails, a token that may not write one domain keeps all domains in the spool."""
    spool = tmp_path / "spool"
    for domain in ("a", "b", "c"):
        ingest_event(domain, EVENT, url=dead_url, token="t", retries=0, backoff=0, spool=spool)
    server.answer = lambda request: (403, "{}") if request.domain == "a" else 202
    with pytest.raises(IngestError, match="403.*2 events were delivered") as raised:
        flush_spool(url=server.url, token="t", spool=spool)
    assert raised.value.status == 403
    assert sorted(server.stored) == ["b", "c"]


def test_logs_show_no_secret(server: FakeServer, dead_url: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """If this fails, a log at its most talkative has the token or a password of the address."""
    caplog.set_level(logging.DEBUG)
    for url in (server.url, dead_url):
        url = url.replace("//", "//user:secret-password@")
        for spool in ("", tmp_path / "spool"):
            try:
                ingest_event("example.com", EVENT, url=url, token="secret-token", retries=1, backoff=0, spool=spool)
                asyncio.run(hauski_ingest.aingest_event("example.com", EVENT, url=url, token="secret-token", retries=0))
            except IngestError as error:
                assert "secret" not in f"{error}{error!r}"
    assert len(caplog.records) > 20
    assert "secret-" not in caplog.text


def test_the_command_as_a_module(server: FakeServer) -> None:
    """If this fails, python -m hauski_ingest or --version does not work."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "hauski_ingest", "--version"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"hauski-ingest {hauski_ingest.__version__}\n")


def test_the_environment_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If this fails, a missing file of certificates is noticed with the first event only."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    for kind in (Client, AsyncClient):
        with pytest.raises(SettingsError, match="SSL_CERT_FILE"):
            kind(url="https://localhost:1", token="t")
