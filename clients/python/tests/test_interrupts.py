"""A Ctrl-C, or any other exception from outside, between any two steps of a call."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from conftest import MODULE, Figure, Request

import hauski_ingest
from hauski_ingest import Client, IngestError

FILE = str(MODULE)
# What is under way to the server may be stored or not; everything else is certain.
SENDING = {"_post", "_post_to", "stream", "send"}


class Server:
    """Stores what it acknowledges, and refuses what is odd if it is told to."""

    def __init__(self, refuses: bool) -> None:
        self.stored: list[int] = []
        self.refused: list[int] = []
        self.refuses = refuses
        self.down = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        numbers = [
            event["n"] for event in Request(str(request.url.raw_path, "ascii"), request.headers, request.content).events
        ]
        if self.down:
            return httpx.Response(503)
        if self.refuses and any(n % 2 for n in numbers):
            return httpx.Response(422, text="odd")
        self.stored += numbers
        return httpx.Response(202, text="ok")


class Interrupt:
    """Raises a KeyboardInterrupt before the step with this number, of those of the module in this thread."""

    def __init__(self, at: int | None, opcodes: bool) -> None:
        self.at, self.opcodes, self.count = at, opcodes, 0
        self.where = ""
        self.sending = False

    def __call__(self, frame: FrameType, kind: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != FILE:
            return None
        if kind == "call":
            frame.f_trace_opcodes = self.opcodes
            return self
        if kind not in ("line", "opcode"):
            return self
        self.count += 1
        if self.count - 1 == self.at:
            self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
            above: FrameType | None = frame
            while above is not None:
                self.sending = self.sending or (above.f_code.co_filename == FILE and above.f_code.co_name in SENDING)
                above = above.f_back
            raise KeyboardInterrupt
        return self

    def during(self, call: Callable[[], object]) -> bool:
        """Whether it was interrupted. Nothing holds the traceback any more when this returns."""
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        except IngestError:
            pass
        finally:
            sys.settrace(None)
        return False


def is_free(path: Path) -> bool:
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def numbers_in(directory: Path) -> list[int]:
    lines = [line for path in directory.glob("*.ndjson") for line in path.read_text().split()]
    return [hauski_ingest.json.loads(line)["n"] for line in lines]


class Scene:
    """A spool with events in it, and a call that is interrupted."""

    def __init__(self, directory: Path, refuses: bool) -> None:
        self.spool = directory / "spool"
        self.domain = self.spool / "example.com"
        self.server = Server(refuses)
        transport = httpx.MockTransport(self.server)
        self.client = Client(url="http://test", token="t", spool=self.spool, backoff=0, retries=0, transport=transport)
        self.server.down = True
        self.client.ingest_events("example.com", [{"n": n} for n in range(4)])
        self.client.ingest_event("example.com", {"n": 4})
        self.client.ingest_event("example.com", {"n": 5})
        hauski_ingest._quiet_until.clear()
        self.server.down = False

    def call(self) -> object:
        return self.client.ingest_event("example.com", {"n": 6})

    def flush(self) -> object:
        return self.client.flush()

    def spool_one(self) -> object:
        self.server.down = True
        return self.client.ingest_event("example.com", {"n": 6})


def check(scene: Scene, what: str, interrupt: Interrupt) -> None:
    was_interrupted = interrupt.during(getattr(scene, what))
    where = f"{what}, interrupted before step {interrupt.at}: {interrupt.where}"
    for name in ("lock", "last"):
        assert is_free(scene.domain / name), f"{where}: {name} is still locked"
    scene.server.down = False
    hauski_ingest._quiet_until.clear()
    # The same process goes on, and nothing is in its way.
    try:
        scene.client.ingest_event("example.com", {"n": 8})
        scene.client.flush()
    except IngestError as error:
        assert scene.server.refuses and "refused" in str(error), where
    there = numbers_in(scene.domain)
    assert there == [], where
    rejected = numbers_in(scene.domain / "rejected")
    seen = Counter(scene.server.stored) + Counter(rejected)
    wanted = {0, 1, 2, 3, 4, 5, 8} | (set() if was_interrupted or what == "flush" else {6})
    assert seen.keys() >= wanted, f"{where}: lost {wanted - seen.keys()}"
    doubled = {n for n, count in Counter(scene.server.stored).items() if count > 1}
    if doubled:
        assert interrupt.sending, f"{where}: doubled {doubled}"


@pytest.mark.parametrize("refuses", [False, True], ids=["good", "refusing"])
@pytest.mark.parametrize("what", ["call", "flush", "spool_one"])
def test_an_interrupt_at_any_step(what: str, refuses: bool, tmp_path: Path, figure: Figure) -> None:
    """If this fails, a Ctrl-C at the wrong moment leaves a lock that nobody gives back, or loses or doubles events.

    CLIENT_STEPS=1 tries every line.
    """
    steps = Interrupt(None, False)
    scene = Scene(tmp_path, refuses)
    steps.during(getattr(scene, what))
    shutil.rmtree(tmp_path / "spool")
    assert steps.count > 200, "the steps are seen"
    stride = int(os.environ.get("CLIENT_STEPS", "5"))
    for at in range(os.getpid() % stride, steps.count + 1, stride):
        hauski_ingest._spool_dirs.clear()
        check(Scene(tmp_path, refuses), what, Interrupt(at, False))
        shutil.rmtree(tmp_path / "spool")
    figure(f"{what}, {'refusing' if refuses else 'good'}: interrupted before every {stride}th of {steps.count} lines")


@pytest.mark.parametrize("what", ["call", "spool_one"])
def test_an_interrupt_at_any_instruction(what: str, tmp_path: Path, figure: Figure) -> None:
    """As above, between the instructions of a line; every 55th, or every fifth with CLIENT_STEPS=1."""
    stride = int(os.environ.get("CLIENT_STEPS", "11")) * 5
    steps = Interrupt(None, True)
    steps.during(getattr(Scene(tmp_path, False), what))
    shutil.rmtree(tmp_path / "spool")
    for at in range(os.getpid() % stride, steps.count, stride):
        hauski_ingest._spool_dirs.clear()
        check(Scene(tmp_path, False), what, Interrupt(at, True))
        shutil.rmtree(tmp_path / "spool")
    figure(f"{what}: interrupted before every {stride}th of {steps.count} instructions, from {os.getpid() % stride} on")


def test_a_lock_whose_holder_was_interrupted_twice(tmp_path: Path) -> None:
    """If this fails, two Ctrl-C in a row and a traceback that somebody keeps lock a process out of its own spool."""
    scene = Scene(tmp_path, False)
    scene.server.down = True
    released = hauski_ingest._FileLock.release

    def interrupted(_lock: object) -> None:
        raise KeyboardInterrupt

    hauski_ingest._FileLock.release = interrupted  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt) as kept:
            scene.client.flush()
    finally:
        hauski_ingest._FileLock.release = released  # type: ignore[method-assign]
    assert not is_free(scene.domain / "lock"), "the traceback keeps what held it"
    scene.server.down = False
    hauski_ingest._quiet_until.clear()
    assert scene.client.ingest_event("example.com", {"n": 8}) == "ok"
    assert is_free(scene.domain / "lock") and kept.value is not None


def test_a_holder_in_another_thread_keeps_its_lock(tmp_path: Path) -> None:
    """If this fails, two threads deliver the same files at the same time."""
    scene = Scene(tmp_path, False)
    inside, over = threading.Event(), threading.Event()
    store = scene.server.__call__

    def slow(request: httpx.Request) -> httpx.Response:
        inside.set()
        over.wait(20)
        return store(request)

    transport = httpx.MockTransport(slow)
    other = Client(url="http://test", token="t", spool=scene.spool, backoff=0, retries=0, transport=transport)
    thread = threading.Thread(target=other.flush)
    thread.start()
    inside.wait(20)
    try:
        assert scene.client.ingest_event("example.com", {"n": 8}) == "spooled"
    finally:
        over.set()
        thread.join()
    assert scene.server.stored == [0, 1, 2, 3, 4, 5, 8]
