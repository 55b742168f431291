"""The part `environment` of cases.json: variables, certificates, forks, clocks, shortages, and events as they are given."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import caller
import pytest
from conftest import SCRIPTED, scripted

import hauski_ingest
from hauski_ingest import IngestError, flush_spool

CASES = json.loads((SCRIPTED.parent / "cases.json").read_text())["environment"]
HOWS = ["function", "sync", "batch", "loops", "one_loop", "command"]


def skipped(case: dict[str, Any], how: str) -> str | None:
    if reason := case.get("skip", {}).get("python"):
        return str(reason)
    if case.get("raw") and how != "command":
        return "an event is given as text on the command line only"
    if how == "command" and any(isinstance(call, dict) and call.keys() - {"event", "hex"} for call in case["calls"]):
        return "the command makes one call"
    if how in ("function", "command") and (len(case["calls"]) > 1 and "keep" in str(case.get("answers"))):
        return "it makes a connection for each call"
    if how == "loops" and "connections" in case["expect"]:
        return "each event loop has a connection of its own"
    if case.get("spool") and not case["calls"] and how != "sync":
        return "there is no call"
    if how == "command" and case["name"] == "calls_go_on_behind_what_is_stuck":
        return "another process tries what is stuck again"
    if how in ("function", "command") and "known" in case["name"]:
        return "it makes a client for each call"
    if how == "batch" and case["name"] == "no_thread_is_to_be_had":
        return "the same as sync"
    return None


def forked(environment: dict[str, str], files: tuple[int, int, int], work: Callable[[], object]) -> int:
    """Runs it in a child with this environment and these standard files. Starting Python anew takes far longer."""
    child = os.fork()
    if child:
        return child
    code: object = 70
    try:
        for number, fd in enumerate(files):
            os.dup2(fd, number)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w"), open(2, "w")
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 0)


class Process:
    def __init__(self, first: dict[str, Any], environment: dict[str, str]) -> None:
        (commands, tell), (hear, answers) = os.pipe(), os.pipe()
        # No two of these pipes are in one child, or the end of one would not be seen.
        os.set_inheritable(tell, False)
        self.child = forked(environment, (commands, answers, 2), lambda: (os.close(tell), caller.main()))
        os.close(commands)
        os.close(answers)
        self.input, self.output = os.fdopen(tell, "w"), os.fdopen(hear)
        self.tell(first)

    def tell(self, what: dict[str, Any]) -> None:
        self.input.write(json.dumps(what) + "\n")
        self.input.flush()

    def call(self, call: dict[str, Any]) -> dict[str, Any]:
        self.tell(call)
        said: dict[str, Any] = json.loads(self.output.readline())
        return said

    def end(self) -> None:
        self.input.close()
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        self.output.close()


def command(call: dict[str, Any], settings: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """The command hauski-ingest, which is given the text as it is."""
    data = bytes.fromhex(call["hex"]) if "hex" in call else call["event"].encode()
    arguments = ["--url", settings["url"], "--retries", "0", "--backoff", "0.01", "--timeout", str(settings["timeout"])]
    if settings["spool"]:
        arguments += ["--spool", settings["spool"]]
    with tempfile.TemporaryFile() as input_, tempfile.TemporaryFile() as said:
        input_.write(data)
        input_.seek(0)
        files = (input_.fileno(), said.fileno(), said.fileno())
        child = forked(environment, files, lambda: hauski_ingest.main(["send", "example.com", *arguments]))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        text = said.read().decode()
    assert "Traceback" not in text, text
    if code == 0:
        return {"result": "spooled" if "safe in" in text else "ok", "text": text}
    return {"result": "error", "text": text, "written": "maybe" if "doubled" in text else "no"}


def make(directory: Path, case: dict[str, Any]) -> None:
    """The files of a case, and what is no file."""
    for name, text in case.get("files", {}).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    for name, kind in case.get("make", {}).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "socket":
            with socket.socket(socket.AF_UNIX) as made:
                # The name may be longer than an address can be.
                before = os.getcwd()
                os.chdir(path.parent)
                try:
                    made.bind(path.name)
                finally:
                    os.chdir(before)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("/nowhere/at/all")
        else:
            {"file": path.touch, "directory": path.mkdir}[kind]()


@contextmanager
def dead() -> Iterator[str]:
    """An address where nobody listens, kept free for this test."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict[str, Any], how: str, tmp_path: Path) -> None:
    """If this fails, the client does something else than the table says that all clients share."""
    if reason := skipped(case, how):
        pytest.skip(reason)
    with dead() as nobody, scripted(case["name"]) as (url, seen):
        port = url.rpartition(":")[2]

        def filled(text: str) -> str:
            words = {"{url}": url, "{port}": port, "{dead}": nobody, "{tmp}": str(tmp_path)}
            for word, value in words.items():
                text = text.replace(word, value)
            return text

        make(tmp_path, case)
        spool = str(tmp_path / "spool") if case.get("spool") else ""
        environment = {"PATH": os.environ["PATH"], "LEITSTAND_TOKEN": "s3cret"}
        environment |= {name: filled(text) for name, text in case.get("env", {}).items()}
        settings = {
            "url": filled(case.get("url", "{url}")),
            "retries": case.get("retries", 0),
            "backoff": case.get("backoff_s", 0.01),
            "timeout": case.get("timeout_s", 2),
            "spool": spool,
        }
        first = {"how": how, "settings": settings, "raw": case.get("raw", False)}
        processes: dict[str, Process] = {}
        current, said = "0", []
        try:
            for number, given in enumerate(case["calls"]):
                call = given if isinstance(given, dict) else {"event": given}
                if how == "command":
                    said.append(command(call, settings, environment))
                    continue
                asked = call.get("process", current)
                if asked != "fork":
                    current = str(number) if asked == "new" else asked
                if current not in processes:
                    processes[current] = Process(first, environment)
                said.append(processes[current].call(call))
        finally:
            for process in processes.values():
                process.end()
        flushed = ""
        if case.get("flush"):
            # Without what is wrong in the environment; the autouse fixture keeps this process's clean.
            try:
                flush_spool(url=url, token="s3cret", spool=spool, retries=0)
            except IngestError as error:
                flushed = str(error)
        saw = seen()
    expect = case["expect"]
    assert len(said) == len(expect["calls"])
    for call_said, wanted in zip(said, expect["calls"], strict=True):
        for name, value in wanted.items():
            if name == "result_in":
                assert call_said["result"] in value, said
            elif name == "text":
                assert value in call_said["text"], said
            elif name in call_said:
                assert call_said[name] == value, said
        assert "s3cret" not in call_said.get("text", "")
    if "stored" in expect:
        assert [json.loads(line) for line in saw["stored"]] == [json.loads(line) for line in expect["stored"]], said
        if case.get("raw"):
            assert saw["stored"] == expect["stored"]
    assert bool(flushed) == bool(expect.get("flush")) or "look at" in flushed, flushed
    for text in expect.get("flush", []):
        assert text in flushed, flushed
    for name in expect.get("left", []):
        assert os.path.lexists(tmp_path / name), name
    for name in expect.get("gone", []):
        assert not os.path.lexists(tmp_path / name), name
    if "last" in expect:
        assert (tmp_path / "spool" / "example.com" / "last").stat().st_size == expect["last"]
    for name in ("attempts", "connections", "requests"):
        if name in expect:
            assert saw[name] == expect[name], (name, said)
    assert set(saw["tokens"]) <= {"s3cret"}
