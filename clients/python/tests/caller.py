"""A process of an environment case: makes one client, reads calls from standard input, and answers with one line each."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any

import hauski_ingest

first: dict[str, Any] = {}
real_time_ns = time.time_ns
offset_ns = 0


def no_thread(*_arguments: object, **_more: object) -> None:
    raise RuntimeError("can't start new thread")


def data_of(call: dict[str, Any]) -> Any:
    text = bytes.fromhex(call["hex"]) if "hex" in call else call["event"].encode()
    return text if first["raw"] else json.loads(text)


class Caller:
    def __init__(self) -> None:
        self.client: Any = None
        self.loop: Any = None

    def call(self, call: dict[str, Any]) -> str:
        global offset_ns
        time.sleep(call.get("after_s", 0))
        offset_ns = round(call.get("clock_s", 0) * 1e9)
        if call.get("threads") == 0:
            threading.Thread.start = no_thread  # type: ignore[assignment, method-assign]
            threading._start_new_thread = no_thread  # type: ignore[attr-defined]
        if "file_bytes" in call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (call["file_bytes"], resource.RLIM_INFINITY))
        how = getattr(self, first["how"])
        return str(how(data_of(call)))

    def function(self, data: Any) -> object:
        return hauski_ingest.ingest_event("example.com", data, **first["settings"])

    def sync(self, data: Any) -> object:
        if self.client is None:
            self.client = hauski_ingest.Client(**first["settings"])
        return self.client.ingest_event("example.com", data)

    def batch(self, data: Any) -> object:
        if self.client is None:
            self.client = hauski_ingest.Client(**first["settings"])
        feed = self.client._ingest("example.com", [data])
        return "spooled" if feed.spooled else "ok"

    def loops(self, data: Any) -> object:
        """Each call in an event loop of its own, with one client."""
        if self.client is None:
            self.client = hauski_ingest.AsyncClient(**first["settings"])
        import asyncio

        return asyncio.run(self.client.ingest_event("example.com", data))

    def one_loop(self, data: Any) -> object:
        import asyncio

        if self.loop is None or self.loop[0] != os.getpid():
            self.loop = os.getpid(), asyncio.new_event_loop()
        if self.client is None:
            self.client = hauski_ingest.AsyncClient(**first["settings"])
        return self.loop[1].run_until_complete(self.client.ingest_event("example.com", data))


caller = Caller()


def outcome(call: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": caller.call(call)}
    except hauski_ingest.IngestError as error:
        return {
            "result": "error",
            "written": error.written,
            "retryable": error.retryable,
            "status": error.status,
            "text": f"{error} {error!r}",
        }
    except BaseException as error:
        return {"result": "raised", "text": repr(error)}


def main() -> None:
    first.update(json.loads(sys.stdin.readline()))
    time.time_ns = lambda: real_time_ns() + offset_ns
    for line in sys.stdin:
        call = json.loads(line)
        answer, told = os.pipe()
        if call.get("process") == "fork":
            child = os.fork()
            if child == 0:
                os.write(told, (json.dumps(outcome(call)) + "\n").encode())
                os._exit(0)
            os.waitpid(child, 0)
            said = os.read(answer, 1 << 20).decode()
        else:
            said = json.dumps(outcome(call)) + "\n"
        os.close(answer)
        os.close(told)
        os.write(1, said.encode())
