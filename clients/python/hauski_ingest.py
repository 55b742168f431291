"""Send JSON events to leitstand.

    from hauski_ingest import ingest_event
    ingest_event("example.com", {"event": "heartbeat", "status": "ok"})

An event is delivered when the call returns "ok". With a spool (`spool=DIR` or LEITSTAND_SPOOL) an event that cannot be
delivered now is kept on disk, and the call returns "spooled". Everything else is an IngestError. What is tried again,
what may double and the format of the spool are in clients/PROTOCOL.md.

This one file is the whole library; it needs httpx and may be copied.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import functools
import itertools
import json
import logging
import math
import os
import random
import re
import socket
import ssl
import stat
import sys
import threading
import time
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn, TypedDict, TypeVar
from urllib.parse import quote

import httpcore
import httpx

try:
    import fcntl
except ImportError:  # No spool on Windows; the rest works.
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "AsyncClient",
    "Client",
    "IngestError",
    "Options",
    "SettingsError",
    "aflush_spool",
    "aingest_event",
    "aingest_events",
    "flush_spool",
    "ingest_event",
    "ingest_events",
    "ingest_json",
]
__version__ = "0.1.0"

MAX_EVENT_BYTES = 1_000_000
MAX_REQUEST_BYTES = 512 * 1024
MAX_REQUEST_EVENTS = 1_000
MAX_PAUSE_S = 30.0
MAX_RETRY_AFTER_S = 60
# An answer is "ok" or a short error; more of it is not read.
MAX_ANSWER_BYTES = 64 * 1024
LEFT_OVER_AFTER_S = 3600.0
# Between two looks at a spool that other processes write to as well, its size is counted along.
SIZE_LOOK_EVERY_S = 1.0

log = logging.getLogger("hauski_ingest")

T = TypeVar("T")
Written = Literal["no", "maybe"]
Delivered = Literal["ok", "spooled"]
Event = Mapping[str, Any]
Transport = httpx.BaseTransport | httpx.AsyncBaseTransport
Spool = str | os.PathLike[str]


class Options(TypedDict, total=False):
    """The keyword parameters that every function and client takes; ingest_event explains them."""

    url: str | None
    token: str | None
    timeout: float | None
    retries: int | None
    backoff: float | None
    transport: Transport | None
    spool: Spool | None
    spool_max_bytes: int | None


class IngestError(RuntimeError):
    """An event was not delivered, or must not count as delivered.

    status          of the last answer; None without one
    text            of the last answer
    request_id      X-Request-ID of the last answer, for the server's log
    written         "no", or "maybe" when sending again can double events
    retryable       whether the same call may succeed later
    acknowledged    events of the call (of the feed's beginning) that are delivered or spooled
    unsent          events of the feed that are not; of an iterator: of those that were taken from it
    unsent_events   the events themselves, of those that were taken from the feed
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        text: str = "",
        request_id: str | None = None,
        written: Written = "no",
        retryable: bool = False,
        acknowledged: int = 0,
        unsent: int = 0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.text = text
        self.request_id = request_id
        self.written: Written = written
        self.retryable = retryable
        self.acknowledged = acknowledged
        self.unsent = unsent
        self.unsent_events: list[Any] = []
        self._retry_after_s: int | None = None


class SettingsError(IngestError):
    """A parameter or a variable cannot be used; nothing was sent."""


# ---------------------------------------------------------------------------------------------------------- settings


class _Token:
    """Holds the token so that no repr, log line or traceback with locals shows it."""

    __slots__ = ("reveal",)

    def __init__(self, text: str) -> None:
        self.reveal: Callable[[], str] = lambda: text

    def __repr__(self) -> str:
        return "<token>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is not pickled")


@dataclass(frozen=True)
class _Settings:
    url: str
    token: _Token
    timeout_s: float
    retries: int
    backoff_s: float
    spool: str | None
    spool_max_bytes: int

    @property
    def shown_url(self) -> str:
        return re.sub(r"//[^/]*@", "//", self.url)


def _variable(name: str, parameter: object, what: str) -> tuple[str | None, str]:
    """The text of a setting, and what a message calls it. An empty variable counts as absent."""
    if parameter is not None:
        return str(parameter), what
    for prefix in ("LEITSTAND_", "CHRONIK_"):
        if text := os.environ.get(prefix + name):
            return text, prefix + name
    return None, "LEITSTAND_" + name


def _seconds(name: str, parameter: float | None, what: str, default: float, above_zero: bool) -> float:
    text, source = _variable(name, parameter, what)
    if text is None:
        return default
    try:
        value = float(text.replace("_", "?"))
    except ValueError:
        value = math.nan
    if not (0 <= value <= 86_400) or (above_zero and value == 0):
        least = "more than 0" if above_zero else "0 or more"
        raise SettingsError(f"{source} must be a number of seconds, {least} and at most 86400, not {text!r}")
    return value


def _whole(name: str, parameter: int | None, what: str, default: int, most: int) -> int:
    text, source = _variable(name, parameter, what)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or int(text) > most:
        raise SettingsError(f"{source} must be a whole number from 0 to {most}, not {text!r}")
    return int(text)


def _token(parameter: str | None) -> _Token:
    text, source = _variable("TOKEN", parameter or None, "token")
    if text is None:
        raise SettingsError("LEITSTAND_TOKEN not set: set it to the token of the server, or pass token=")
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", text):
        text = ""  # Tracebacks may show local variables.
        raise SettingsError(f"{source} must be printable ASCII without a space at its ends, or no header can carry it")
    return _Token(text)


def _settings(
    url: str | None = None,
    token: str | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    backoff: float | None = None,
    spool: Spool | None = None,
    spool_max_bytes: int | None = None,
) -> _Settings:
    base, source = _variable("URL", url or None, "url")
    base = (base or "http://localhost:8788").rstrip("/")
    try:
        parts = httpx.URL(base)
        right = parts.scheme in ("http", "https") and bool(parts.host) and "?" not in base and "#" not in base
    except (httpx.InvalidURL, ValueError):
        right = False
    if not right:
        raise SettingsError(f"{source} must be an http or https address without a query, such as http://localhost:8788")
    directory, _ = _variable("SPOOL", None if spool is None else os.fspath(spool), "spool")
    return _Settings(
        url=base,
        token=_token(token),
        timeout_s=_seconds("TIMEOUT", timeout, "timeout", 5.0, above_zero=True),
        retries=_whole("RETRIES", retries, "retries", 3, 1_000_000),
        backoff_s=_seconds("BACKOFF", backoff, "backoff", 0.5, above_zero=False),
        spool=os.path.abspath(directory) if directory else None,
        spool_max_bytes=_whole("SPOOL_MAX_BYTES", spool_max_bytes, "spool_max_bytes", 268_435_456, 10**18),
    )


# ------------------------------------------------------------------------------------------------------------ events


@dataclass(frozen=True)
class _RawEvent:
    """An event that is already one line of JSON; its numbers keep their spelling."""

    line: bytes


def _encode(event: object) -> bytes:
    if isinstance(event, _RawEvent):
        return event.line
    if not isinstance(event, Mapping):
        raise IngestError("payload must be a mapping")
    try:
        plain = event if isinstance(event, dict) else dict(event)
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise IngestError(f"payload cannot be written as JSON: {error}") from error


def _check_size(line: bytes) -> None:
    if len(line) > MAX_EVENT_BYTES:
        raise IngestError(
            f"an event of {len(line)} bytes is over the limit of {MAX_EVENT_BYTES} bytes (MAX_EVENT_BYTES;"
            " the server's own limit is its LEITSTAND_MAX_BODY); make it smaller"
        )


def _fits(count: int, size: int, line: bytes) -> bool:
    """Whether one more line fits into a request; size counts the line ends."""
    return count < MAX_REQUEST_EVENTS and size + len(line) + 1 <= MAX_REQUEST_BYTES


class _Feed:
    """The events taken from an iterable and not sent yet."""

    def __init__(self, domain: str, events: object) -> None:
        if isinstance(events, (Mapping, str, bytes)):
            raise IngestError("events must be an iterable of mappings; for one event there is ingest_event")
        self.domain = domain
        self.length = len(events) if isinstance(events, Sized) else None
        self.events: list[object] = []
        self.lines: list[bytes] = []
        self.size = 0
        self.acknowledged = self.spooled = 0
        # What is taken but belongs to the next request, or to none.
        self.next: tuple[object, bytes] | None = None
        self.refused: tuple[object, IngestError] | None = None

    def take(self, event: object) -> bool:
        """Takes one event; True if what was taken before it must be sent first."""
        try:
            line = _encode(event)
            _check_size(line)
        except IngestError as error:
            self.refused = (event, error)
            return True
        if self.lines and not _fits(len(self.lines), self.size, line):
            self.next = (event, line)
            return True
        self._add(event, line)
        return False

    def _add(self, event: object, line: bytes) -> None:
        self.events.append(event)
        self.lines.append(line)
        self.size += len(line) + 1

    def sent(self, how: Delivered) -> None:
        self.acknowledged += len(self.lines)
        if how == "spooled":
            self.spooled += len(self.lines)
        self.events, self.lines, self.size = [], [], 0

    def go_on(self) -> None:
        if self.refused is not None:
            raise self.stopped(self.refused[1], f"event {self.acknowledged + 1} of the feed: ")
        if self.next is not None:
            self._add(*self.next)
            self.next = None

    def stopped(self, error: IngestError, where: str = "") -> IngestError:
        """The same error with the counts of the feed."""
        left = list(self.events)
        left += [self.next[0]] if self.next else []
        left += [self.refused[0]] if self.refused else []
        unsent = len(left) if self.length is None else max(len(left), self.length - self.acknowledged)
        message = f"{where}{error}; {self.acknowledged} events before were acknowledged, {unsent} of the feed were not"
        other = type(error)(
            message,
            status=error.status,
            text=error.text,
            request_id=error.request_id,
            written=error.written,
            retryable=error.retryable,
            acknowledged=self.acknowledged,
            unsent=unsent,
        )
        other.unsent_events = [event.line if isinstance(event, _RawEvent) else event for event in left]
        other.__cause__ = error
        return other


# ---------------------------------------------------------------------------------------------------- what is to do
#
# The rules below are written once, as generators that yield what is to be done. Client does it, AsyncClient awaits it.


@dataclass(frozen=True)
class _Send:
    path: str
    content_type: str
    body: bytes = field(repr=False)
    events: int


@dataclass(frozen=True)
class _Wait:
    seconds: float


@dataclass(frozen=True)
class _Do:
    """A short piece of work with files."""

    work: Callable[[], Any]


_Steps = Generator[_Send | _Wait | _Do, Any, T]


@dataclass(frozen=True)
class _Outcome:
    """What came of one attempt."""

    good: bool = False
    status: int | None = None
    text: str = ""
    request_id: str | None = None
    written: Written = "maybe"
    retryable: bool = True
    retry_after_s: int | None = None
    cause: BaseException | None = None

    def error(self, retries: int, written: Written) -> IngestError:
        if self.status is None:
            message = f"network/timeout after {retries} retries: {self.text}"
        elif self.retryable:
            message = f"ingest failed with {self.status} after {retries} retries: {self.text[:500]}"
        else:
            message = f"ingest rejected: {self.status} {_detail(self.text)}"
        if hint := _HINTS.get(self.status or 0):
            message += f" ({hint})"
        if self.request_id:
            message += f" [request id {self.request_id}]"
        error = IngestError(
            message,
            status=self.status,
            text=self.text,
            request_id=self.request_id,
            written=written,
            retryable=self.retryable,
        )
        error.__cause__ = self.cause
        return error


_HINTS = {
    401: "check LEITSTAND_TOKEN",
    404: "check LEITSTAND_URL",
    413: "the server's LEITSTAND_MAX_BODY is smaller",
    429: "the server's LEITSTAND_RATE_LIMIT",
}


def _detail(text: str) -> object:
    try:
        return json.loads(text[:500])
    except ValueError:
        return text[:500]


def _judge(status: int, headers: httpx.Headers, data: bytes) -> _Outcome:
    text = data[:MAX_ANSWER_BYTES].decode(errors="replace")
    retry_after = headers.get("retry-after", "").strip()
    seconds = int(retry_after) if re.fullmatch(r"[0-9]{1,9}", retry_after) else None
    good = status in (200, 202) and data.strip() == b"ok" and len(data) <= MAX_ANSWER_BYTES
    retryable = status in (408, 429) or status >= 500
    nothing_written = status in (503, 507) or 400 <= status < 500
    return _Outcome(
        good=good,
        status=status,
        text=text,
        request_id=headers.get("x-request-id"),
        written="no" if nothing_written else "maybe",
        retryable=retryable,
        retry_after_s=seconds if seconds is not None and seconds <= MAX_RETRY_AFTER_S else None,
    )


def _no_connection(error: BaseException, url: str) -> _Outcome:
    return _Outcome(text=f"cannot connect to {url}: {error or type(error).__name__}", written="no", cause=error)


def _no_answer(timeout_s: float, url: str, error: BaseException | None = None) -> _Outcome:
    return _Outcome(text=f"no answer from {url} within {timeout_s:g} s", cause=error)


def _failed(error: Exception, settings: _Settings) -> _Outcome:
    """What an exception of httpx says about an attempt."""
    url = settings.shown_url
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)):
        return _no_connection(error, url)
    if isinstance(error, httpx.TimeoutException):
        return _no_answer(settings.timeout_s, url, error)
    return _Outcome(text=f"no whole answer from {url}: {error or type(error).__name__}", cause=error)


def _pause_s(tried: int, backoff_s: float, retry_after_s: int | None) -> float:
    """The pause after the attempt with this number, from 0."""
    at_random = random.uniform(0, min(MAX_PAUSE_S, backoff_s * 2.0 ** min(tried, 60)))
    return at_random + (retry_after_s or 0)


def _attempts(send: _Send, settings: _Settings, retries: int) -> _Steps[None]:
    """Returns with the good answer, else raises."""
    written: Written = "no"
    for tried in range(retries + 1):
        outcome: _Outcome = yield send
        if outcome.good:
            return
        if outcome.written == "maybe":
            written = "maybe"
        if tried == retries or not outcome.retryable:
            error = outcome.error(tried, written)
            error._retry_after_s = outcome.retry_after_s
            raise error
        log.info("attempt %d of %d: %s", tried + 1, retries + 1, outcome.text[:200] or outcome.status)
        yield _Wait(_pause_s(tried, settings.backoff_s, outcome.retry_after_s))


def _one(domain: str, line: bytes) -> _Send:
    return _Send(f"/ingest/{quote(domain, safe='')}", "application/json", line, 1)


def _many(domain: str, lines: list[bytes]) -> _Send:
    path = f"/v1/ingest?domain={quote(domain, safe='')}"
    return _Send(path, "application/x-ndjson", b"\n".join(lines) + b"\n", len(lines))


# ------------------------------------------------------------------------------------------------------------- spool

_MARKER = "leitstand-spool-1"
_DOMAIN = re.compile(r"(?!.{254})[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_NAME = re.compile(r"[0-9]{23}-[0-9]{10}-[0-9]{6,}\.ndjson")
_TEMPORARY = re.compile(r"tmp-[0-9]+-[0-9]+")
# Statuses that speak of the events of a request; any other refusal is about all requests.
_REFUSED_EVENTS = (400, 413, 422)

_names = threading.Lock()
_last_ns = 0
_last_number = 0
# Until when no call tries the server again, by spool and address.
_quiet_until: dict[tuple[str, str], float] = {}


def _next_name() -> tuple[int, int]:
    """Time in nanoseconds, never the same or an earlier one in this process, and a number."""
    global _last_ns, _last_number
    with _names:
        _last_ns = max(time.time_ns(), _last_ns + 1)
        _last_number += 1
        return _last_ns, _last_number


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _spool_domain(domain: str) -> str:
    name = domain.strip().lower()
    if not _DOMAIN.fullmatch(name):
        raise IngestError(f"invalid domain {domain[:80]!r}: the server would refuse it, so it is not spooled")
    return name


class _BrokenFile(Exception):
    pass


@dataclass
class _Report:
    """What a delivery did besides delivering."""

    delivered: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        log.error("%s", problem)
        self.problems.append(problem)


class _SpoolDir:
    """The files of a spool. Every method is short, blocks, and raises an IngestError that names LEITSTAND_SPOOL."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._size = 0
        self._looked_at = -math.inf
        self._lock = threading.Lock()

    def _error(self, error: OSError, what: str) -> IngestError:
        hint = {errno.ENOSPC: "make room on that disk", errno.EDQUOT: "make room in that quota"}.get(error.errno or 0, "")
        reason = f"{error.strerror or error}" + (f", {hint}" if hint else "")
        wrapped = IngestError(f"{what}: LEITSTAND_SPOOL={self.path}: {reason}", retryable=True)
        wrapped.__cause__ = error
        return wrapped

    def _open(self) -> None:
        """Makes the directory and its marker where they are missing."""
        marker = os.path.join(self.path, _MARKER)
        if os.path.exists(marker):
            return
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        if os.listdir(self.path) and not os.path.exists(marker):
            raise SettingsError(
                f"LEITSTAND_SPOOL={self.path} is not empty and no spool ({_MARKER} is missing): name another directory"
            )
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT, 0o600))
        _sync_directory(self.path)
        _sync_directory(os.path.dirname(self.path))

    def domains(self) -> list[str]:
        try:
            self._open()
            with os.scandir(self.path) as entries:
                return sorted(e.name for e in entries if _DOMAIN.fullmatch(e.name) and e.is_dir(follow_symlinks=False))
        except OSError as error:
            raise self._error(error, "cannot read the spool") from error

    def pending(self, domain: str, most: int | None = None) -> list[str]:
        """The names of the files that wait, in the order of their calls; `most`: so many of them, in any order."""
        try:
            self._open()
            with os.scandir(os.path.join(self.path, domain)) as entries:
                names = (e.name for e in entries if _NAME.fullmatch(e.name) and e.is_file(follow_symlinks=False))
                return sorted(itertools.islice(names, most))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error(error, "cannot read the spool") from error

    def size(self) -> int:
        total = 0
        for domain in self.domains():
            for part in ("", "rejected", "broken"):
                # A file may be delivered, and a directory may not be there yet.
                with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(self.path, domain, part)) as entries:
                    for entry in entries:
                        if entry.name.endswith(".ndjson"):
                            with contextlib.suppress(FileNotFoundError):
                                total += entry.stat(follow_symlinks=False).st_size
        return total

    def _reserve(self, size: int) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at > SIZE_LOOK_EVERY_S or self._size + size > self.max_bytes:
                self._size, self._looked_at = self.size(), now
            if self._size + size > self.max_bytes:
                raise IngestError(
                    f"the spool is full: LEITSTAND_SPOOL={self.path} holds {self._size} bytes, with these {size} it would"
                    f" be over LEITSTAND_SPOOL_MAX_BYTES={self.max_bytes}; deliver it (hauski-ingest flush) or raise that",
                    retryable=True,
                )
            self._size += size

    def put(self, domain: str, lines: list[bytes]) -> None:
        """Returns when the lines are on disk behind everything else of the domain; else they are not there."""
        data = b"\n".join(lines) + b"\n"
        try:
            self._open()
            self._reserve(len(data))
            directory = os.path.join(self.path, domain)
            if not os.path.isdir(directory):
                os.makedirs(directory, mode=0o700, exist_ok=True)
                _sync_directory(self.path)
            time_ns, number = _next_name()
            name = f"{time_ns:023}-{os.getpid():010}-{number:06}.ndjson"
            self._write(directory, os.path.join(directory, name), data)
        except OSError as error:
            self._looked_at = -math.inf
            raise self._error(error, "cannot write the spool") from error

    def _write(self, directory: str, path: str, data: bytes, replaces: bool = False) -> None:
        """Writes a whole file or none: temporary name, sync, rename, sync of the directory."""
        while True:
            # Processes of two containers may have the same id; whoever made the file owns the name.
            temporary = os.path.join(directory, f"tmp-{os.getpid()}-{_next_name()[1]}")
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                break
            except FileExistsError:
                continue
        there = temporary
        try:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, path)
            there = "" if replaces else path
            _sync_directory(directory)
        except BaseException:
            if there:
                with contextlib.suppress(OSError):
                    os.unlink(there)
            raise

    def lock(self, domain: str) -> int | None:
        """A descriptor that holds the domain, or None if somebody else delivers it."""
        try:
            fd = os.open(os.path.join(self.path, domain, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._error(error, "cannot lock the spool") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            os.close(fd)
            raise self._error(error, "cannot lock the spool") from error
        return fd

    # What follows is called by the holder of the lock only.

    def tidy(self, domain: str) -> None:
        """Removes what a writer left that ended while writing."""
        directory = os.path.join(self.path, domain)
        for part in (directory, os.path.join(directory, "rejected")):
            try:
                with os.scandir(part) as entries:
                    for entry in entries:
                        if _TEMPORARY.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > LEFT_OVER_AFTER_S:
                            os.unlink(entry.path)
            except OSError:
                pass  # Left over is not in the way.

    def read(self, domain: str, name: str) -> list[bytes]:
        """The lines of a file; _BrokenFile if they are not JSON objects."""
        try:
            with open(os.path.join(self.path, domain, name), "rb") as file:
                data = file.read()
        except OSError as error:
            raise self._error(error, "cannot read the spool") from error
        if not data.endswith(b"\n"):
            raise _BrokenFile("it has no end of line at its end")
        lines = data[:-1].split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                # Numbers are not looked at: an integer may be longer than Python converts.
                if not isinstance(json.loads(line.decode(), parse_int=str, parse_float=str, parse_constant=_refuse), dict):
                    raise _BrokenFile(f"line {number} is no JSON object")
            except ValueError as error:
                raise _BrokenFile(f"line {number} is no JSON: {error}") from None
            except RecursionError:
                pass  # Deeper than Python reads; the server judges.
        return lines

    def remove(self, domain: str, names: list[str]) -> None:
        directory = os.path.join(self.path, domain)
        try:
            for name in names:
                os.unlink(os.path.join(directory, name))
            _sync_directory(directory)
        except OSError as error:
            raise self._error(error, "delivered, but cannot be removed from the spool") from error
        self._looked_at = -math.inf

    def put_aside(self, domain: str, name: str, where: str) -> str:
        """Moves a file to rejected/ or broken/."""
        directory = os.path.join(self.path, domain)
        aside = os.path.join(directory, where)
        target = os.path.join(aside, name)
        try:
            os.makedirs(aside, mode=0o700, exist_ok=True)
            os.rename(os.path.join(directory, name), target)
            _sync_directory(aside)
            _sync_directory(directory)
        except OSError as error:
            raise self._error(error, f"cannot move {name} to {where}/") from error
        return target

    def reject(self, domain: str, name: str, lines: list[bytes], reasons: str, whole: bool) -> str:
        """Puts refused lines into rejected/ with the answers beside them; `whole`: they are all of the file."""
        aside = os.path.join(self.path, domain, "rejected")
        target = os.path.join(aside, name)
        # An earlier, interrupted delivery of the same file may have refused other lines of it.
        again = os.path.exists(target)
        try:
            os.makedirs(aside, mode=0o700, exist_ok=True)
            try:
                self._append(aside, target + ".reason", reasons.encode())
            except OSError as error:
                # On a full disk a refused event must not block the others, whose delivery makes room.
                log.error("cannot write %s.reason (%s): %s", target, error.strerror, reasons.strip())
            if whole and not again:
                return self.put_aside(domain, name, "rejected")
            self._append(aside, target, b"\n".join(lines) + b"\n")
        except OSError as error:
            raise self._error(error, f"cannot write rejected/{name}") from error
        if whole:
            self.remove(domain, [name])
        return target

    def _append(self, directory: str, path: str, data: bytes) -> None:
        try:
            with open(path, "rb") as file:
                data = file.read() + data
        except FileNotFoundError:
            pass
        self._write(directory, path, data, replaces=True)

    def replace(self, domain: str, name: str, lines: list[bytes]) -> None:
        directory = os.path.join(self.path, domain)
        try:
            self._write(directory, os.path.join(directory, name), b"\n".join(lines) + b"\n", replaces=True)
        except OSError as error:
            raise self._error(error, f"cannot shorten {name}; its first events may be sent twice") from error


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


@functools.lru_cache(maxsize=64)
def _spool_dir(path: str, max_bytes: int) -> _SpoolDir:
    return _SpoolDir(path, max_bytes)


# ---------------------------------------------------------------------------------------------------- delivery rules


class _Rules:
    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
        if settings.spool and fcntl is None:
            raise SettingsError("LEITSTAND_SPOOL needs flock, which this system does not have")
        self.spool = _spool_dir(settings.spool, settings.spool_max_bytes) if settings.spool else None

    def event(self, domain: str, data: object) -> _Steps[Delivered]:
        if not isinstance(data, Mapping):
            raise IngestError("payload must be a mapping")
        if "event" not in data:
            raise IngestError('payload missing required key "event"')
        line = _encode(data)
        if self.spool is not None:
            _check_size(line)
        try:
            return (yield from self._call(domain, _one(domain, line), [line]))
        except IngestError as error:
            error.unsent, error.unsent_events = 1, [data]
            raise

    def feed(self, feed: _Feed) -> _Steps[None]:
        """Sends what the feed holds; raises if the next event of it is none."""
        if feed.lines:
            try:
                feed.sent((yield from self._call(feed.domain, _many(feed.domain, feed.lines), feed.lines)))
            except IngestError as error:
                raise feed.stopped(error) from error
        feed.go_on()

    def _call(self, domain: str, send: _Send, lines: list[bytes]) -> _Steps[Delivered]:
        if not domain.strip().strip("."):
            raise IngestError(f"invalid domain {domain!r}")
        if self.spool is None:
            yield from _attempts(send, self.settings, self.settings.retries)
            return "ok"
        name = _spool_domain(domain)
        return (yield from self._call_with_spool(self.spool, name, send, lines))

    def _call_with_spool(self, spool: _SpoolDir, domain: str, send: _Send, lines: list[bytes]) -> _Steps[Delivered]:
        lock: int | None = None
        try:
            failure: IngestError | None = None
            if (yield _Do(lambda: spool.pending(domain, most=1))):
                if not self._quiet():
                    lock = spool.lock(domain)
                if lock is None:
                    yield _Do(lambda: spool.put(domain, lines))
                    return "spooled"
                try:
                    yield from self._deliver(spool, domain, 0, _Report())
                except IngestError as error:
                    if not error.retryable:
                        raise
                    failure = error
                else:
                    if (yield _Do(lambda: spool.pending(domain, most=1))):
                        # Others went behind meanwhile, and so does this one: else a busy domain would hold this call.
                        yield _Do(lambda: spool.put(domain, lines))
                        return "spooled"
            if failure is None and not self._quiet():
                try:
                    yield from _attempts(send, self.settings, 0)
                    return "ok"
                except IngestError as error:
                    if not error.retryable:
                        raise
                    failure = error
            if failure is not None:
                self._be_quiet(failure)
            try:
                yield _Do(lambda: spool.put(domain, lines))
            except IngestError as error:
                if failure is not None:
                    error.args = (f"{error}; the server: {failure}",)
                    error.status, error.text, error.request_id = failure.status, failure.text, failure.request_id
                    error.written = failure.written
                raise
            return "spooled"
        finally:
            if lock is not None:
                os.close(lock)

    def _quiet(self) -> bool:
        until = _quiet_until.get((self.settings.spool or "", self.settings.url))
        return until is not None and time.monotonic() < until

    def _be_quiet(self, failure: IngestError) -> None:
        seconds = max(self.settings.backoff_s, failure._retry_after_s or 0)
        _quiet_until[(self.settings.spool or "", self.settings.url)] = time.monotonic() + seconds

    def flush(self, domain: str | None, retries: int, unless_quiet: bool = False) -> _Steps[int]:
        """Delivers what is in the spool; raises if something stays, or was put aside."""
        if self.spool is None:
            raise SettingsError("LEITSTAND_SPOOL not set: there is nothing to flush")
        if unless_quiet and self._quiet():
            return 0
        spool, report = self.spool, _Report()
        failed: IngestError | None = None
        domains = (yield _Do(spool.domains)) if domain is None else [_spool_domain(domain)]
        for name in domains:
            if not (yield _Do(functools.partial(spool.pending, name, most=1))):
                continue
            # Taken at once, not as a step: a cancelled step would leave it locked.
            lock = spool.lock(name)
            if lock is None:
                failed = failed or IngestError(f"{name} is being delivered by another process", retryable=True)
                continue
            try:
                while (yield _Do(functools.partial(spool.pending, name, most=1))):
                    yield from self._deliver(spool, name, retries, report)
            except IngestError as error:
                failed = error if failed is None or error.status is not None else failed
                if error.retryable:
                    self._be_quiet(error)
                if not error.retryable or error.status is None:
                    break
            finally:
                os.close(lock)
        if failed is None and not report.problems:
            return report.delivered
        reasons = report.problems + ([f"the rest stays in the spool: {failed}"] if failed else [])
        raised = failed or IngestError("")
        raised.args = ("; ".join(reasons) + f"; {report.delivered} events were delivered",)
        raised.acknowledged = report.delivered
        raise raised

    def _deliver(self, spool: _SpoolDir, domain: str, retries: int, report: _Report) -> _Steps[None]:
        """Delivers the files that are there now, in their order. The caller holds the lock."""
        yield _Do(lambda: spool.tidy(domain))
        group: list[tuple[str, list[bytes]]] = []
        size = count = 0
        for name in (yield _Do(lambda: spool.pending(domain))):
            try:
                lines: list[bytes] = yield _Do(functools.partial(spool.read, domain, name))
            except _BrokenFile as reason:
                path = yield _Do(functools.partial(spool.put_aside, domain, name, "broken"))
                report.add(f"a broken file of the spool was put aside, {reason}: look at {path}")
                continue
            length = sum(map(len, lines)) + len(lines)
            if group and (count + len(lines) > MAX_REQUEST_EVENTS or size + length > MAX_REQUEST_BYTES):
                yield from self._deliver_group(spool, domain, group, retries, report)
                group, size, count = [], 0, 0
            group.append((name, lines))
            size, count = size + length, count + len(lines)
        if group:
            yield from self._deliver_group(spool, domain, group, retries, report)

    def _deliver_group(
        self, spool: _SpoolDir, domain: str, group: list[tuple[str, list[bytes]]], retries: int, report: _Report
    ) -> _Steps[None]:
        lines = [line for _, part in group for line in part]
        if len(group) == 1 and len(lines) > 1:
            yield from self._deliver_file(spool, domain, group[0], retries, report)
            return
        try:
            yield from _attempts(_many(domain, lines), self.settings, retries)
        except IngestError as error:
            if error.status not in _REFUSED_EVENTS:
                raise
            if len(group) > 1:
                for part in group:
                    yield from self._deliver_group(spool, domain, [part], retries, report)
                return
            name, reason = group[0][0], f"{error.status} {error.text}\n"
            path = yield _Do(lambda: spool.reject(domain, name, lines, reason, True))
            report.add(f"the server refused an event of the spool, {error}: look at {path}")
        else:
            report.delivered += len(lines)
            names = [name for name, _ in group]
            yield _Do(lambda: spool.remove(domain, names))

    def _deliver_file(
        self, spool: _SpoolDir, domain: str, file: tuple[str, list[bytes]], retries: int, report: _Report
    ) -> _Steps[None]:
        """Delivers a file of several events: whole if that goes, else in pieces, at last event by event."""
        name, lines = file
        at, most, refused = 0, MAX_REQUEST_EVENTS, 0
        pending_refused: list[tuple[bytes, str]] = []
        try:
            while at < len(lines):
                piece: list[bytes] = []
                size = 0
                for line in lines[at : at + most]:
                    if piece and not _fits(len(piece), size, line):
                        break
                    piece.append(line)
                    size += len(line) + 1
                try:
                    yield from _attempts(_many(domain, piece), self.settings, retries)
                except IngestError as error:
                    if error.status not in _REFUSED_EVENTS:
                        raise
                    if len(piece) > 1:
                        most = 1
                        continue
                    refused += 1
                    pending_refused.append((piece[0], f"{error.status} {error.text}\n"))
                    report.add(f"the server refused an event of the spool, {error}: look at {domain}/rejected/{name}")
                else:
                    report.delivered += len(piece)
                at += len(piece)
        finally:
            # Also when the delivery is interrupted: what was answered is not sent again.
            if at > 0:
                whole = refused == len(lines)
                if pending_refused:
                    reasons = "".join(reason for _, reason in pending_refused)
                    spool.reject(domain, name, [line for line, _ in pending_refused], reasons, whole)
                if at < len(lines):
                    spool.replace(domain, name, lines[at:])
                elif not whole:
                    spool.remove(domain, [name])


# ----------------------------------------------------------------------------------------------------------- sending


class _XAuth(httpx.Auth):
    """Puts the token into the request at the last moment, so that no other object holds it."""

    def __init__(self, token: _Token) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-Auth"] = self._token.reveal()
        yield request


_attempt = threading.local()


def _left(timeout: float | None, late: type[Exception]) -> float | None:
    """The time an operation of this thread's attempt may take."""
    deadline: float | None = getattr(_attempt, "deadline", None)
    if deadline is None:
        return timeout
    left = deadline - time.monotonic()
    if left <= 0:
        raise late("the time of the attempt is over")
    return left if timeout is None else min(timeout, left)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In pieces, because the time counts anew whenever the other side takes something.
        for at in range(0, len(buffer), 65536):
            self._inner.write(buffer[at : at + 65536], _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout, httpcore.ConnectTimeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _DeadlineBackend(httpcore.NetworkBackend):
    """httpx counts its timeout anew for each operation; with this an attempt as a whole ends in time."""

    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        problem: Exception = httpcore.ConnectError(f"no address of {host}")
        for address in dict.fromkeys(str(entry[4][0]) for entry in found):
            left = _left(timeout, httpcore.ConnectTimeout)
            try:
                return _DeadlineStream(self._inner.connect_tcp(address, port, left, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(
            self._inner.connect_unix_socket(path, _left(timeout, httpcore.ConnectTimeout), socket_options)
        )

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than a request, so it is done once."""
    return httpx.create_ssl_context()


async def _apost(http: httpx.AsyncClient, settings: _Settings, auth: httpx.Auth, send: _Send) -> _Outcome:
    connecting = False

    async def trace(event: str, _info: object) -> None:
        nonlocal connecting
        if event.endswith("connect_tcp.started"):
            connecting = True
        elif event.endswith("send_request_headers.started"):
            connecting = False

    async def post() -> _Outcome:
        headers = {"Content-Type": send.content_type}
        request = http.build_request(
            "POST", settings.url + send.path, content=send.body, headers=headers, extensions={"trace": trace}
        )
        request.extensions["timeout"] = httpx.Timeout(settings.timeout_s).as_dict()
        response = await http.send(request, auth=auth, stream=True, follow_redirects=False)
        try:
            data = b""
            async for part in response.aiter_bytes():
                data += part
                if len(data) > MAX_ANSWER_BYTES:
                    break
            return _judge(response.status_code, response.headers, data)
        finally:
            await response.aclose()

    try:
        return await asyncio.wait_for(post(), settings.timeout_s)
    except asyncio.TimeoutError as error:
        if connecting:
            return _no_connection(TimeoutError("timed out"), settings.shown_url)
        return _no_answer(settings.timeout_s, settings.shown_url, error)
    except (httpx.RequestError, OSError) as error:
        return _failed(error, settings)


class _Base:
    def __init__(self, **settings: Unpack[Options]) -> None:
        values: dict[str, Any] = dict(settings)
        self._transport: Transport | None = values.pop("transport", None)
        self._settings = _settings(**values)
        self._rules = _Rules(self._settings)
        self._auth = _XAuth(self._settings.token)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.shown_url}>"


class Client(_Base):
    """Keeps its connections between calls; may be used by several threads.

    flush_every=SECONDS: a thread delivers what is in the spool, until close().
    """

    def __init__(self, *, flush_every: float | None = None, **settings: Unpack[Options]) -> None:
        super().__init__(**settings)
        if flush_every is not None and not 0 < flush_every <= 86_400:
            raise SettingsError(f"flush_every must be more than 0 and at most 86400 seconds, not {flush_every!r}")
        if flush_every is not None and self._settings.spool is None:
            raise SettingsError("flush_every needs a spool: set LEITSTAND_SPOOL, or pass spool=")
        self._http: httpx.Client | None = None
        if self._transport is None:
            self._http = httpx.Client(verify=_tls(), timeout=self._settings.timeout_s)
            _keep_deadlines(self._http)
        elif isinstance(self._transport, httpx.BaseTransport):
            self._http = httpx.Client(transport=self._transport, timeout=self._settings.timeout_s)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if flush_every is not None:
            self._thread = threading.Thread(target=self._flush_often, args=(flush_every,), name="hauski-flush", daemon=True)
            self._thread.start()

    def ingest_event(self, domain: str, data: Event) -> Delivered:
        """Sends one event; returns "ok", with a spool perhaps "spooled"."""
        return self._run(self._rules.event(domain, data))

    ingest_json = ingest_event

    def ingest_events(self, domain: str, events: Iterable[Event]) -> int:
        """Sends many events in few requests; returns how many are delivered or spooled."""
        return self._ingest(domain, events).acknowledged

    def _ingest(self, domain: str, events: Iterable[object]) -> _Feed:
        feed = _Feed(domain, events)
        taken = iter(events)
        while True:
            try:
                event = next(taken)
            except StopIteration:
                break
            except Exception:
                # The feed broke; what it gave before is delivered all the same.
                self._run(self._rules.feed(feed))
                raise
            if feed.take(event):
                self._run(self._rules.feed(feed))
        self._run(self._rules.feed(feed))
        return feed

    def flush(self, domain: str | None = None) -> int:
        """Delivers the spool; returns how many events, raises if something stays or was refused."""
        return self._run(self._rules.flush(domain, self._settings.retries))

    def _flush_once(self, unless_quiet: bool) -> None:
        try:
            self._run(self._rules.flush(None, 0, unless_quiet))
        except IngestError as error:
            log.warning("the spool is not delivered yet: %s", error)
        except Exception:
            log.exception("the spool is not delivered yet")

    def _flush_often(self, seconds: float) -> None:
        while not self._closing.wait(seconds):
            self._flush_once(unless_quiet=True)

    def close(self) -> None:
        """Ends the thread after a last attempt to deliver, and closes the connections."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._flush_once(unless_quiet=False)
        if self._http is not None:
            self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, steps: _Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = self._perform(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _perform(self, step: _Send | _Wait | _Do) -> object:
        if isinstance(step, _Send):
            return self._post(step)
        if isinstance(step, _Wait):
            time.sleep(step.seconds)
            return None
        return step.work()

    def _post(self, send: _Send) -> _Outcome:
        if self._http is None:
            return self._post_to_async_transport(send)
        settings = self._settings
        deadline = _attempt.deadline = time.monotonic() + settings.timeout_s
        try:
            with self._http.stream(
                "POST",
                settings.url + send.path,
                content=send.body,
                headers={"Content-Type": send.content_type},
                auth=self._auth,
                follow_redirects=False,
            ) as response:
                data = b""
                for part in response.iter_bytes():
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        break
                    if time.monotonic() > deadline:
                        return _no_answer(settings.timeout_s, settings.shown_url)
                return _judge(response.status_code, response.headers, data)
        except (httpx.RequestError, OSError) as error:
            return _failed(error, settings)
        finally:
            _attempt.deadline = None

    def _post_to_async_transport(self, send: _Send) -> _Outcome:
        """httpx.ASGITransport speaks only async; it may be used from a synchronous test all the same."""

        async def post() -> _Outcome:
            assert isinstance(self._transport, httpx.AsyncBaseTransport)
            async with httpx.AsyncClient(transport=self._transport) as http:
                return await _apost(http, self._settings, self._auth, send)

        done: list[_Outcome | BaseException] = []

        def run() -> None:
            try:
                done.append(asyncio.run(post()))
            except BaseException as error:
                done.append(error)

        # In a thread of its own, because this one may already run an event loop.
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if isinstance(done[0], BaseException):
            raise done[0]
        return done[0]


def _keep_deadlines(http: httpx.Client) -> None:
    """Wraps the network of a client that this module made. A future httpx without these names keeps its own timeouts."""
    for transport in [http._transport, *http._mounts.values()]:
        pool: Any = getattr(transport, "_pool", None)
        inner = getattr(pool, "_network_backend", None)
        if inner is not None:
            pool._network_backend = _DeadlineBackend(inner)


class AsyncClient(_Base):
    """The same for asyncio. Work with the spool's files runs in threads."""

    def __init__(self, **settings: Unpack[Options]) -> None:
        super().__init__(**settings)
        timeout_s = self._settings.timeout_s
        if self._transport is None:
            self._http = httpx.AsyncClient(verify=_tls(), timeout=timeout_s)
        elif isinstance(self._transport, httpx.AsyncBaseTransport):
            self._http = httpx.AsyncClient(transport=self._transport, timeout=timeout_s)
        else:
            raise SettingsError("transport must be an httpx.AsyncBaseTransport here")

    async def ingest_event(self, domain: str, data: Event) -> Delivered:
        """Sends one event; returns "ok", with a spool perhaps "spooled"."""
        return await self._run(self._rules.event(domain, data))

    ingest_json = ingest_event

    async def ingest_events(self, domain: str, events: Iterable[Event] | AsyncIterable[Event]) -> int:
        """Sends many events in few requests; returns how many are delivered or spooled."""
        feed = _Feed(domain, events)
        taken = events.__aiter__() if isinstance(events, AsyncIterable) else iter(events)
        while True:
            try:
                event = next(taken) if isinstance(taken, Iterator) else await taken.__anext__()
            except (StopIteration, StopAsyncIteration):
                break
            except Exception:
                await self._run(self._rules.feed(feed))
                raise
            if feed.take(event):
                await self._run(self._rules.feed(feed))
        await self._run(self._rules.feed(feed))
        return feed.acknowledged

    async def flush(self, domain: str | None = None) -> int:
        """Delivers the spool; returns how many events, raises if something stays or was refused."""
        return await self._run(self._rules.flush(domain, self._settings.retries))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, steps: _Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._perform(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _perform(self, step: _Send | _Wait | _Do) -> object:
        if isinstance(step, _Send):
            return await _apost(self._http, self._settings, self._auth, step)
        if isinstance(step, _Wait):
            await asyncio.sleep(step.seconds)
            return None
        work = asyncio.ensure_future(asyncio.to_thread(step.work))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A thread cannot be stopped, and the lock must not be given up under it.
            await asyncio.wait([work])
            raise


# --------------------------------------------------------------------------------------------------------- functions


def ingest_event(
    domain: str,
    data: Event,
    *,
    url: str | None = None,
    token: str | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    backoff: float | None = None,
    transport: Transport | None = None,
    spool: Spool | None = None,
    spool_max_bytes: int | None = None,
) -> Delivered:
    """Send one event and return "ok" (with a spool perhaps "spooled"), else raise IngestError.

    domain           target domain, such as "example.com"
    data             mapping that JSON can hold, with at least the key "event"
    url              base address (LEITSTAND_URL, http://localhost:8788)
    token            shared secret for X-Auth (LEITSTAND_TOKEN)
    timeout          seconds for one attempt (LEITSTAND_TIMEOUT, 5)
    retries          attempts after the first (LEITSTAND_RETRIES, 3)
    backoff          seconds, base of the pauses between attempts (LEITSTAND_BACKOFF, 0.5)
    transport        httpx transport for tests without sockets, such as httpx.ASGITransport or httpx.MockTransport
    spool            directory for events that cannot be delivered now (LEITSTAND_SPOOL); "" for none
    spool_max_bytes  a spool that would grow beyond this is full (LEITSTAND_SPOOL_MAX_BYTES, 256 MiB)

    Each LEITSTAND_X that is not set is looked up as CHRONIK_X.
    """
    options: Options = {
        "url": url,
        "token": token,
        "timeout": timeout,
        "retries": retries,
        "backoff": backoff,
        "transport": transport,
        "spool": spool,
        "spool_max_bytes": spool_max_bytes,
    }
    with Client(**options) as client:
        return client.ingest_event(domain, data)


ingest_json = ingest_event


def ingest_events(domain: str, events: Iterable[Event], **settings: Unpack[Options]) -> int:
    """Send many events in requests of at most 1,000 events and 512 KiB; settings as for ingest_event.

    Returns how many are delivered or spooled, which is all of them, or raises IngestError: then the first
    `acknowledged` events of the feed are safe, and `unsent_events` are those that were taken from it but are not.
    """
    with Client(**settings) as client:
        return client.ingest_events(domain, events)


def flush_spool(domain: str | None = None, **settings: Unpack[Options]) -> int:
    """Deliver what is in the spool; settings as for ingest_event. Returns how many events."""
    with Client(**settings) as client:
        return client.flush(domain)


async def aingest_event(domain: str, data: Event, **settings: Unpack[Options]) -> Delivered:
    """ingest_event for asyncio."""
    async with AsyncClient(**settings) as client:
        return await client.ingest_event(domain, data)


async def aingest_events(domain: str, events: Iterable[Event] | AsyncIterable[Event], **settings: Unpack[Options]) -> int:
    """ingest_events for asyncio; takes an asynchronous iterable too."""
    async with AsyncClient(**settings) as client:
        return await client.ingest_events(domain, events)


async def aflush_spool(domain: str | None = None, **settings: Unpack[Options]) -> int:
    """flush_spool for asyncio."""
    async with AsyncClient(**settings) as client:
        return await client.flush(domain)


# ----------------------------------------------------------------------------------------------------- command line

_STRING_OR_SPACE = re.compile(r'("(?:[^"\\]|\\.)*")|[ \t\r\n]+')
_SPACE = re.compile(r"[ \t\r\n]*")
# White space between the members of a pretty-printed event counts here, so this is more than MAX_EVENT_BYTES.
_MAX_VALUE_CHARACTERS = 16 * MAX_EVENT_BYTES


class _BadStream(Exception):
    pass


def _json_stream(file: BinaryIO) -> Iterator[_RawEvent]:
    """The values of a JSON stream, NDJSON or pretty-printed, each as one line with its numbers as they are spelled."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)
    text, number, ended = "", 0, False
    rest, not_utf8 = b"", ""
    while True:
        at = 0
        while True:
            start = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            if start == len(text):
                at = start
                break
            if text[start] != "{":
                raise _BadStream(f"value {number + 1} is no JSON object but begins with {text[start : start + 20]!r}")
            try:
                _, end = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                if not_utf8:
                    at = start
                    break
                if ended or len(text) - start > _MAX_VALUE_CHARACTERS:
                    raise _BadStream(f"value {number + 1} is no JSON: {error}") from None
                at = start
                break
            number += 1
            yield _RawEvent(_STRING_OR_SPACE.sub(lambda found: found.group(1) or "", text[start:end]).encode())
            at = end
        if not_utf8:
            raise _BadStream(f"value {number + 1} is no UTF-8: {not_utf8}")
        if ended:
            return
        # Doubling what is read keeps a value that spans many reads from being read over and over.
        data = file.read(max(65536, 2 * (len(text) - at)))
        ended = not data
        rest += data
        try:
            more = rest.decode()
            rest = b""
        except UnicodeDecodeError as error:
            if ended or error.reason != "unexpected end of data":
                ended, not_utf8 = True, error.reason
            more, rest = rest[: error.start].decode(), rest[error.start :]
        text = text[at:] + more


def _say(text: str) -> None:
    print(f"hauski-ingest: {text}", file=sys.stderr)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hauski-ingest",
        description="Send JSON events to leitstand. The token comes from LEITSTAND_TOKEN, never from the command line.",
        epilog="Exit codes: 0 delivered, or safe in the spool; 1 something was not delivered; 2 wrong usage or settings.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    send = commands.add_parser("send", help="send a JSON stream, NDJSON or pretty-printed")
    send.add_argument("domain", metavar="DOMAIN")
    send.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: - (standard input)")
    flush = commands.add_parser("flush", help="deliver what is in the spool")
    flush.add_argument("domain", metavar="DOMAIN", nargs="?", help="only this domain")
    for command in (send, flush):
        command.add_argument("--url", help="instead of LEITSTAND_URL")
        command.add_argument("--spool", metavar="DIR", help="instead of LEITSTAND_SPOOL")
        command.add_argument("--timeout", metavar="SECONDS", help="instead of LEITSTAND_TIMEOUT")
        command.add_argument("--retries", metavar="N", help="instead of LEITSTAND_RETRIES")
        command.add_argument("--backoff", metavar="SECONDS", help="instead of LEITSTAND_BACKOFF")
    return parser.parse_args(argv)


def _send_file(client: Client, domain: str, path: str) -> int:
    spool = client._settings.spool
    try:
        file: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb")
        if path != "-" and stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        _say(f"cannot read {path}: {error.strerror}")
        return 2
    done = 0

    def counted() -> Iterator[object]:
        nonlocal done
        for event in _json_stream(file):
            yield event
            done += 1

    with file:
        try:
            feed = client._ingest(domain, counted())
        except IngestError as error:
            maybe = " The next may be stored too, then they are doubled." if error.written == "maybe" else ""
            _say(f"{error}. To go on, send the stream from event {error.acknowledged + 1} on.{maybe}")
            return 1
        except _BadStream as error:
            _say(f"{error}; the {done} events before it are {'delivered or spooled' if spool else 'delivered'}")
            return 1
    if feed.spooled:
        _say(f"{feed.acknowledged - feed.spooled} events delivered, {feed.spooled} are safe in {spool}: hauski-ingest flush")
    else:
        _say(f"{feed.acknowledged} events delivered")
    return 0


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    try:
        with Client(
            url=arguments.url,
            timeout=arguments.timeout,
            retries=arguments.retries,
            backoff=arguments.backoff,
            spool=arguments.spool,
        ) as client:
            if arguments.command == "send":
                return _send_file(client, arguments.domain, arguments.file)
            _say(f"{client.flush(arguments.domain)} events delivered")
            return 0
    except SettingsError as error:
        _say(str(error))
        return 2
    except IngestError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
