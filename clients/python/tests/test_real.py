"""The clients against the real binary, which is killed, restarted and limited while they send.

CLIENT_EVENTS (2000) and CLIENT_KILLS (3) make it longer; SEED repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ROOT, Figure

import hauski_ingest
from hauski_ingest import Client, IngestError, ingest_event, ingest_events

BINARY = Path(os.environ.get("LEITSTAND_BIN", ROOT / "target" / "release" / "leitstand")).resolve()
os.environ["LEITSTAND_BIN"] = str(BINARY)
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import harness  # noqa: E402

EVENTS = int(os.environ.get("CLIENT_EVENTS", "2000"))
KILLS = int(os.environ.get("CLIENT_KILLS", "3"))
SHELL = ROOT / "clients" / "shell" / "push_leitstand.sh"

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is missing: cargo build --release")


@pytest.fixture
def seed(figure: Figure) -> random.Random:
    value = int(os.environ.get("SEED", random.randrange(1 << 32)))
    figure(f"seed {value} (SEED={value} repeats it)")
    return random.Random(value)


@pytest.fixture
def real() -> Iterator[harness.Server]:
    with harness.Server({"LOG_LEVEL": "ERROR"}) as server:
        assert server.up, server.log_text()
        yield server


def stored(server: harness.Server, domain: str = "example.com") -> list[int]:
    path = Path(server.dir) / f"{domain}.jsonl"
    # A kill may leave the beginning of a line; the next write repairs that.
    return [json.loads(line)["n"] for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def event(n: int) -> dict[str, Any]:
    return {"event": "numbered", "n": n, "pad": "x" * (n % 200)}


class Unrest:
    """Kills and restarts the server, on some restarts with a low rate limit, while a producer runs."""

    def __init__(self, server: harness.Server, rng: random.Random, progress: Callable[[], float]) -> None:
        self.server, self.rng, self.progress = server, rng, progress
        self.kills = self.limited = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for n in range(KILLS):
            # Spread over the work that is done, so that every kill hits the producer.
            at = (n + self.rng.random()) / (KILLS + 1)
            until = time.monotonic() + 60
            while self.progress() < at and time.monotonic() < until and not self.over.is_set():
                time.sleep(0.002)
            if self.over.is_set():
                return
            self.server.kill()
            self.kills += 1
            low = self.rng.random() < 0.3
            self.limited += low
            self.server.env["LEITSTAND_RATE_LIMIT"] = "3/second" if low else "1000000/second"
            time.sleep(self.rng.uniform(0, 0.2))
            self.server.start()
            if low:
                # Long enough to be refused, short enough for retries to be worth it.
                time.sleep(self.rng.uniform(0.2, 1.5))
                self.server.stop()
                self.server.env["LEITSTAND_RATE_LIMIT"] = "1000000/second"
                self.server.start()

    def __enter__(self) -> Unrest:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.server.kill()
        self.server.env["LEITSTAND_RATE_LIMIT"] = "1000000/second"
        self.server.start()
        assert self.server.up


class Watched(httpx.HTTPTransport):
    """Remembers the numbers of requests that ended without an answer: only these may be doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.unanswered: Counter[int] = Counter()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        numbers = [json.loads(line)["n"] for line in request.content.split(b"\n") if line]
        try:
            response = super().handle_request(request)
        except httpx.ConnectError:
            raise
        except httpx.TransportError:
            self.unanswered.update(numbers)
            raise
        if response.status_code in (500, 502, 504):
            self.unanswered.update(numbers)
        return response


def judge(
    figure: Figure, name: str, arrived: list[int], unrest: Unrest, unanswered: Counter[int], reported_lost: set[int]
) -> None:
    counts = Counter(arrived)
    lost = set(range(EVENTS)) - set(counts)
    doubled = {n: count - 1 for n, count in counts.items() if count > 1}
    figure(
        f"{name}: {EVENTS} events, {unrest.kills} kills, {unrest.limited} restarts with a low limit:"
        f" {len(lost)} lost, {len(lost - reported_lost)} of them silently,"
        f" {sum(doubled.values())} doubled, {sum(unanswered.values())} sent without an answer"
    )
    assert lost <= reported_lost, f"lost without an error: {sorted(lost - reported_lost)[:10]}"
    assert all(unanswered[n] >= count for n, count in doubled.items()), "doubled though every attempt had an answer"


# Seconds between two events, so that the producer is still there at the last kill.
PACE_S = KILLS * 0.8 / EVENTS


def one_by_one(client: Client, done: list[int]) -> set[int]:
    failed = set()
    for n in range(EVENTS):
        try:
            client.ingest_event("example.com", event(n))
        except IngestError:
            failed.add(n)
        done[0] = n + 1
        time.sleep(PACE_S)
    return failed


def in_batches(client: Client, done: list[int]) -> set[int]:
    """In feeds of 60, as a log shipper would."""
    failed: set[int] = set()
    for first in range(0, EVENTS, 60):
        numbers = range(first, min(EVENTS, first + 60))
        try:
            client.ingest_events("example.com", (event(n) for n in numbers))
        except IngestError as error:
            failed |= {e["n"] for e in error.unsent_events}
        done[0] = numbers[-1] + 1
        time.sleep(PACE_S * len(numbers))
    return failed


@pytest.mark.parametrize("how", [one_by_one, in_batches], ids=lambda how: how.__name__)
@pytest.mark.parametrize("with_spool", [True, False], ids=["spool", "no spool"])
def test_a_server_that_is_killed(
    how: Callable[[Client, list[int]], set[int]],
    with_spool: bool,
    real: harness.Server,
    seed: random.Random,
    tmp_path: Path,
    figure: Figure,
) -> None:
    """If this fails, a crash or a restart of the server loses events that the producer believes delivered."""
    done, watched = [0], Watched()
    settings: Any = {"url": real.url(), "token": harness.TOKEN, "transport": watched, "timeout": 5}
    settings |= {"spool": tmp_path / "spool", "backoff": 0.05} if with_spool else {"retries": 2, "backoff": 0.02}
    with Client(**settings) as client:
        with Unrest(real, seed, lambda: done[0] / EVENTS) as unrest:
            failed = how(client, done)
        if with_spool:
            assert not failed
            client.flush()
    assert unrest.kills > KILLS / 2, "the producer was ready before the server was killed often enough"
    arrived = stored(real)
    if with_spool:
        first = list(dict.fromkeys(arrived))
        assert first == sorted(first), "the order of the calls is lost"
    judge(
        figure, f"{how.__name__}, {'with' if with_spool else 'without'} spool", arrived, unrest, watched.unanswered, failed
    )


def test_the_shell_client_and_a_server_that_is_killed(
    real: harness.Server, seed: random.Random, tmp_path: Path, figure: Figure
) -> None:
    """If this fails, the shell client loses events without saying so."""
    if not shutil.which("jq") or not shutil.which("curl"):
        pytest.skip("jq or curl is not installed")
    feed = tmp_path / "feed.jsonl"
    left, attempts = EVENTS, 0
    # Long lines make many requests.
    feed.write_text("".join(json.dumps({"n": n, "pad": "y" * 3000}) + "\n" for n in range(EVENTS)))
    environment = {
        **os.environ,
        "FILE": str(feed),
        "URL": real.url(),
        "DOMAIN": "example.com",
        "LEITSTAND_TOKEN": harness.TOKEN,
    }
    environment |= {"LEITSTAND_RETRIES": "1", "LEITSTAND_BACKOFF": "0.05"}
    written, whole = Path(real.dir) / "example.com.jsonl", feed.stat().st_size

    def progress() -> float:
        return written.stat().st_size / whole if written.exists() else 0.0

    with Unrest(real, seed, progress) as unrest:
        while left and attempts < 100 + KILLS * 5:
            attempts += 1
            done = subprocess.run(["bash", SHELL], env={**environment, "N": str(left)}, capture_output=True, text=True)
            assert done.returncode in (0, 1), done
            if done.returncode == 0:
                left = 0
            else:
                assert f" von {left} " in done.stderr
                left = int(done.stderr.split("N=")[1].split()[0])
    arrived = stored(real)
    assert set(arrived) == set(range(EVENTS)), "an event is missing, though the script said that all were sent"
    doubled = len(arrived) - len(set(arrived))
    figure(f"shell client: {EVENTS} events, {unrest.kills} kills, {attempts} runs, 0 lost, {doubled} doubled")
    assert unrest.kills > 0, "the script was ready before the server was killed"
    assert doubled <= unrest.kills * 200, "a kill can cut one request, and so many events are in one"


def test_throughput(real: harness.Server, figure: Figure) -> None:
    """If this fails, the client cannot keep up with a busy producer."""
    events = [{"event": "measure", "n": n, "text": "x" * 100} for n in range(50_000)]
    started = time.monotonic()
    assert ingest_events("example.com", iter(events), url=real.url(), token=harness.TOKEN) == len(events)
    rate = len(events) / (time.monotonic() - started)
    figure(f"throughput: {rate:.0f} events/s against the real server, every request synced")
    # Below what an idle machine does, because the machines of a build are shared.
    assert rate > 2_000
    assert stored(real) == list(range(50_000))


def test_answers_of_the_real_server(real: harness.Server) -> None:
    """If this fails, an error does not say what the server said."""
    settings: Any = {"url": real.url(), "token": harness.TOKEN}
    assert ingest_event(" Example.com", {"event": "Grüße", "n": 1}, **settings) == "ok"
    with pytest.raises(IngestError, match="check LEITSTAND_TOKEN") as raised:
        ingest_event("example.com", {"event": 1}, url=real.url(), token="wrong")
    assert (raised.value.status, raised.value.written, raised.value.retryable) == (401, "no", False)
    assert raised.value.request_id and raised.value.request_id in str(raised.value)
    with pytest.raises(IngestError, match="invalid domain"):
        ingest_event("a_b", {"event": 1}, **settings)
    with pytest.raises(IngestError, match="domain mismatch"):
        ingest_event("example.com", {"event": 1, "domain": "other.example"}, **settings)
    with pytest.raises(IngestError, match="413.*LEITSTAND_MAX_BODY"):
        ingest_event("example.com", {"event": "x" * 1_100_000}, **settings)
    assert ingest_events("example.com", [{"n": 2, "pad": "x" * 990_000}], **settings) == 1
    assert stored(real) == [1, 2]
    assert hauski_ingest.Client(**settings).ingest_json("example.com", {"event": 1, "n": 3}) == "ok"


def test_the_rust_client_shares_the_spool(real: harness.Server, tmp_path: Path) -> None:
    """Broken, a machine with programs in both languages would deliver in the wrong order, twice, or not at all."""
    feed = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "examples" / "feed"
    if not feed.exists():
        pytest.skip(f"{feed} is missing: cargo build -p leitstand_producer --example feed")
    spool = tmp_path / "spool"
    url = f"http://127.0.0.1:{real.port}"

    def rust(first: int, count: int) -> list[str]:
        env = {
            "PATH": os.environ["PATH"],
            "LEITSTAND_URL": url,
            "LEITSTAND_TOKEN": harness.TOKEN,
            "LEITSTAND_SPOOL": str(spool),
        }
        done = subprocess.run(
            [feed, "example.com", str(first), str(count)], env=env, capture_output=True, text=True, timeout=60
        )
        return [line.split(" ", 1)[1] for line in done.stdout.splitlines()]

    def python(first: int, count: int) -> list[str]:
        with Client(url=url, token=harness.TOKEN, spool=spool, backoff=0.01) as client:
            return [client.ingest_event("example.com", event(n)) for n in range(first, first + count)]

    real.kill()
    assert python(0, 3) + rust(3, 3) + python(6, 3) + rust(9, 1) == ["spooled"] * 10
    real.start()
    assert rust(10, 2) == ["sent"] * 2, "what Python and Rust left behind goes first"
    real.kill()
    assert rust(12, 3) == ["spooled"] * 3
    real.start()
    assert python(15, 1) == ["ok"]
    assert stored(real) == list(range(16))
