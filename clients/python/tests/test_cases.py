"""If one of these fails, the client does something else than clients/PROTOCOL.md says, and than the Rust client does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import SCRIPTED, scripted

import hauski_ingest
from hauski_ingest import IngestError, aingest_event, aingest_events, ingest_event, ingest_events

CASES = json.loads((SCRIPTED.parent / "cases.json").read_text())["cases"]
EVENT = {"event": "demo", "text": "Grüße", "n": 1}


def one(**settings: Any) -> object:
    return ingest_event("example.com", EVENT, **settings)


def one_async(**settings: Any) -> object:
    return asyncio.run(aingest_event("example.com", EVENT, **settings))


def batch(**settings: Any) -> object:
    return "ok" if ingest_events("example.com", [EVENT, EVENT], **settings) == 2 else "wrong"


def batch_async(**settings: Any) -> object:
    async def feed() -> Any:
        yield EVENT
        yield EVENT

    return "ok" if asyncio.run(aingest_events("example.com", feed(), **settings)) == 2 else "wrong"


PATHS = [one, one_async, batch, batch_async]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict[str, Any], path: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    if case.get("only") == "many" and "batch" not in path.__name__:
        pytest.skip("it is for requests of several events")
    # The random part of a pause is short here; test_client.py looks at its bounds.
    monkeypatch.setattr(hauski_ingest.random, "uniform", lambda least, most: least + (most - least) / 20)
    expect = case["expect"]
    error: IngestError | None = None
    result: object = "error"
    with scripted(case["name"]) as (url, seen):
        started = time.monotonic()
        try:
            result = path(
                url=url,
                token="secret-token",
                retries=case.get("retries", 2),
                backoff=case.get("backoff_s", 0.05),
                timeout=case.get("timeout_s", 2),
                spool="",
            )
        except IngestError as raised:
            error = raised
        waited_s = time.monotonic() - started
        saw = seen()
    assert result == expect["result"], error
    attempts = case.get("attempts_many", expect["attempts"]) if "batch" in path.__name__ else expect["attempts"]
    assert saw["attempts"] == attempts
    assert waited_s >= expect.get("waited_s_min", 0)
    assert waited_s <= expect.get("waited_s_max", 60)
    assert set(saw["tokens"]) <= {"secret-token"}
    count = 2 if "batch" in path.__name__ else 1
    for lines in saw["lines"]:
        assert [json.loads(line) for line in lines] == [EVENT] * count
    if error is not None:
        for name in ("status", "written", "retryable", "request_id"):
            if name in expect:
                assert getattr(error, name) == expect[name], name
        assert expect.get("text", "") in str(error)
        assert "secret-token" not in f"{error} {error!r} {error.text} {error.__cause__!r}"
        assert (error.acknowledged, error.unsent) == (0, count)
