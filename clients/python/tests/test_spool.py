"""The spool: what is in it survives, arrives in order, and nothing of it is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import random
import re
import resource
import runpy
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, FakeServer, Figure, Request, spool_files

import hauski_ingest
from hauski_ingest import AsyncClient, Client, IngestError, SettingsError, flush_spool, ingest_event, ingest_events

NAME = re.compile(r"\d{23}-\d{10}-\d{6,}\.ndjson")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def event(n: int, **more: Any) -> dict[str, Any]:
    return {"event": "x", "n": n, **more}


def settings(url: str, spool: Path, **more: Any) -> Any:
    return {"url": url, "token": "secret-token", "spool": spool, "backoff": 0, "retries": 0, **more}


def fill(url: str, spool: Path, *numbers: int, domain: str = "example.com") -> None:
    """Each number is a call of its own."""
    for n in numbers:
        assert ingest_event(domain, event(n), **settings(url, spool)) == "spooled"


# ------------------------------------------------------------------------------------------------------- writing


def test_the_format(spool: Path, dead_url: str) -> None:
    """If this fails, the Rust client cannot deliver what this one leaves behind."""
    before = time.time_ns()
    assert ingest_event(" Example.COM ", event(1, text="Grüße"), **settings(dead_url, spool)) == "spooled"
    assert ingest_events("example.com", (event(n) for n in (2, 3)), **settings(dead_url, spool)) == 2
    assert sorted(os.listdir(spool)) == ["example.com", "leitstand-spool-1"]
    assert (spool / "leitstand-spool-1").read_bytes() == b""
    first, second = spool_files(spool)
    assert NAME.fullmatch(first.name) and NAME.fullmatch(second.name)
    assert before <= int(first.name[:23]) < int(second.name[:23]) <= time.time_ns()
    assert int(first.name[24:34]) == os.getpid()
    assert first.read_bytes() == '{"event":"x","n":1,"text":"Grüße"}\n'.encode()
    assert second.read_bytes() == b'{"event":"x","n":2}\n{"event":"x","n":3}\n'
    assert stat.S_IMODE((spool / "example.com").stat().st_mode) == 0o700
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    for path in spool.rglob("*"):
        assert "secret-token" not in str(path) + (path.read_text() if path.is_file() else "")


def test_the_order_of_syncs(spool: Path, dead_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a power cut after "spooled" can take the event."""
    calls: list[str] = []

    def seen(name: str, call: Callable[..., Any], shown: Callable[..., str]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            calls.append(f"{name} {shown(*arguments)}")
            return call(*arguments, **more)

        return wrapped

    def path(fd: int) -> str:
        return re.sub(r"tmp-.*", "tmp", os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), spool.parent))

    monkeypatch.setattr(os, "fsync", seen("sync", os.fsync, path))
    monkeypatch.setattr(os, "link", seen("link", os.link, lambda a, b: "final" if NAME.search(b) else b))
    fill(dead_url, spool, 1)
    assert calls == [
        "sync spool",
        "sync .",
        "sync spool",
        "sync spool/example.com/tmp",
        "link final",
        "sync spool/example.com",
    ]


def test_names_sort_when_the_clock_goes_back(spool: Path, dead_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, events overtake each other after the clock was set."""
    now = time.time_ns() + 10**12
    times = iter([now - n * 10**9 for n in range(10)])
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    fill(dead_url, spool, *range(5))
    assert [json.loads(path.read_text())["n"] for path in spool_files(spool)] == list(range(5))


def test_with_a_spool_a_call_makes_one_attempt(spool: Path, server: FakeServer) -> None:
    """If this fails, a producer waits though it has a spool, or a dead server is asked again by each call."""
    server.answer = lambda request: (503, "")
    started = time.monotonic()
    more = settings(server.url, spool, backoff=30, retries=5)
    for n in range(20):
        assert ingest_event("example.com", event(n), **more) == "spooled"
    assert len(server.requests) == 1
    assert time.monotonic() - started < 5


def test_after_the_pause_the_old_ones_go_first(spool: Path, server: FakeServer) -> None:
    """If this fails, events of a domain arrive in another order than they were sent."""
    server.answer = lambda request: (503, "")
    with Client(**settings(server.url, spool, backoff=60)) as client:
        assert [client.ingest_event("example.com", event(n)) for n in range(3)] == ["spooled"] * 3
        server.answer = lambda request: 202
        assert client.ingest_event("example.com", event(3)) == "spooled", "the pause is not over"
        hauski_ingest._quiet_until.clear()
        assert client.ingest_event("example.com", event(4)) == "ok"
        assert client.ingest_events("example.com", [event(5), event(6)]) == 2
    assert server.numbers() == list(range(7))
    assert spool_files(spool) == []


def test_retry_after_makes_the_pause_longer(spool: Path, server: FakeServer) -> None:
    """If this fails, a server that asks for a pause does not get it."""
    server.answer = lambda request: (429, "", {"Retry-After": "40"})
    with Client(**settings(server.url, spool)) as client:
        client.ingest_event("example.com", event(0))
        client.ingest_event("example.com", event(1))
        assert len(server.requests) == 1
        (until,) = hauski_ingest._quiet_until.values()
        assert 20 < until - time.monotonic() <= 40


def test_what_must_not_be_tried_again_is_not_spooled(spool: Path, server: FakeServer) -> None:
    """If this fails, a wrong token goes unnoticed, and the spool grows for ever."""
    server.answer = lambda request: (401, "{}")
    with pytest.raises(IngestError) as raised:
        ingest_event("example.com", event(0), **settings(server.url, spool))
    assert raised.value.status == 401
    assert spool_files(spool) == []
    server.answer = lambda request: (503, "")
    fill(server.url, spool, 1)
    server.answer = lambda request: (403, "{}")
    with pytest.raises(IngestError) as raised:
        ingest_event("example.com", event(2), **settings(server.url, spool))
    assert raised.value.status == 403
    assert [json.loads(path.read_text())["n"] for path in spool_files(spool)] == [1]
    with pytest.raises(IngestError, match="0 events were delivered") as raised:
        flush_spool(**settings(server.url, spool))
    assert raised.value.status == 403
    assert len(spool_files(spool)) == 1


@pytest.mark.parametrize("domain", ["../x", "a/b", "", "a..b", "-a", "a_b", "x" * 64, ".", "ä", ".".join(["a" * 50] * 6)])
def test_a_domain_that_is_no_directory(domain: str, spool: Path, dead_url: str, tmp_path: Path) -> None:
    """If this fails, a domain writes outside of the spool, or stays in it for ever."""
    with pytest.raises(IngestError, match="invalid domain"):
        ingest_event(domain, event(0), **settings(dead_url, spool))
    assert list(tmp_path.rglob("*.ndjson")) == []


def test_an_event_of_another_domain(spool: Path, dead_url: str) -> None:
    """If this fails, an event that the server will refuse is called safe."""
    more = settings(dead_url, spool)
    with pytest.raises(IngestError, match="domain mismatch") as raised:
        ingest_event("example.com", event(1, domain="other.example"), **more)
    assert (raised.value.written, raised.value.retryable) == ("no", False)
    with pytest.raises(IngestError, match="event 2 of the feed: domain mismatch"):
        ingest_events("example.com", [event(1), event(2, domain="other.example")], **more)
    for none in (None, 5, True, ["example.com"]):
        with pytest.raises(IngestError, match="the domain of an event must be text") as raised:
            ingest_event("example.com", event(4, domain=none), **more)
        assert (raised.value.written, raised.value.retryable) == ("no", False)
        with pytest.raises(IngestError, match="event 1 of the feed: the domain of an event must be text"):
            ingest_events("example.com", [event(5, domain=none)], **more)
    assert ingest_event("example.com", event(3, domain=" Example.COM"), **more) == "spooled"
    assert [json.loads(path.read_text())["n"] for path in spool_files(spool)] == [1, 3]


def test_a_system_without_flock(spool: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, the module cannot even be imported on Windows, or a spool there is used without a lock."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    other: Any = runpy.run_path(hauski_ingest.__file__)
    assert other["ingest_event"]("example.com", event(1), url=server.url, token="t") == "ok"
    with pytest.raises(other["SettingsError"], match="LEITSTAND_SPOOL needs flock"):
        other["ingest_event"]("example.com", event(1), **settings(server.url, spool))


def test_a_directory_of_somebody_else_is_refused(spool: Path, dead_url: str) -> None:
    """If this fails, a typing error in LEITSTAND_SPOOL fills a home directory."""
    spool.mkdir()
    (spool / "thesis.txt").write_text("x")
    with pytest.raises(SettingsError, match=f"LEITSTAND_SPOOL={spool} is not empty and no spool"):
        ingest_event("example.com", event(0), **settings(dead_url, spool))
    assert os.listdir(spool) == ["thesis.txt"]


def test_foreign_files_are_left_alone(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, the client sends or removes what it did not write."""
    fill(dead_url, spool, 1)
    domain = spool / "example.com"
    foreign = [spool / "README", spool / "Not A Domain" / "x.ndjson", domain / "memo.ndjson", domain / "x.txt"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"event":"foreign"}\n')
    (domain / f"{1:023}-{1:010}-{1:06}.ndjson").symlink_to(foreign[0])
    (domain / f"{2:023}-{1:010}-{1:06}.ndjson").mkdir()
    assert flush_spool(**settings(server.url, spool)) == 1
    assert server.numbers() == [1]
    assert all(path.exists() for path in foreign)


def test_a_full_spool(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, a long outage fills the disk, or an event is dropped without an error."""
    more = settings(dead_url, spool, spool_max_bytes=1000)
    kept = []
    with pytest.raises(IngestError, match=r"the spool is full: LEITSTAND_SPOOL=.*LEITSTAND_SPOOL_MAX_BYTES=1000") as raised:
        for n in range(100):
            ingest_event("example.com", event(n, pad="x" * 60), **more)
            kept.append(n)
    assert sum(path.stat().st_size for path in spool_files(spool)) <= 1000 < (len(kept) + 1) * 90
    assert raised.value.retryable and raised.value.unsent_events == [event(len(kept), pad="x" * 60)]
    assert flush_spool(**settings(server.url, spool)) == len(kept)
    assert server.numbers() == kept
    assert ingest_event("example.com", event(200), **more) == "spooled", "there is room again"
    assert ingest_events("example.com", [event(n) for n in range(201, 205)], **more) == 4
    with pytest.raises(IngestError) as raised:
        ingest_events("example.com", [event(n) for n in range(300, 400)], **more)
    assert (raised.value.acknowledged, raised.value.unsent) == (0, 100)


def test_the_size_counts_what_was_put_aside(spool: Path, dead_url: str) -> None:
    """If this fails, refused events fill the disk beyond the limit."""
    fill(dead_url, spool, 1)
    for part in ("rejected", "broken"):
        (spool / "example.com" / part).mkdir()
        (spool / "example.com" / part / "a.ndjson").write_bytes(b"x" * 300)
    with pytest.raises(IngestError, match="holds 620 bytes"):
        ingest_event("example.com", event(2), **settings(dead_url, spool, spool_max_bytes=630))


def test_a_full_disk(tmp_path: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, a full disk tears a file of the spool, or an event is lost without an error."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], stderr=subprocess.DEVNULL
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("needs root to mount a small tmpfs; test_a_file_size_limit stands in")
    try:
        spool, kept = disk / "spool", []
        with pytest.raises(IngestError, match=f"LEITSTAND_SPOOL={spool}: No space left on device, make room") as raised:
            for n in range(1000):
                ingest_event("example.com", event(n, pad="x" * 5000), **settings(dead_url, spool))
                kept.append(n)
        assert len(kept) > 20
        assert "cannot connect" in str(raised.value), "the reason for spooling is said too"
        assert [json.loads(path.read_text())["n"] for path in spool_files(spool)] == kept
        assert list(spool.rglob("tmp-*")) == []
        server.answer = lambda request: (400, "{}") if any(e["n"] == 0 for e in request.events) else 202
        with pytest.raises(IngestError, match=f"refused an event.*{len(kept) - 1} events were delivered"):
            flush_spool(**settings(server.url, spool))
        assert server.numbers() == kept[1:], "the refused event was the first, when there was no room for its reason"
        (rejected,) = spool.glob("*/rejected/*.ndjson")
        assert json.loads(rejected.read_text())["n"] == 0
        assert ingest_event("example.com", event(2000), **settings(server.url, spool)) == "ok"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_size_limit(tmp_path: Path, dead_url: str) -> None:
    """If this fails, a write that stops half-way leaves half an event in the spool."""
    program = (
        "import resource, sys, hauski_ingest as h\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: h.ingest_event('a', {'event': 'x' * 9000})\n"
        "except h.IngestError as error: print(error)\n"
        "print(h.ingest_event('a', {'event': 'y'}))\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    environment = {**os.environ, "LEITSTAND_URL": dead_url, "LEITSTAND_TOKEN": "t", "LEITSTAND_SPOOL": str(tmp_path / "s")}
    environment["PYTHONPATH"] = str(HERE.parent)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "LEITSTAND_SPOOL=" in done.stdout and os.strerror(errno.EFBIG) in done.stdout, done
    assert done.stdout.endswith("spooled\n")
    assert [path.read_text() for path in spool_files(tmp_path / "s")] == ['{"event":"y"}\n']


def test_a_spool_that_cannot_be_written(tmp_path: Path, dead_url: str) -> None:
    """If this fails, a wrong path ends in a traceback of the file system, or the event is taken for safe."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(IngestError, match=f"LEITSTAND_SPOOL={path}: "):
            ingest_event("example.com", event(0), **settings(dead_url, path))


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failed_step_of_writing_leaves_nothing(
    step: str, spool: Path, dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, an event is reported as not spooled and is delivered all the same."""
    fill(dead_url, spool, 1)
    calls = 0

    def failing(call: Callable[..., Any], at: int) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*arguments, **more)

        return wrapped

    if step == "rename":
        # A file system without links.
        monkeypatch.setattr(os, "link", failing(os.link, 1))
    monkeypatch.setattr(os, step, failing(getattr(os, step), 2 if step == "rename" else 1))
    with pytest.raises(IngestError, match="Input/output error") as raised:
        ingest_event("example.com", event(2), **settings(dead_url, spool))
    assert raised.value.written == "no"
    monkeypatch.undo()
    assert [json.loads(path.read_text())["n"] for path in spool_files(spool)] == [1]
    assert list(spool.rglob("tmp-*")) == []


def test_a_name_that_may_not_last_is_a_maybe(spool: Path, dead_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a caller who was told "no" sends an event again that is in the spool, or on its way from there."""
    fill(dead_url, spool, 1)
    synced: list[int] = []

    def failing(fd: int) -> None:
        synced.append(fd)
        if len(synced) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(IngestError, match="is in the spool.*LEITSTAND_SPOOL=.*Input/output error") as raised:
        ingest_event("example.com", event(2), **settings(dead_url, spool))
    assert raised.value.written == "maybe"
    assert [json.loads(path.read_text())["n"] for path in spool_files(spool)] == [1, 2]


# ------------------------------------------------------------------------------------------------------ delivering


def test_neighbours_are_joined(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, an outage of an hour takes an hour to deliver, or a request is too large for the server."""
    fill(dead_url, spool, *range(50))
    assert ingest_events("example.com", [event(n) for n in range(50, 1020)], **settings(dead_url, spool)) == 970
    for n in range(1020, 1024):
        ingest_event("example.com", event(n, pad="x" * 200_000), **settings(dead_url, spool))
    assert flush_spool(**settings(server.url, spool)) == 1024
    assert server.numbers() == list(range(1024))
    assert [len(request.events) for request in server.requests] == [1022, 2]
    assert all(len(request.body) <= 512 * 1024 for request in server.requests)
    assert spool_files(spool) == []


def test_a_refused_event_does_not_stop_the_others(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, one bad event blocks its domain for ever, or disappears without a trace."""
    fill(dead_url, spool, 1, 2, 3)
    ingest_events("example.com", [event(n) for n in (4, 5, 6, 7)], **settings(dead_url, spool))
    fill(dead_url, spool, 8)
    bad = {2: 400, 5: 422, 7: 413}
    server.answer = lambda request: next(((bad[e["n"]], f"no {e['n']}") for e in request.events if e["n"] in bad), 202)
    files = [path.name for path in spool_files(spool)]
    with pytest.raises(IngestError) as raised:
        flush_spool(**settings(server.url, spool))
    assert server.numbers() == [1, 3, 4, 6, 8]
    assert spool_files(spool) == []
    rejected = spool / "example.com" / "rejected"
    assert {path.name: path.read_text() for path in rejected.iterdir()} == {
        files[1]: '{"event":"x","n":2}\n',
        files[1] + ".reason": "400 no 2\n",
        files[3]: '{"event":"x","n":5}\n{"event":"x","n":7}\n',
        files[3] + ".reason": "422 no 5\n413 no 7\n",
    }
    assert raised.value.acknowledged == 5
    assert str(raised.value).count("refused an event") == 3 and str(rejected / files[1]) in str(raised.value)
    assert flush_spool(**settings(server.url, spool)) == 0


def test_an_interrupted_delivery_of_a_refused_file(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, acknowledged events are sent again, though nothing was cut."""
    ingest_events("example.com", [event(n) for n in range(6)], **settings(dead_url, spool))

    def answer(request: Request) -> Any:
        numbers = [e["n"] for e in request.events]
        return (400, "bad") if 1 in numbers or 4 in numbers else 503 if 3 in numbers and broken else 202

    broken = True
    server.answer = answer
    with pytest.raises(IngestError) as raised:
        flush_spool(**settings(server.url, spool))
    assert raised.value.status == 503
    assert server.numbers() == [0, 2]
    (file,) = spool_files(spool)
    assert file.read_text().count("\n") == 3
    broken = False
    with pytest.raises(IngestError, match="refused an event"):
        flush_spool(**settings(server.url, spool))
    assert server.numbers() == [0, 2, 3, 5]
    assert spool_files(spool) == []
    assert (spool / "example.com" / "rejected" / file.name).read_text() == '{"event":"x","n":1}\n{"event":"x","n":4}\n'


def refuse_odd_ones(request: Request) -> Any:
    return (422, "odd") if any(e["n"] % 2 for e in request.events) else 202


def test_a_refused_event_that_cannot_be_put_aside(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, what was acknowledged is sent again with every flush, because its neighbour was refused."""
    ingest_events("example.com", [event(n) for n in range(5)], **settings(dead_url, spool))
    rejected = spool / "example.com" / "rejected"
    rejected.touch()
    server.answer = refuse_odd_ones
    for _ in range(3):
        with pytest.raises(IngestError, match="cannot write example.com/rejected/.*stays where it is") as raised:
            flush_spool(**settings(server.url, spool))
        assert raised.value.written == "no", "what was acknowledged is not in the spool"
        hauski_ingest._spool_dirs.clear()
    assert server.numbers() == [0, 2, 4]
    (file,) = spool_files(spool)
    assert [json.loads(line)["n"] for line in file.read_text().split()] == [1, 3]
    rejected.unlink()
    with pytest.raises(IngestError, match="refused an event"):
        flush_spool(**settings(server.url, spool))
    assert [json.loads(line)["n"] for line in (rejected / file.name).read_text().split()] == [1, 3]
    assert server.numbers() == [0, 2, 4] and spool_files(spool) == []


def no_room(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_with_refused_events_on_a_full_disk(
    spool: Path, server: FakeServer, dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a full disk doubles events, or blocks what is behind a refused one."""
    ingest_events("example.com", [event(n) for n in range(5)], **settings(dead_url, spool))
    # The second file is cut short: its 401 comes when 5 and 6 are answered.
    ingest_events("example.com", [event(n) for n in range(5, 10)], **settings(dead_url, spool))
    monkeypatch.setattr(hauski_ingest._SpoolDir, "_write", no_room)
    down = True
    server.answer = lambda request: 401 if down and [e["n"] for e in request.events] == [7] else refuse_odd_ones(request)
    with pytest.raises(IngestError, match="401.*cannot write example.com/rejected/") as raised:
        flush_spool(**settings(server.url, spool))
    assert (raised.value.status, raised.value.written) == (401, "no")
    hauski_ingest._spool_dirs.clear()
    (file,) = spool_files(spool)
    assert [json.loads(line)["n"] for line in file.read_text().split()] == [5, 7, 8, 9]
    down = False
    with pytest.raises(IngestError, match="refused an event"):
        flush_spool(**settings(server.url, spool))
    assert server.numbers() == [0, 2, 4, 6, 8]
    aside = sorted((spool / "example.com" / "rejected").iterdir())
    assert [json.loads(line)["n"] for path in aside for line in path.read_text().split()] == [1, 3, 5, 7, 9]
    assert spool_files(spool) == []


def test_a_file_that_cannot_be_shortened_at_all(
    spool: Path, server: FakeServer, dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, events are sent twice by one process, or nobody is told that another may do that."""
    ingest_events("example.com", [event(n) for n in range(5)], **settings(dead_url, spool))
    server.answer = refuse_odd_ones
    with monkeypatch.context() as patch:
        patch.setattr(hauski_ingest._SpoolDir, "_write", no_room)
        patch.setattr(hauski_ingest, "_blank", no_room)
        for _ in range(2):
            with pytest.raises(IngestError, match="may send its first events twice|cannot write .*/rejected/") as raised:
                flush_spool(**settings(server.url, spool))
            assert raised.value.written == "maybe" or "cannot write" in str(raised.value)
    with pytest.raises(IngestError, match="refused an event"):
        flush_spool(**settings(server.url, spool))
    assert server.numbers() == [0, 2, 4] and spool_files(spool) == []
    (rejected,) = (spool / "example.com" / "rejected").glob("*.ndjson")
    assert [json.loads(line)["n"] for line in rejected.read_text().split()] == [1, 3]


def test_a_file_over_the_limits_goes_in_pieces(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, a file that another client wrote for a longer call is stuck."""
    fill(dead_url, spool, 1)
    (path,) = spool_files(spool)
    path.write_text("".join(json.dumps(event(n)) + "\n" for n in range(25_000)))
    assert flush_spool(**settings(server.url, spool)) == 25_000
    assert [len(request.events) for request in server.requests] == [10_000, 10_000, 5_000]
    assert server.numbers() == list(range(25_000))


BROKEN = [
    (b"", b"", []),
    (b"\n", b"\n", []),
    (b'{"n":1}', None, [1]),
    (b'{"n":2}\n\n', None, [2]),
    (b"[1]\n", b"[1]\n", []),
    (b'{"n":NaN}\n', b'{"n":NaN}\n', []),
    (b'{"n":3}\n{"n":\n{"n":4}\n', b'{"n":\n', [3, 4]),
    (b"\xff\n", b"\xff\n", []),
    (b"\0" * 100 + b"\n", b"\0" * 100 + b"\n", []),
]


def test_broken_files(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, a line that a dying disk left blocks all behind it, takes others with it, or is thrown away."""
    fill(dead_url, spool, 5)
    (good,) = spool_files(spool)
    names = [f"{number:023}-{1:010}-{1:06}.ndjson" for number in range(len(BROKEN))]
    for name, (data, _, _) in zip(names, BROKEN, strict=True):
        (good.parent / name).write_bytes(data)
    with pytest.raises(IngestError, match="broken file of the spool was put aside.*5 events were delivered"):
        flush_spool(**settings(server.url, spool))
    assert server.numbers() == [1, 2, 3, 4, 5]
    for name, (_, left, _) in zip(names, BROKEN, strict=True):
        path = good.parent / "broken" / name
        assert (path.read_bytes() if path.exists() else None) == left
    assert flush_spool(**settings(server.url, spool)) == 0


def test_what_cannot_be_removed_is_not_sent_again(
    spool: Path, server: FakeServer, dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a spool that became read-only sends its events with every flush."""
    fill(dead_url, spool, 1, 2)

    def failing(path: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing)
        for _ in range(3):
            with pytest.raises(IngestError, match="delivered, but cannot be removed"):
                flush_spool(**settings(server.url, spool))
    assert flush_spool(**settings(server.url, spool)) == 0
    assert server.numbers() == [1, 2]


def test_what_python_cannot_read_is_not_broken(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, a long number or deep nesting that the server would take is put aside."""
    fill(dead_url, spool, 1)
    (path,) = spool_files(spool)
    lines = [f'{{"n":1{"0" * 5000}}}'.encode(), b'{"n":' + b"[" * 900 + b"]" * 900 + b"}"]
    path.write_bytes(b"\n".join(lines) + b"\n")
    sent: list[bytes] = []
    transport = hauski_ingest.httpx.MockTransport(
        lambda request: sent.append(request.content) or hauski_ingest.httpx.Response(202, text="ok")
    )
    flush_spool(**settings("http://test", spool), transport=transport)
    assert sent == [b"\n".join(lines) + b"\n"]


def test_left_over_files_of_writers(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, killed writers fill the spool, or a file that is being written is removed."""
    fill(dead_url, spool, 1)
    old, young = spool / "example.com" / "tmp-1-1", spool / "example.com" / "tmp-1-2"
    for path in (old, young):
        path.write_text('{"ev')
    os.utime(old, (time.time() - 3700, time.time() - 3700))
    assert flush_spool(**settings(server.url, spool)) == 1
    assert (old.exists(), young.exists()) == (False, True)
    old.write_text("")
    assert hauski_ingest._SpoolDir(str(spool), 1000).put("example.com", [b"{}"]) is None
    young.rename(spool / "example.com" / f"tmp-{os.getpid()}-{hauski_ingest._next_number() + 2}")
    hauski_ingest._SpoolDir(str(spool), 1000).put("example.com", [b"{}"])
    assert len(spool_files(spool)) == 2, "a temporary name that is taken is passed over"


def test_whoever_lacks_the_lock_goes_behind(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, two processes deliver the same files twice."""
    fill(dead_url, spool, 1)
    with open(spool / "example.com" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ingest_event("example.com", event(2), **settings(server.url, spool)) == "spooled"
        with pytest.raises(IngestError, match=r"example\.com is being delivered by another process"):
            flush_spool(**settings(server.url, spool))
        assert server.requests == []
        assert ingest_event("other.example", event(9), **settings(server.url, spool)) == "ok"
    assert ingest_event("example.com", event(3), **settings(server.url, spool)) == "ok"
    assert server.numbers() == [1, 2, 3]


def test_one_bad_domain_does_not_stop_the_others(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, one domain whose file is locked keeps all domains back."""
    for domain in ("a", "b", "c"):
        fill(dead_url, spool, 1, domain=domain)
    server.answer = lambda request: (503, "lock timeout") if request.domain == "b" else 202
    with pytest.raises(IngestError, match="lock timeout.*2 events were delivered"):
        flush_spool(**settings(server.url, spool))
    assert sorted(server.stored) == ["a", "c"]
    assert flush_spool("a", **settings(server.url, spool)) == 0
    server.answer = lambda request: 202
    assert flush_spool("b", **settings(server.url, spool)) == 1


def test_a_crash_between_answer_and_removal_only_doubles(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, a crash at the worst moment loses events."""
    fill(dead_url, spool, 1, 2, 3)
    program = (
        "import os, hauski_ingest as h\n"
        "h._SpoolDir.remove = lambda *arguments: os._exit(9)\n"
        f"h.flush_spool(url={server.url!r}, token='t', spool={str(spool)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(HERE.parent)})
    assert done.returncode == 9
    assert server.numbers() == [1, 2, 3]
    assert flush_spool(**settings(server.url, spool)) == 3
    assert server.numbers() == [1, 2, 3, 1, 2, 3]
    assert spool_files(spool) == []


def test_flush_tries_again(spool: Path, server: FakeServer, dead_url: str) -> None:
    """If this fails, a flush by hand gives up at the first 429."""
    fill(dead_url, spool, 1)
    answers = iter([429, 503, 202])
    server.answer = lambda request: next(answers)
    assert flush_spool(**settings(server.url, spool, retries=2)) == 1


def test_the_thread_delivers(spool: Path, server: FakeServer) -> None:
    """If this fails, a program that sends rarely keeps its events for a long time."""
    server.answer = lambda request: (503, "")
    client = Client(**settings(server.url, spool), flush_every=0.05)
    client.ingest_event("example.com", event(1))
    time.sleep(0.2)
    server.answer = lambda request: 202
    until = time.monotonic() + 5
    while not server.numbers() and time.monotonic() < until:
        time.sleep(0.01)
    assert server.numbers() == [1]
    server.answer = lambda request: (503, "") if not client._closing.is_set() else 202
    client.ingest_event("example.com", event(2))
    client.close()
    assert server.numbers() == [1, 2], "close() tries a last time"
    assert not any(thread.name == "hauski-flush" for thread in threading.enumerate())
    for wrong in (0, -1, float("nan")):
        with pytest.raises(SettingsError, match="flush_every"):
            Client(**settings(server.url, spool), flush_every=wrong)
    with pytest.raises(SettingsError, match="LEITSTAND_SPOOL"):
        Client(url=server.url, token="t", flush_every=1)


def test_async_with_a_spool(spool: Path, server: FakeServer) -> None:
    """If this fails, an asyncio program spools or delivers otherwise than the others, or a cancelled call keeps the lock."""

    async def run() -> None:
        server.answer = lambda request: (503, "")
        async with AsyncClient(**settings(server.url, spool)) as client:
            assert await client.ingest_event("example.com", event(0)) == "spooled"
            assert await client.ingest_events("example.com", [event(1), event(2)]) == 2
            held = threading.Event()
            server.answer = lambda request: held.wait(3) and 202
            call = asyncio.create_task(client.ingest_event("example.com", event(3)))
            while not server.lock.locked():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            server.answer = lambda request: 202
            held.set()
            assert await client.ingest_event("example.com", event(4)) == "ok"
            assert await client.flush() == 0

    asyncio.run(run())
    # The request that was cancelled had arrived, so its events are doubled.
    assert server.numbers() == [0, 1, 2, 0, 1, 2, 4]


# --------------------------------------------------------------------------------------------- several processes


def producer(server: FakeServer, spool: Path, domain: str, first: int, batch: int) -> subprocess.Popen[str]:
    program = [sys.executable, str(HERE / "producer.py"), server.url, str(spool), domain, str(first), str(batch)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE.parent)}
    return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_output(processes: list[subprocess.Popen[str]]) -> None:
    """Until each has reported an event; starting Python takes longer than that."""
    for process in processes:
        assert select.select([process.stdout], [], [], 30)[0], "a producer does not start"


def kill(process: subprocess.Popen[str]) -> list[int]:
    """Kills it, and returns the numbers it had reported as safe."""
    process.send_signal(signal.SIGKILL)
    output, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    safe: list[int] = []
    for line in output.splitlines():
        first, count = map(int, line.split())
        safe += range(first, first + count)
    return safe


def test_producers_that_are_killed(spool: Path, server: FakeServer, figure: Figure) -> None:
    """If this fails, an event that a producer was told is safe did not survive its death."""
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    figure(f"killed producers: seed {seed} (SEED={seed} repeats it)")
    rng = random.Random(seed)
    rounds = int(os.environ.get("CLIENT_ROUNDS", "6"))

    def flaky(_request: Request) -> Any:
        chance = rng.random()
        return 503 if chance < 0.3 else "cut" if chance < 0.35 else "drop" if chance < 0.4 else 202

    server.answer = flaky
    safe: dict[str, list[int]] = {"a": [], "b": []}
    first = 0
    for _ in range(rounds):
        # Two at once on one spool: on one domain or on two.
        domains = [rng.choice("ab"), rng.choice("ab")]
        both = [
            producer(server, spool, domain, first + 10**6 * k, rng.choice([1, 1, 7])) for k, domain in enumerate(domains)
        ]
        wait_for_output(both)
        time.sleep(rng.uniform(0.0, 0.8))
        for domain, process in zip(domains, both, strict=True):
            safe[domain] += kill(process)
        first += 100_000
    server.answer = lambda request: 202
    flush_spool(**settings(server.url, spool))
    total = doubled = 0
    for domain, numbers in safe.items():
        arrived = Counter(server.numbers(domain))
        lost = [n for n in numbers if n not in arrived]
        assert not lost, f"{len(lost)} of {len(numbers)} lost, e.g. {lost[:5]}"
        total += len(numbers)
        doubled += sum(count - 1 for count in arrived.values())
    figure(f"killed producers: {2 * rounds} kills, {total} events reported safe, 0 lost, {doubled} doubled")
    assert total > 20 * rounds
    assert spool_files(spool) == []


def spool_and_flush(url: str, spool: Path, told: int, first: int, seed: int) -> None:
    """What a killed child does: spools and flushes, and tells which event is safe."""
    rng = random.Random(seed)
    n = first
    while True:
        if rng.random() < 0.7:
            numbers = range(n, n + rng.choice([1, 1, 3]))
            ingest_events("example.com", [event(number) for number in numbers], **settings("http://127.0.0.1:9", spool))
            os.write(told, f"{numbers[0]} {len(numbers)}\n".encode())
            n = numbers[-1] + 1
        else:
            with contextlib.suppress(IngestError):
                flush_spool(**settings(url, spool, token=f"child-{first}"))


def test_kills_in_the_middle_of_spooling_and_flushing(spool: Path, server: FakeServer, figure: Figure) -> None:
    """If this fails, a kill -9 loses an event that is safe, or doubles more than one request."""
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    kills = int(os.environ.get("CLIENT_CRASHES", "25"))
    rng = random.Random(seed)
    asked: list[tuple[str, Any, list[int]]] = []

    def answer(request: Request) -> Any:
        how = rng.choices([202, "cut", 503], [8, 1, 1])[0]
        asked.append((request.headers["x-auth"], how, [e["n"] for e in request.events]))
        return how

    server.answer = answer
    safe: list[int] = []
    for number in range(kills):
        hear, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                hauski_ingest._quiet_until.clear()
                spool_and_flush(server.url, spool, told, 10_000 * number, rng.randrange(1 << 32))
            finally:
                os._exit(1)
        os.close(told)
        assert select.select([hear], [], [], 30)[0], "a child does not start"
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        with os.fdopen(hear) as output:
            for line in output:
                first, count = map(int, line.split())
                safe += range(first, first + count)
    server.answer = lambda request: 202
    flush_spool(**settings(server.url, spool))
    arrived = Counter(server.numbers())
    lost = [n for n in safe if n not in arrived]
    assert not lost, f"{len(lost)} of {len(safe)} lost (SEED={seed})"
    first_arrivals = list(dict.fromkeys(server.numbers()))
    assert first_arrivals == sorted(first_arrivals), "an event overtook another"
    doubled = sum(count - 1 for count in arrived.values())
    # Only what had no answer, or was the last that a killed child sent, may be sent again.
    last = {child: at for at, (child, _, _) in enumerate(asked)}
    over: set[int] = set()
    for at, (child, how, numbers) in enumerate(asked):
        assert over.isdisjoint(numbers), f"sent again though it was acknowledged and removed (SEED={seed})"
        if how == 202 and last[child] != at:
            over.update(numbers)
    figure(f"{kills} kills while spooling and flushing: {len(safe)} events safe, 0 lost, {doubled} doubled (SEED={seed})")
    assert spool_files(spool) == []


def test_a_shell_client_that_is_killed(server: FakeServer, tmp_path: Path, figure: Figure) -> None:
    """If this fails, a killed shell client leaves half a request behind, or its repetition loses events."""
    if not shutil.which("jq") or not shutil.which("curl"):
        pytest.skip("jq or curl is not installed")
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    # Each takes as long as bash, jq and curl need to start.
    kills = int(os.environ.get("CLIENT_CRASHES", "5"))
    rng = random.Random(seed)
    script = HERE.parents[1] / "shell" / "push_leitstand.sh"
    feed = tmp_path / "feed.jsonl"
    feed.write_text("".join(json.dumps(event(n, pad="x" * 20_000)) + "\n" for n in range(200)))
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "FILE": str(feed), "URL": server.url}
    environment |= {"DOMAIN": "example.com", "N": "200", "LEITSTAND_TOKEN": "t"}

    def answer(request: Request) -> int:
        for known in request.events:
            known["pad"] = ""  # of hundreds of runs it would be a gigabyte
        time.sleep(0.02)
        return 202

    server.answer = answer
    for number in range(kills):
        process = subprocess.Popen(["bash", script], env=environment, start_new_session=True, stderr=subprocess.PIPE)
        before, until = len(server.requests), time.monotonic() + 30
        while number % 2 and len(server.requests) == before and time.monotonic() < until and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    arrived = Counter(server.numbers())
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    total = Counter(server.numbers())
    assert set(total) == set(range(200))
    assert all(total[n] == arrived[n] + 1 for n in range(200)), "one run sends each event once"
    assert max(total.values()) <= kills + 1
    doubled = sum(total.values()) - 200
    figure(f"shell client: {kills} kills, 0 lost, {doubled} doubled by the runs after them (SEED={seed})")


def test_two_processes_on_one_spool(spool: Path, server: FakeServer, figure: Figure) -> None:
    """If this fails, processes that share a spool deliver an event twice or overtake their own events."""
    server.answer = lambda request: 503 if len(server.requests) % 5 in (1, 2) else 202
    both = [producer(server, spool, "example.com", 10**6 * k, 1 + 2 * k) for k in range(2)]
    wait_for_output(both)
    time.sleep(1.5)
    safe = [kill(process) for process in both]
    server.answer = lambda request: 202
    flush_spool(**settings(server.url, spool))
    arrived = server.numbers()
    assert all(len(numbers) > 20 for numbers in safe)
    assert set(safe[0] + safe[1]) <= set(arrived)
    first_arrivals = list(dict.fromkeys(arrived))
    for k in range(2):
        own = [n for n in first_arrivals if n // 10**6 == k]
        assert own == sorted(own), "a process overtook its own events"
    # Only the requests that were under way at the kill can have been sent twice.
    assert len(arrived) - len(first_arrivals) <= 2 * 1000
    figure(
        f"two processes: {len(safe[0])} and {len(safe[1])} events, {len(arrived) - len(first_arrivals)} doubled at the kill"
    )
    shutil.rmtree(spool)
