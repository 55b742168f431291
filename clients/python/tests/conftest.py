"""What the tests of the Python client share: servers that answer as told, and a clean environment."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import hauski_ingest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
MODULE = HERE.parent / "hauski_ingest.py"
SCRIPTED = ROOT / "clients" / "tests" / "scripted_server.py"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("LEITSTAND_", "CHRONIK_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    hauski_ingest._quiet_until.clear()


Figure = Callable[[str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Says a line that is printed with the summary, also of a test that passes."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", []) if getattr(report, "when", "") == "call" else []:
                if name == "figure":
                    terminalreporter.write_line(f"{report.nodeid.split('::')[-1]}: {text}")


class Request:
    def __init__(self, path: str, headers: Any, body: bytes) -> None:
        parts = urlsplit(path)
        self.path = parts.path
        self.headers, self.body = headers, body
        asked = parse_qs(parts.query).get("domain")
        self.domain = asked[0] if asked else unquote(parts.path.removeprefix("/ingest/"))
        self.type = headers["content-type"]
        text = body.decode()
        # As a server of old takes it: a document, which is an event or an array of events.
        document = json.loads(text) if self.type == "application/json" else [json.loads(x) for x in text.split("\n") if x]
        self.events = document if isinstance(document, list) else [document]


class FakeServer:
    """Stores what it acknowledges. `answer` decides: a status, (status, text, headers), "cut" (after storing) or "drop"."""

    def __init__(self, answer: Callable[[Request], Any] | None = None) -> None:
        self.answer = answer or (lambda request: 202)
        self.requests: list[Request] = []
        self.stored: dict[str, list[Any]] = {}
        self.connections = 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                fake.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = Request(self.path, self.headers, body)
                with fake.lock:
                    fake.requests.append(request)
                    answer = fake.answer(request)
                    if not isinstance(answer, tuple):
                        answer = (answer,)
                    status, text, headers = (*answer, *("ok", {})[len(answer) - 1 :])
                    if status in (200, 202, "cut") and text.strip() == "ok":
                        fake.stored.setdefault(request.domain, []).extend(request.events)
                if status in ("cut", "drop"):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 100

            def handle_error(self, *_args: object) -> None:
                pass  # A client that was killed does not read its answer.

        self.http = Server(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def numbers(self, domain: str = "example.com") -> list[int]:
        return [event["n"] for event in self.stored.get(domain, [])]

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def dead_url() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _run_scripted(case: str, commands: int, answers: int) -> NoReturn:
    sys.stdin, sys.stdout = os.fdopen(commands), os.fdopen(answers, "w")
    sys.argv = [str(SCRIPTED), case]
    runpy.run_path(str(SCRIPTED), run_name="__main__")
    os._exit(0)


@contextmanager
def scripted(case: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The scripted server with one case; the second value ends it and returns what it saw.

    It runs in a fork, because starting Python anew takes longer than most cases.
    """
    (commands, tell), (hear, answers) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(tell)
            _run_scripted(case, commands, answers)
        finally:
            os._exit(1)
    os.close(commands)
    os.close(answers)
    with os.fdopen(hear) as output, os.fdopen(tell, "w") as input_:

        def seen() -> Any:
            input_.close()
            return json.loads(output.readline())

        try:
            yield f"http://127.0.0.1:{int(output.readline())}", seen
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def spool_files(spool: Path, part: str = "*") -> list[Path]:
    return sorted(path for path in spool.glob(f"{part}/*.ndjson") if path.parent.name not in ("rejected", "broken"))
