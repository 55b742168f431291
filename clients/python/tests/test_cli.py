"""The command hauski-ingest: what it reads, what it says, and with which exit code it ends."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import FakeServer, spool_files

import hauski_ingest


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, because starting Python anew takes longer than most of these tests."""

    def run(*arguments: str, url: str = "", stdin: str | bytes = b"", **environment: str) -> Done:
        defaults = {"LEITSTAND_TOKEN": "secret-token", "LEITSTAND_URL": url, "LEITSTAND_RETRIES": "1"}
        with monkeypatch.context() as patch:
            for name, value in {**defaults, "LEITSTAND_BACKOFF": "0.01", **environment}.items():
                patch.setenv(name, value)
            data = stdin.encode() if isinstance(stdin, str) else stdin
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
            try:
                code = hauski_ingest.main(list(arguments))
            except SystemExit as ended:
                code = int(str(ended.code))
        done = Done(code, *capfd.readouterr())
        assert "secret-token" not in done.stdout + done.stderr
        return done

    return run


STREAM = """{"n": 1, "text": "a \\" } { b"}
{
  "n": 2,
  "deep": [ {"x": 1.10}, 12345678901234567890123, 1E2, true , null ]
}{"n":3}   {"n":4}
"""


@pytest.mark.parametrize("how", ["file", "stdin", "dash"])
def test_a_json_stream(run: Run, how: str, server: FakeServer, tmp_path: Path) -> None:
    """If this fails, a pretty-printed feed is refused, or its numbers change on the way."""
    file = tmp_path / "feed"
    file.write_text(STREAM)
    arguments = {"file": [str(file)], "stdin": [], "dash": ["-"]}[how]
    done = run("send", "example.com", *arguments, url=server.url, stdin="" if how == "file" else STREAM)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "hauski-ingest: 4 events delivered\n")
    assert server.requests[0].body.decode() == (
        '{"n":1,"text":"a \\" } { b"}\n{"n":2,"deep":[{"x":1.10},12345678901234567890123,1E2,true,null]}\n{"n":3}\n{"n":4}\n'
    )


def test_a_long_stream(run: Run, server: FakeServer) -> None:
    """If this fails, values at the edge of a read are torn, or a long stream takes for ever."""
    lines = "".join(f'{{"n": {n},\n "text": "{"Grüße " * (n % 300)}"}}\n' for n in range(5000))
    assert run("send", "example.com", url=server.url, stdin=lines).returncode == 0
    assert server.numbers() == list(range(5000))
    big = '{"text": "' + "ü" * 450_000 + '"}'
    assert run("send", "example.com", url=server.url, stdin=big).returncode == 0
    assert run("send", "example.com", url=server.url, stdin="").stderr == "hauski-ingest: 0 events delivered\n"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("[1]", r"value 3 is no JSON object but begins with '\[1]'"),
        ("7", "value 3 is no JSON object"),
        ('{"n":NaN}', "value 3 is no JSON: NaN is no JSON"),
        ('{"n":', "value 3 is no JSON"),
        ('{"n":1,}', "value 3 is no JSON"),
        (b"\xff", "value 3 is no UTF-8"),
        (b'{"n":3, "text": "\xe2\x82', "value 3 is no UTF-8"),
        ('{"n":"' + "x" * 1_000_000 + '"}', "event 3 of the feed: an event of .* is over the limit of 1000000 bytes"),
    ],
)
def test_what_is_no_event(run: Run, bad: Any, message: str, server: FakeServer) -> None:
    """If this fails, the events before a bad one are lost, or nobody learns where it is."""
    data = b'{"n":1}\n{"n":2}\n' + (bad if isinstance(bad, bytes) else bad.encode())
    done = run("send", "example.com", url=server.url, stdin=data)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert server.numbers() == [1, 2]
    assert "2 events before" in done.stderr


def test_something_was_not_delivered(run: Run, server: FakeServer, dead_url: str) -> None:
    """If this fails, a script goes on though events are missing, or cannot know which."""
    server.answer = lambda request: (503, "busy") if len(server.requests) > 1 else 202
    lines = "".join(f'{{"n":{n}}}\n' for n in range(15_000))
    done = run("send", "example.com", url=server.url, stdin=lines)
    assert done.returncode == 1
    assert "503 after 1 retries" in done.stderr and "send the stream from event 10001 on" in done.stderr
    done = run("send", "example.com", url=dead_url, stdin='{"n":1}')
    assert (done.returncode, "cannot connect" in done.stderr) == (1, True)


def test_a_domain_that_is_no_text_is_not_spooled(run: Run, dead_url: str, tmp_path: Path) -> None:
    """If this fails, an event that the server will refuse is called safe."""
    spool = tmp_path / "spool"
    for none in ('{"domain":null}', '{"domain":5}', '{"domain":"other.example"}'):
        done = run("send", "example.com", "--spool", str(spool), url=dead_url, stdin=none)
        assert done.returncode != 0 and "domain" in done.stderr
    assert list(spool.rglob("*.ndjson")) == []


def test_the_spool_from_the_command_line(run: Run, server: FakeServer, dead_url: str, tmp_path: Path) -> None:
    """If this fails, a shell script cannot use the spool, or a cron job cannot empty it."""
    spool = str(tmp_path / "spool")
    done = run("send", "example.com", "--spool", spool, url=dead_url, stdin='{"n":1}\n{"n":2}')
    assert (done.returncode, done.stderr) == (
        0,
        f"hauski-ingest: 0 events delivered, 2 are safe in {spool}: hauski-ingest flush\n",
    )
    done = run("flush", url=dead_url, LEITSTAND_SPOOL=spool)
    assert done.returncode == 1
    assert "the rest stays in the spool: network/timeout after 1 retries" in done.stderr
    done = run("flush", url=server.url, LEITSTAND_SPOOL=spool)
    assert (done.returncode, done.stderr) == (0, "hauski-ingest: 2 events delivered\n")
    assert server.numbers() == [1, 2]
    assert spool_files(Path(spool)) == []


@pytest.mark.parametrize(
    ("called_as", "shown"),
    [
        ("/usr/bin/hauski-ingest", "hauski-ingest"),
        ("/srv/app.py", "hauski-ingest"),
        ("tools/hauski_ingest.py", "python3 tools/hauski_ingest.py"),
        ("/x/hauski_ingest/__main__.py", "python3 -m hauski_ingest"),
    ],
)
def test_the_name_of_the_program(
    called_as: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this fails, the usage names a command that is not there."""
    monkeypatch.setattr(hauski_ingest.sys, "argv", [called_as])
    monkeypatch.setattr(hauski_ingest.sys, "executable", "/usr/bin/python3")
    with pytest.raises(SystemExit):
        hauski_ingest.main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: {shown} [-h]")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "usage:"),
        (["send"], {}, "usage:"),
        (["send", "a", "/nowhere/file"], {}, "cannot read /nowhere/file: No such file"),
        (["send", "a", "/"], {}, "cannot read /: Is a directory"),
        (["flush"], {}, "LEITSTAND_SPOOL not set"),
        (["send", "a"], {"LEITSTAND_TOKEN": ""}, "LEITSTAND_TOKEN not set"),
        (["send", "a"], {"LEITSTAND_TIMEOUT": "soon"}, "LEITSTAND_TIMEOUT must be"),
        (["send", "a", "--retries", "x"], {}, "retries must be"),
        (["send", "a"], {"CHRONIK_URL": "ftp://x"}, "CHRONIK_URL must be"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], environment: dict[str, str], message: str) -> None:
    """If this fails, a script cannot tell a wrong setting from a server that is down."""
    done = run(*arguments, **environment)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
