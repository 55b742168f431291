"""The functions and clients without a spool: settings, requests, batches, time, and what an error says."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import MODULE, ROOT, FakeServer, Figure

import hauski_ingest
from hauski_ingest import AsyncClient, Client, IngestError, aingest_event, aingest_events, ingest_event, ingest_events

EVENT = {"event": "demo", "status": "ok"}
QUICK: Any = {"token": "secret-token", "retries": 0, "backoff": 0.01}


# ------------------------------------------------------------------------------------------- as the old module was


def test_the_old_modules_request(server: FakeServer) -> None:
    """If this fails, a server that knew the old module sees another request."""
    assert ingest_event("example.com", UserDict({"event": "Grüße", "n": 1.5}), url=server.url + "/", token="t") == "ok"
    request = server.requests[0]
    assert (request.path, request.domain) == ("/v1/ingest", "example.com")
    assert request.body == '{"event":"Grüße","n":1.5}'.encode()
    assert request.headers["x-auth"] == "t"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == str(len(request.body))


@pytest.mark.parametrize("how", ["checkout", "copy"])
def test_the_mini_test_of_the_old_readme(how: str, server: FakeServer, tmp_path: Path) -> None:
    """If this fails, a program that imports tools.hauski_ingest does not start any more."""
    directory = ROOT
    if how == "copy":
        directory = tmp_path
        (tmp_path / "tools").mkdir()
        shutil.copy(MODULE, tmp_path / "tools" / "hauski_ingest.py")
    program = (
        'import os; os.environ["LEITSTAND_TOKEN"]="dev"; from tools.hauski_ingest import ingest_event; '
        'print(ingest_event("example.com", {"event":"test","status":"ok"}))'
    )
    environment = {"PATH": os.environ["PATH"], "LEITSTAND_URL": server.url}
    done = subprocess.run([sys.executable, "-c", program], cwd=directory, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)
    assert server.stored == {"example.com": [{"event": "test", "status": "ok"}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["event"], "payload must be a mapping"),
        (None, "payload must be a mapping"),
        ({1: object()}, "cannot be written as JSON"),
        ({1: "a", "1": "b"}, "cannot be written as JSON: two keys are '1' there"),
        ({"x": [({"true": 1, True: 2},)]}, "two keys are 'true' there"),
        ({"x": {None: 1, "null": 2}}, "two keys are 'null' there"),
        ({"x": {"y": {1.5: 1, "1.5": 2}}}, "two keys are '1.5' there"),
    ],
)
def test_a_payload_that_is_none(data: Any, message: str) -> None:
    """If this fails, callers that match the old messages break."""
    with pytest.raises(IngestError, match=message):
        ingest_event("example.com", data, token="t")


def test_messages_of_the_old_shape(server: FakeServer, dead_url: str) -> None:
    """If this fails, log searches for the old messages find nothing."""
    server.answer = lambda request: (503, '{"detail":"lock timeout"}')
    with pytest.raises(IngestError, match=r"^ingest failed with 503 after 3 retries: .*lock timeout"):
        ingest_event("example.com", EVENT, url=server.url, token="t", backoff=0.01)
    server.answer = lambda request: (400, '{"detail":"invalid domain"}')
    with pytest.raises(IngestError, match=r"^ingest rejected: 400 .*invalid domain"):
        ingest_event("example.com", EVENT, url=server.url, token="t")
    with pytest.raises(RuntimeError, match=r"^network/timeout after 3 retries") as raised:
        ingest_event("example.com", EVENT, url=dead_url, token="t", backoff=0.01)
    assert isinstance(raised.value, IngestError)
    assert (raised.value.status, raised.value.written, raised.value.retryable) == (None, "no", True)


def test_transports_without_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, the documented tests without sockets do not work."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["path"], dict(scope["headers"])[b"x-auth"]) == ("/v1/ingest", b"t")
        assert json.loads((await receive())["body"]) == EVENT
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    asgi = httpx.ASGITransport(app=app)
    assert ingest_event("example.com", EVENT, url="http://test", token="t", transport=asgi) == "ok"
    assert asyncio.run(aingest_event("example.com", EVENT, url="http://test", token="t", transport=asgi)) == "ok"

    async def inside() -> str:
        return ingest_event("example.com", EVENT, url="http://test", token="t", transport=asgi)

    assert asyncio.run(inside()) == "ok", "called where an event loop already runs"
    mock = httpx.MockTransport(lambda request: httpx.Response(202, text="ok\n"))
    assert ingest_event("example.com", EVENT, url="http://test", token="t", transport=mock) == "ok"
    assert asyncio.run(aingest_event("example.com", EVENT, url="http://test", token="t", transport=mock)) == "ok"


# ------------------------------------------------------------------------------------------------------- settings


def test_where_settings_come_from(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, an event goes to another server or with another token than was set."""
    monkeypatch.setenv("CHRONIK_URL", server.url)
    monkeypatch.setenv("CHRONIK_TOKEN", "old")
    ingest_event("a", EVENT)
    monkeypatch.setenv("LEITSTAND_TOKEN", "")
    ingest_event("a", EVENT)
    monkeypatch.setenv("LEITSTAND_TOKEN", "new")
    ingest_event("a", EVENT)
    ingest_event("a", EVENT, token="mine")
    assert [request.headers["x-auth"] for request in server.requests] == ["old", "old", "new", "mine"]
    monkeypatch.setenv("CHRONIK_TIMEOUT", "7")
    monkeypatch.setenv("LEITSTAND_RETRIES", "9")
    monkeypatch.setenv("CHRONIK_RETRIES", "8")
    settings = Client()._settings
    assert (settings.timeout_s, settings.retries, settings.backoff_s) == (7.0, 9, 0.5)
    assert (settings.spool, settings.spool_max_bytes) == (None, 268435456)
    assert Client(retries=1)._settings.retries == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("TIMEOUT", ["abc", "0", "-1", "nan", "inf", "1_0", "5 s", "1e9"]),
        ("RETRIES", ["abc", "-1", "1.5", "1_0", "٣", "99999999999999999999"]),
        ("BACKOFF", ["abc", "-0.1", "nan", "inf"]),
        ("SPOOL_MAX_BYTES", ["1MiB", "-1", "1.5"]),
        ("URL", ["localhost:8788", "ftp://x", "http://", "http://h/?a=b", "http://h/#f", "http://[::1"]),
        ("TOKEN", ["xy\nz", "Grüße", " xyz", "xy\x00z"]),
    ],
)
def test_a_setting_that_cannot_be_read_is_named(name: str, values: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a typing error in a setting is silently replaced by a default, or its value is shown."""
    monkeypatch.setenv("CHRONIK_TOKEN", "t")
    for value in values:
        if "\x00" not in value:
            for prefix in ("LEITSTAND_", "CHRONIK_"):
                with monkeypatch.context() as patch:
                    patch.setenv(prefix + name, value)
                    with pytest.raises(hauski_ingest.SettingsError, match=f"^{prefix}{name} must be"):
                        ingest_event("a", EVENT)
        parameter: Any = {name.lower(): value}
        with pytest.raises(hauski_ingest.SettingsError, match=f"^{name.lower()} must be") as raised:
            ingest_event("a", EVENT, **parameter)
        if name == "TOKEN":
            assert value.strip() not in str(raised.value)


def test_no_token() -> None:
    """If this fails, a missing token is not reported as what it is."""
    with pytest.raises(IngestError, match="^LEITSTAND_TOKEN not set"):
        ingest_event("a", EVENT)


def test_keys_that_are_no_text(server: FakeServer) -> None:
    """If this fails, a mapping that loses nothing is refused."""
    data = {1: 0, 1.5: 1, False: 2, None: 3, "2": 4, "x": {"1": {1: 5}}}
    assert ingest_event("example.com", data, url=server.url, token="t") == "ok"
    assert server.requests[0].events == [json.loads(json.dumps(data))]


def test_a_port_that_there_is_not(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, events and the token go to another port than the one that is written there."""
    url = httpx.URL(server.url)
    beyond = str(url.copy_with(port=(url.port or 0) + 65536)).rstrip("/")
    with pytest.raises(hauski_ingest.SettingsError, match="^url must name a port of at most 65535"):
        ingest_event("example.com", {"event": 1}, url=beyond, token="t")
    with pytest.raises(hauski_ingest.SettingsError, match="^proxy is not the address of a proxy"):
        ingest_event("example.com", {"event": 1}, url="http://leitstand.test", token="t", proxy=beyond, retries=0)
    monkeypatch.setenv("LEITSTAND_URL", beyond)
    with pytest.raises(hauski_ingest.SettingsError, match="^LEITSTAND_URL must name a port of at most 65535"):
        ingest_event("example.com", {"event": 1}, token="t")
    assert server.requests == []


def test_the_token_is_nowhere_to_be_read(server: FakeServer, dead_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a log, a repr or a traceback with local variables shows the token."""
    monkeypatch.setenv("LEITSTAND_TOKEN", "secret-token")
    for url in (server.url, dead_url):
        server.answer = lambda request: (401, "{}")
        client = Client(url=url, retries=0)
        error: BaseException | None = None
        try:
            client.ingest_event("a", EVENT)
        except IngestError as raised:
            error = raised
        shown = [repr(client), repr(client.__dict__), repr(client._rules.__dict__), str(client._settings)]
        while error is not None:
            trace = traceback.TracebackException.from_exception(error, capture_locals=True)
            shown += [repr(error), *trace.format()]
            error = error.__cause__ or error.__context__
        assert "secret-token" not in "".join(shown)
    shown_url = Client(url="http://user:password@localhost:1").__repr__()
    assert "password" not in shown_url


# ------------------------------------------------------------------------------------------------------- requests


def test_a_domain_is_one_segment_of_the_path(server: FakeServer) -> None:
    """If this fails, a domain with a slash or a question mark reaches another path of the server."""
    for domain in ("a/b", "a?b=c", "ä b", "a%2Fb", "..a", "a#b"):
        ingest_event(domain, EVENT, url=server.url, token="t")
        ingest_events(domain, [EVENT], url=server.url, token="t")
    assert [request.domain for request in server.requests[::2]] == ["a/b", "a?b=c", "ä b", "a%2Fb", "..a", "a#b"]
    assert [request.domain for request in server.requests[1::2]] == ["a/b", "a?b=c", "ä b", "a%2Fb", "..a", "a#b"]
    for domain in ("", " ", ".", ".."):
        with pytest.raises(IngestError, match="invalid domain"):
            ingest_event(domain, EVENT, url=server.url, token="t")


def test_a_client_keeps_its_connection(server: FakeServer) -> None:
    """If this fails, each event costs a connection."""
    with Client(url=server.url, token="t") as client:
        for _ in range(20):
            client.ingest_event("a", EVENT)
        client.ingest_events("a", [EVENT] * 20)
    assert server.connections == 1

    async def send() -> None:
        async with AsyncClient(url=server.url, token="t") as client:
            for _ in range(20):
                await client.ingest_json("a", EVENT)

    asyncio.run(send())
    assert server.connections == 2


def test_a_client_in_many_threads(server: FakeServer) -> None:
    """If this fails, threads that share a client lose or mix events."""
    with Client(url=server.url, token="t") as client:
        threads = [
            threading.Thread(
                target=lambda k=k: [client.ingest_event("a", {"event": "x", "n": k * 100 + i}) for i in range(50)]
            )
            for k in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(server.numbers("a")) == sorted(k * 100 + i for k in range(8) for i in range(50))


def test_maybe_stays_maybe(server: FakeServer) -> None:
    """If this fails, a caller sends an event again that an earlier attempt may have written."""
    answers = iter(["cut", 503, 400])
    server.answer = lambda request: next(answers)
    with pytest.raises(IngestError) as raised:
        ingest_event("a", EVENT, url=server.url, token="t", backoff=0.01)
    assert (raised.value.status, raised.value.written, raised.value.retryable) == (400, "maybe", False)


def test_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, clients come back at the same moment, or sooner than the server asked for."""
    waited: list[float] = []
    monkeypatch.setattr(hauski_ingest.time, "sleep", waited.append)

    def pauses(**headers: str) -> list[float]:
        waited.clear()
        transport = httpx.MockTransport(lambda request: httpx.Response(429, headers=headers))
        with pytest.raises(IngestError):
            ingest_event("a", EVENT, url="http://test", token="t", retries=20, backoff=0.5, transport=transport)
        assert len(waited) == 20
        return list(waited)

    seen = [pauses() for _ in range(60)]
    for tried in range(20):
        column = [row[tried] for row in seen]
        most = min(30.0, 0.5 * 2**tried)
        assert all(0 <= pause <= most for pause in column)
        assert max(column) > most / 2 > min(column), "the pauses are not random over the whole range"
    assert all(7 <= pause <= 7 + min(30.0, 0.5 * 2**tried) for tried, pause in enumerate(pauses(**{"Retry-After": " 7 "})))
    assert max(pauses(**{"Retry-After": "60"})) >= 60
    for absent in ("61", "-5", "1.5", "soon", "", "٣"):
        if absent.isascii():
            assert max(pauses(**{"Retry-After": absent})) <= 30


def drip(part: str) -> tuple[str, threading.Thread]:
    """A server that never stops sending a little, or takes a body slowly."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                with connection:
                    try:
                        if part == "body":
                            connection.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n")
                        elif part == "head":
                            connection.sendall(b"HTTP/1.1 200 X\r\nX-Long: ")
                        for _ in range(100):
                            if part == "request":
                                connection.recv(2048)
                            else:
                                connection.sendall(b" ")
                            time.sleep(0.05)
                    except OSError:
                        pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", thread


@pytest.mark.parametrize("part", ["head", "body", "request"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_timeout_is_for_the_whole_attempt(part: str, kind: str) -> None:
    """If this fails, a server that sends or takes a byte now and then holds a call as long as it likes."""
    url, _ = drip(part)
    big = {"event": "x" * 900_000} if part == "request" else EVENT
    started = time.monotonic()
    with pytest.raises(IngestError) as raised:
        if kind == "sync":
            ingest_event("a", big, url=url, token="t", retries=0, timeout=0.5)
        else:
            asyncio.run(aingest_event("a", big, url=url, token="t", retries=0, timeout=0.5))
    assert 0.4 < time.monotonic() - started < 4.0
    assert (raised.value.status, raised.value.written, raised.value.retryable) == (None, "maybe", True)


def test_an_answer_without_end_is_not_read(server: FakeServer) -> None:
    """If this fails, a wrong server fills the memory of its client."""
    server.answer = lambda request: (200, "ok" + " " * 5_000_000)
    with pytest.raises(IngestError) as raised:
        ingest_event("a", EVENT, url=server.url, **QUICK)
    assert len(raised.value.text) < 500_000
    assert len(str(raised.value)) < 1_000


def test_an_error_survives_pickling() -> None:
    """If this fails, a pool of processes hangs or hides the error."""
    error = IngestError("x", status=503, written="maybe", retryable=True, acknowledged=3, unsent=1)
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.__dict__) == ("x", error.__dict__)


# -------------------------------------------------------------------------------------------------------- batches


def numbered(count: int, size: int = 0) -> list[dict[str, Any]]:
    return [{"event": "x", "n": n, "pad": "y" * size} for n in range(count)]


@pytest.mark.parametrize(
    ("count", "size", "requests"),
    [(0, 0, 0), (1, 0, 1), (10_000, 0, 1), (10_001, 0, 2), (300, 2000, 2), (3, 600_000, 3), (5, 262_000, 3)],
)
def test_requests_of_a_batch(count: int, size: int, requests: int, server: FakeServer) -> None:
    """If this fails, batches are too large for the server or smaller than they could be."""
    assert ingest_events("example.com", numbered(count, size), url=server.url, token="t") == count
    assert server.numbers() == list(range(count))
    assert len(server.requests) == requests
    for request in server.requests:
        assert request.path == "/v1/ingest"
        assert request.type == ("application/x-ndjson" if len(request.events) > 1 else "application/json")
        assert len(request.events) <= 10_000
        assert len(request.body) <= 512 * 1024 or len(request.events) == 1


def test_a_feed_is_not_held_in_memory(server: FakeServer) -> None:
    """If this fails, a long feed fills the memory."""
    ahead = 0

    def feed() -> Iterator[dict[str, Any]]:
        nonlocal ahead
        for n in range(25_000):
            ahead = max(ahead, n - len(server.stored.get("example.com", [])))
            yield {"event": "x", "n": n}

    assert ingest_events("example.com", feed(), url=server.url, token="t") == 25_000
    assert ahead <= 10_001


BAD: list[Any] = [
    {"event": float("nan")},
    {"event": float("inf")},
    {"event": object()},
    {"event": "\ud800"},
    {"event": "x" * 1_000_000},
    ["event"],
    None,
]


@pytest.mark.parametrize("bad", BAD, ids=["nan", "inf", "object", "surrogate", "large", "list", "none"])
@pytest.mark.parametrize("kind", ["list", "iterator", "async"])
def test_one_bad_event_does_not_lose_the_others(bad: Any, kind: str, server: FakeServer) -> None:
    """If this fails, one event that cannot be sent takes others with it, or is left out without a word."""
    events: list[Any] = [*numbered(1500), bad, *({"event": "x", "n": n} for n in range(1501, 1600))]
    feed = iter(events)
    with pytest.raises(IngestError, match="event 1501 of the feed") as raised:
        if kind == "async":

            async def stream() -> Any:
                for event in feed:
                    yield event

            asyncio.run(aingest_events("example.com", stream(), url=server.url, token="t"))
        else:
            ingest_events("example.com", events if kind == "list" else feed, url=server.url, token="t")
    error = raised.value
    assert error.acknowledged == 1500
    assert error.unsent == (100 if kind == "list" else 1)
    assert error.unsent_events == [bad]
    assert (error.written, error.retryable) == ("no", False)
    rest = events[error.acknowledged + 1 :] if kind == "list" else feed
    assert ingest_events("example.com", rest, url=server.url, token="t") == 99
    assert server.numbers() == [n for n in range(1600) if n != 1500]
    if isinstance(bad, dict) and bad["event"] == "x" * 1_000_000:
        assert "MAX_EVENT_BYTES" in str(error) and "LEITSTAND_MAX_BODY" in str(error)


def test_a_refused_request_says_what_arrived(server: FakeServer) -> None:
    """If this fails, a caller sends acknowledged events again, or leaves out others."""
    server.answer = lambda request: (401, "{}") if len(server.stored.get("a", [])) >= 20_000 else 202
    feed = iter(numbered(35_000))
    with pytest.raises(IngestError, match="20000 events before were acknowledged, 10001 of the feed were not") as raised:
        ingest_events("a", feed, url=server.url, token="t")
    assert (raised.value.acknowledged, raised.value.unsent, raised.value.status) == (20_000, 10_001, 401)
    server.answer = lambda request: 202
    ingest_events("a", [*raised.value.unsent_events, *feed], url=server.url, token="t")
    assert server.numbers("a") == list(range(35_000))


def test_a_feed_that_breaks(server: FakeServer) -> None:
    """If this fails, what a feed gave before it broke is lost."""

    def feed() -> Iterator[dict[str, Any]]:
        yield from numbered(10)
        raise KeyError("broken")

    with pytest.raises(KeyError):
        ingest_events("example.com", feed(), url=server.url, token="t")
    assert server.numbers() == list(range(10))


def test_one_event_instead_of_a_feed() -> None:
    """If this fails, the keys of a mapping are taken for events."""
    wrong: Any = {"event": "x"}
    with pytest.raises(IngestError, match="iterable of mappings"):
        ingest_events("a", wrong, token="t")


def test_throughput(server: FakeServer, figure: Figure) -> None:
    """If this fails, the client cannot keep up with a busy producer. (The server here is Python, too.)"""
    events = [{"event": "measure", "n": n, "text": "x" * 100} for n in range(40_000)]
    started = time.monotonic()
    ingest_events("example.com", events, url=server.url, token="t")
    rate = len(events) / (time.monotonic() - started)
    figure(f"throughput: {rate:.0f} events/s against a server in Python")
    assert rate > 2_000


# ------------------------------------------------------------------------------------------------- the distribution


def test_the_wheel(tmp_path: Path, server: FakeServer) -> None:
    """If this fails, the installed package lacks its types or its command."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(MODULE.parent)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    program = tmp_path / "program.py"
    program.write_text(
        "import hauski_ingest\nreveal_type(hauski_ingest.ingest_event)\n"
        "with hauski_ingest.Client(url='http://h', token='t', flush_every=None) as client:\n"
        "    n: int = client.ingest_events('a', [{'event': 1}])\n"
        "hauski_ingest.Client(urll='x')\n"
    )
    environment = {**os.environ, "MYPYPATH": str(target), "PYTHONPATH": str(target)}
    check = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(MODULE.parent / ".mypy_cache"), str(program)]
    typed = subprocess.run(check, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert 'Revealed type is "def (domain: str' in typed.replace("builtins.", ""), typed
    assert 'Unexpected keyword argument "urll"' in typed and "Found 1 error" in typed, typed
    command = target / "bin" / "hauski-ingest"
    environment |= {"LEITSTAND_URL": server.url, "LEITSTAND_TOKEN": "t"}
    sent = subprocess.run([str(command), "send", "a"], input='{"n":1}', env=environment, capture_output=True, text=True)
    assert (sent.returncode, sent.stderr) == (0, "hauski-ingest: 1 events delivered\n")
    module = [sys.executable, "-m", "hauski_ingest", "--version"]
    told = subprocess.run(module, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, f"hauski-ingest {hauski_ingest.__version__}\n")
