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
import atexit
import concurrent.futures
import contextlib
import errno
import functools
import gzip as gzip_format
import inspect
import ipaddress
import itertools
import json
import logging
import math
import os
import random
import re
import select
import socket
import ssl
import stat
import sys
import threading
import time
import urllib.request
import weakref
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
MAX_REQUEST_EVENTS = 10_000
MAX_PAUSE_S = 30.0
MAX_RETRY_AFTER_S = 60
# An answer is "ok" or a short error; more of it is not read.
MAX_ANSWER_BYTES = 64 * 1024
MAX_TOKEN_FILE_BYTES = 64 * 1024
# Below this, compressing a body costs more than it saves.
MIN_GZIP_BYTES = 1024
LEFT_OVER_AFTER_S = 3600.0
# A process that was stopped in the middle must not stop the others.
NAME_LOCK_WAIT_S = 1.0
# Between two looks at a spool that other processes write to as well, its size is counted along.
SIZE_LOOK_EVERY_S = 1.0

log = logging.getLogger("hauski_ingest")

T = TypeVar("T")
Written = Literal["no", "maybe"]
Delivered = Literal["ok", "spooled"]
Event = Mapping[str, Any]
Transport = httpx.BaseTransport | httpx.AsyncBaseTransport
Spool = str | os.PathLike[str]
Verify = bool | str | os.PathLike[str] | ssl.SSLContext


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
    token_file: Spool | None
    gzip: bool | None
    proxy: str | None
    verify: Verify | None


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
        # No other domain would fare better: nobody is there, or the token is wrong.
        self._concerns_all = False


class SettingsError(IngestError):
    """A parameter or a variable cannot be used; nothing was sent."""


def _said(error: BaseException) -> str:
    """What a message says about an error of another library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# -------------------------------------------------------------------------------------------------- forks and the end
#
# A child gets copies of the locks as they were, perhaps held by a thread that it does not have, and of the connections,
# which are the parent's. So it makes locks anew, and never touches a connection of the parent, not even to close it:
# an event loop of the child would take it out of the parent's.

_clients: weakref.WeakSet[_Base] = weakref.WeakSet()
_of_the_parent: list[object] = []


class _FileLock:
    """A flock on a file that is free again whatever interrupts its holder, and that no child of a fork keeps.

    A Ctrl-C may come between any two instructions. So the descriptor is known here before it is locked, `release` may be
    called twice, and a lock whose holder has ended without it is let go when somebody in this process wants the file.
    """

    fd: int | None = None

    def __init__(self, path: str) -> None:
        self.path = path
        # The steps on whose behalf it is held; None: of nobody who could end without a release.
        self.holder: Generator[Any, Any, Any] | None = None

    def take(self, wait_s: float = 0.0) -> bool:
        """Whether it is held now; waits that long for another holder. An OSError if the file cannot be used."""
        until = time.monotonic() + wait_s
        while True:
            self.fd = _open_regular(self.path, os.O_RDWR | os.O_CREAT)
            _file_locks.add(self)
            while not self._try(self.fd):
                if time.monotonic() >= until:
                    self.release()
                    return False
                time.sleep(0.001)
            # Removed or replaced meanwhile, it keeps nobody out.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.fd), os.lstat(self.path)):
                    return True
            self.release()

    def _try(self, fd: int) -> bool:
        for _ in range(2):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                for other in list(_file_locks):
                    if other is not self and other.path == self.path and other._is_left():
                        other.release()
        return False

    def _is_left(self) -> bool:
        return self.holder is not None and inspect.getgeneratorstate(self.holder) == inspect.GEN_CLOSED

    def release(self) -> None:
        fd = self.fd
        if fd is None:
            return
        with contextlib.suppress(OSError):
            # Closing alone would leave the lock with a child that was forked meanwhile.
            fcntl.flock(fd, fcntl.LOCK_UN)
        self.fd = None
        with contextlib.suppress(OSError):
            os.close(fd)

    def forget(self) -> None:
        """In a child: closes it, and leaves the lock to the parent."""
        fd, self.fd = self.fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        self.release()


_file_locks: weakref.WeakSet[_FileLock] = weakref.WeakSet()


_executor: concurrent.futures.ThreadPoolExecutor | None = None


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """Threads of this module. An event loop whose own executor gets no thread cannot even be ended in order."""
    global _executor
    if _executor is None:
        _executor = concurrent.futures.ThreadPoolExecutor(8, "hauski-ingest")
    return _executor


def _after_fork() -> None:
    global _executor
    _executor = None
    for lock in list(_file_locks):
        lock.forget()
    for client in list(_clients):
        client._forget_the_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
    gzip: bool
    proxy: str | None = field(repr=False)
    verify: Verify | None = field(repr=False)


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


def _switch(name: str, parameter: bool | None, what: str) -> bool:
    text, source = _variable(name, parameter, what)
    value = {"1": True, "on": True, "true": True, "yes": True, "0": False, "off": False, "false": False, "no": False}
    if text is None:
        return False
    if text.strip().lower() not in value:
        raise SettingsError(f"{source} must be on or off, not {text!r}")
    return value[text.strip().lower()]


def _token(parameter: str | None, file: Spool | None) -> _Token:
    text: str | None = None
    source = "token"
    if parameter or file is None:
        text, source = _variable("TOKEN", parameter or None, "token")
    if text is None:
        path, source = _variable("TOKEN_FILE", None if file is None else os.fsdecode(file), "token_file")
        if not path:
            raise SettingsError(
                "LEITSTAND_TOKEN not set: set it (or LEITSTAND_TOKEN_FILE) to the token of the server, or pass token="
            )
        text = _token_in_file(path, source)
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", text):
        text = ""  # Tracebacks may show local variables.
        raise SettingsError(f"{source} must be printable ASCII without a space at its ends, or no header can carry it")
    return _Token(text)


def _token_in_file(path: str, source: str) -> str:
    """The one line of a file that is no comment. A pipe is read with a time limit."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            data, until = b"", time.monotonic() + 5
            pipe = not stat.S_ISREG(os.fstat(fd).st_mode)
            while len(data) <= MAX_TOKEN_FILE_BYTES:
                if pipe and not select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
                    raise SettingsError(f"{source}={path}: nothing came out of that pipe")
                part = os.read(fd, 65536)
                if not part:
                    break
                data += part
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{source}={path}: {_said(error)}") from error
    if len(data) > MAX_TOKEN_FILE_BYTES:
        raise SettingsError(f"{source}={path} is larger than a file with a token")
    lines = [line.strip() for line in data.decode("latin-1").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1:
        count = len(lines)
        data, lines = b"", []
        raise SettingsError(f"{source}={path} must hold one line with a token, and has {count}")
    return lines[0]


def _settings(
    url: str | None = None,
    token: str | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    backoff: float | None = None,
    spool: Spool | None = None,
    spool_max_bytes: int | None = None,
    token_file: Spool | None = None,
    gzip: bool | None = None,
    proxy: str | None = None,
    verify: Verify | None = None,
) -> _Settings:
    base, source = _variable("URL", url or None, "url")
    base = (base or "http://localhost:8788").rstrip("/")
    try:
        parts = httpx.URL(base)
        right = parts.scheme in ("http", "https") and bool(parts.host) and "?" not in base and "#" not in base
    except Exception:
        right = False
    if not right:
        raise SettingsError(f"{source} must be an http or https address without a query, such as http://localhost:8788")
    # Of a greater number the system takes the last 16 bits, and so another port.
    if (parts.port or 0) > 65535:
        raise SettingsError(f"{source} must name a port of at most 65535, not {parts.port}")
    directory, source = _variable("SPOOL", None if spool is None else os.fsdecode(spool), "spool")
    try:
        directory = os.path.abspath(directory) if directory else None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{source} is a relative path, and there is no working directory: {_said(error)}") from error
    if directory and "\0" in directory:
        raise SettingsError(f"{source} must be the path of a directory")
    return _Settings(
        # Somebody's password there was never sent, and httpx would log it.
        url=re.sub(r"//[^/]*@", "//", base),
        token=_token(token, token_file),
        timeout_s=_seconds("TIMEOUT", timeout, "timeout", 5.0, above_zero=True),
        retries=_whole("RETRIES", retries, "retries", 3, 1_000_000),
        backoff_s=_seconds("BACKOFF", backoff, "backoff", 0.5, above_zero=False),
        spool=directory,
        spool_max_bytes=_whole("SPOOL_MAX_BYTES", spool_max_bytes, "spool_max_bytes", 268_435_456, 10**18),
        gzip=_switch("GZIP", gzip, "gzip"),
        proxy=proxy,
        verify=verify,
    )


# ------------------------------------------------------------------------------------------- proxies and certificates


def _goes_past(host: str, port: int | None, exceptions: str) -> bool:
    """Whether NO_PROXY names the host: a name with all below it, an address, a network, with or without a port."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        address = None
    for entry in exceptions.lower().split(","):
        entry = entry.strip().split("://")[-1].rstrip("/") if "://" in entry else entry.strip()
        if entry == "*":
            return True
        if found := re.fullmatch(r"(?:\[([^]]*)]|([^:]*))(?::([0-9]+))?", entry):
            if found.group(3) is not None and int(found.group(3)) != port:
                continue
            entry = found.group(1) or found.group(2) or ""
        if not entry:
            continue
        try:
            if address is not None and address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            pass
        name = entry.removeprefix("*").strip(".")
        if name and (host == name or host.endswith("." + name)):
            return True
    return False


def _proxy_of(settings: _Settings) -> tuple[str | None, str]:
    """The proxy on the way to the server, and the name of the setting it is from."""
    if settings.proxy is not None:
        return settings.proxy or None, "proxy"
    url = httpx.URL(settings.url)
    found = urllib.request.getproxies()
    scheme = url.scheme if found.get(url.scheme) else "all"
    proxy = found.get(scheme)
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    if not proxy or _goes_past(url.host.lower(), port, found.get("no", "")):
        return None, ""
    return proxy if "://" in proxy else "http://" + proxy, f"{scheme.upper()}_PROXY"


_contexts: dict[tuple[str, ...], ssl.SSLContext] = {}


def _tls(verify: Verify | None) -> ssl.SSLContext:
    """Reading the certificates takes longer than a request, so it is done once."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    variables = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    key = (repr(verify), *(os.environ.get(name, "") for name in variables))
    if key in _contexts:
        return _contexts[key]
    source = "verify"
    try:
        if verify is False:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        else:
            path = os.fspath(verify) if verify is not None and verify is not True else ""
            if not path:
                source = next((name for name in variables if os.environ.get(name)), "the certificates")
                path = os.environ.get(source, "")
            if not path:
                context = httpx.create_ssl_context(trust_env=False)
            elif os.path.isdir(path):
                context = ssl.create_default_context(capath=path)
            else:
                context = ssl.create_default_context(cafile=path)
    except Exception as error:
        raise SettingsError(f"{source}: the certificates cannot be read: {_said(error)}", retryable=True) from error
    _contexts[key] = context
    return context


def _network(settings: _Settings) -> dict[str, Any]:
    """What httpx.Client is made with; a SettingsError if the environment is wrong."""
    proxy, source = _proxy_of(settings)
    options: dict[str, Any] = {"trust_env": False, "timeout": settings.timeout_s}
    if settings.url.startswith("https:"):
        options["verify"] = _tls(settings.verify)
    else:
        # Nothing is verified on the way to an http address, so no certificates are read.
        if ("",) not in _contexts:
            _contexts[("",)] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        options["verify"] = _contexts[("",)]
    if proxy is not None:
        try:
            tls = _tls(settings.verify) if proxy.lower().startswith("https:") else None
            options["proxy"] = httpx.Proxy(proxy, ssl_context=tls)
            if (options["proxy"].url.port or 0) > 65535:
                raise ValueError("no such port")
        except SettingsError:
            raise
        except Exception:
            # The error may quote the address, and that a password.
            raise SettingsError(f"{source} is not the address of a proxy that can be used", retryable=True) from None
    return options


def _no_client(error: Exception, settings: _Settings) -> SettingsError:
    """Why httpx makes no client."""
    if isinstance(error, SettingsError):
        return error
    proxy, source = _proxy_of(settings)
    if isinstance(error, ImportError) and proxy and proxy.lower().startswith("socks"):
        return SettingsError(f"{source} is a SOCKS proxy: pip install 'httpx[socks]'", retryable=True)
    return SettingsError(f"no connection can be made: {type(error).__name__}: {_said(error)}", retryable=True)


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
        line = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        _check_keys(plain)
        return line
    except Exception as error:
        # Also what a mapping of the caller raises.
        raise IngestError(f"payload cannot be written as JSON: {_said(error)}") from error


def _check_keys(event: dict[Any, Any]) -> None:
    """Two keys of Python may be one key of JSON, 1 and "1": the server would keep one of the values."""
    left: list[Any] = [event]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if not all(type(key) is str for key in value):
                texts: set[str] = set()
                for key in value:
                    text = str.__str__(key) if isinstance(key, str) else json.dumps(key)
                    if text in texts:
                        raise ValueError(f"two keys are {text[:80]!a} there")
                    texts.add(text)
            value = value.values()
        left.extend(part for part in value if isinstance(part, (dict, list, tuple)))


def _check_size(line: bytes) -> None:
    if len(line) > MAX_EVENT_BYTES:
        raise IngestError(
            f"an event of {len(line)} bytes is over the limit of {MAX_EVENT_BYTES} bytes (MAX_EVENT_BYTES;"
            " the server's own limit is its LEITSTAND_MAX_BODY); make it smaller"
        )


def _check_same_domain(domain: object, event: object) -> None:
    """Of what goes to a spool, the server would refuse later what names another domain than its call."""
    if isinstance(event, _RawEvent):
        try:
            event = json.loads(event.line, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return  # The server judges.
    if not isinstance(event, Mapping) or "domain" not in event:
        return
    named = event["domain"]
    if not isinstance(named, str):
        raise IngestError(f"the domain of an event must be text, not {type(named).__name__}")
    if isinstance(domain, str) and named.strip().lower() != domain.strip().lower():
        raise IngestError(f"domain mismatch: the event is of {named[:80]!a}, the call is for {domain[:80]!a}")


def _fits(count: int, size: int, line: bytes) -> bool:
    """Whether one more line fits into a request; size counts the line ends."""
    return count < MAX_REQUEST_EVENTS and size + len(line) + 1 <= MAX_REQUEST_BYTES


class _Feed:
    """The events taken from an iterable and not sent yet."""

    def __init__(self, domain: str, events: object, with_spool: bool) -> None:
        self.with_spool = with_spool
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
            if self.with_spool:
                _check_same_domain(self.domain, event)
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


_JSON, _NDJSON = "application/json", "application/x-ndjson"


@dataclass(frozen=True)
class _Form:
    """How a server takes events. One before /v1 knows the old path; one that knows no NDJSON takes an array."""

    old_path: bool = False
    array: bool = False

    def after(self, status: int | None, events: int) -> _Form:
        """The form to try when this one was answered with that status; itself if there is no other."""
        if status in (404, 405):
            return _Form(not self.old_path, not self.old_path)
        if status == 415 and not self.array and events > 1:
            return _Form(self.old_path, True)
        return self


@dataclass(frozen=True)
class _Send:
    domain: str
    lines: list[bytes] = field(repr=False)
    # Called as soon as they are acknowledged, before anything can interrupt what follows.
    on_good: Callable[[], None] | None = None

    def request(self, form: _Form) -> tuple[str, str, bytes]:
        """Path, type and body."""
        path = f"/ingest/{self.domain}" if form.old_path else f"/v1/ingest?domain={self.domain}"
        if len(self.lines) == 1:
            return path, _JSON, self.lines[0]
        if form.array:
            return path, _JSON, b"[" + b",".join(self.lines) + b"]"
        return path, _NDJSON, b"\n".join(self.lines) + b"\n"


@dataclass(frozen=True)
class _Take:
    """Takes a lock without waiting. Whoever runs the steps lets go of it in the end, whatever the steps do."""

    lock: _FileLock


@dataclass(frozen=True)
class _Wait:
    seconds: float


@dataclass(frozen=True)
class _Do:
    """A short piece of work with files."""

    work: Callable[[], Any]


_Step = _Send | _Wait | _Do | _Take
_Steps = Generator[_Step, Any, T]


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
        error._concerns_all = self.status is None or self.status == 401
        error.__cause__ = self.cause
        return error


_HINTS = {
    401: "check LEITSTAND_TOKEN",
    404: "check LEITSTAND_URL",
    413: "the server's LEITSTAND_MAX_BODY is smaller",
    429: "the server's LEITSTAND_RATE_LIMIT",
}


def _detail(text: str) -> object:
    """What a refusal says, as the old module showed it."""
    answer = _object(text)
    if isinstance(answer.get("detail"), str) and "code" in answer:
        return {"detail": answer["detail"][:500]}
    try:
        return json.loads(text[:500])
    except (ValueError, RecursionError):
        return text[:500]


def _object(text: str) -> dict[str, Any]:
    """An answer that is a JSON object; any other is an empty one."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _says_no(text: str) -> bool:
    """Whether the server itself says that nothing was written. A proxy's page does not know."""
    answer = _object(text)
    return isinstance(answer.get("code"), str) and answer.get("written") == "no"


def _judge(status: int, headers: httpx.Headers, data: bytes) -> _Outcome:
    text = data[:MAX_ANSWER_BYTES].decode(errors="replace")
    retry_after = headers.get("retry-after", "").strip()
    seconds = int(retry_after) if re.fullmatch(r"[0-9]{1,9}", retry_after) else None
    good = status in (200, 202) and data.strip() == b"ok" and len(data) <= MAX_ANSWER_BYTES
    retryable = status in (408, 429) or status >= 500
    nothing_written = 400 <= status < 500 or (status in (503, 507) and _says_no(text))
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


class _Progress:
    """How far an attempt has come, told by httpcore."""

    def __init__(self) -> None:
        self.sending = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            # What a proxy is asked first is not the request.
            self.sending = self.sending or getattr(info.get("request"), "method", None) != b"CONNECT"

    async def atrace(self, event: str, info: Mapping[str, Any]) -> None:
        self.trace(event, info)


def _failed(error: BaseException, settings: _Settings, sending: bool = True) -> _Outcome:
    """What an exception says about an attempt; `sending`: a part of the request may be out."""
    url = settings.url
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)) or not sending:
        return _no_connection(error, url)
    if isinstance(error, (httpx.TimeoutException, asyncio.TimeoutError)):
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


def _quoted(domain: str) -> str:
    _check_domain(domain)
    try:
        return quote(domain, safe="")
    except UnicodeError:
        raise IngestError(f"invalid domain {domain[:80]!a}") from None


def _sending(domain: str, lines: list[bytes], on_good: Callable[[], None] | None = None) -> _Send:
    return _Send(_quoted(domain), lines, on_good)


# ------------------------------------------------------------------------------------------------------------- spool

_MARKER = "leitstand-spool-1"
_DOMAIN = re.compile(r"(?!.{254})[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_NAME = re.compile(r"[0-9]{23}-[0-9]{10}-[0-9]{6,}\.ndjson")
_TEMPORARY = re.compile(r"tmp-[0-9]+-[0-9]+")
# Statuses that speak of the events of a request; any other refusal is about all requests.
_REFUSED_EVENTS = (400, 413, 422)

_numbers = itertools.count(1)
# No clock and no count comes so far: what begins with more was made by nobody who follows the protocol.
_MOST_IN_A_NAME = 10**22
# Until when no call tries the server again, by spool and address.
_quiet_until: dict[tuple[str, str], float] = {}


def _next_number() -> int:
    """A number that this process has not used yet."""
    return next(_numbers)


_NO_REGULAR_FILE = "it is no regular file: move it away"


def _open_regular(path: str, flags: int) -> int:
    """Opens a file without waiting for anybody. What is no regular file (a pipe, a link, a directory) is an OSError."""
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        # A pipe without a reader, a socket, a link, a directory: each says it in another way.
        if os.path.lexists(path) and not _is_regular(path):
            raise OSError(errno.EEXIST, _NO_REGULAR_FILE, path) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EEXIST, _NO_REGULAR_FILE, path)
    return fd


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _read_regular(path: str) -> bytes:
    with open(_open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError as error:
        if not os.path.isdir(path):
            raise OSError(errno.ENOTDIR, "it is no directory: move it away", path) from error


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _spool_domain(domain: str) -> str:
    if not isinstance(domain, str):
        raise IngestError(f"a domain must be text, not {type(domain).__name__}")
    name = domain.strip().lower()
    if not _DOMAIN.fullmatch(name):
        raise IngestError(f"invalid domain {domain[:80]!a}: the server would refuse it, so it is not spooled")
    return name


def _plausible(number: int) -> int | None:
    return number if number < _MOST_IN_A_NAME else None


class _UnsyncedName(Exception):
    """A file has its name, but that may not survive a power cut."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class _Stuck(IngestError):
    """A file stays where it is, and nothing behind it has to wait for that."""

    def __init__(self, error: IngestError) -> None:
        super().__init__(str(error), retryable=True)


# What another attempt may find gone, so that the order need not be broken for it.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass
class _Report:
    """What a delivery did besides delivering."""

    delivered: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        log.error("%s", problem)
        self.problems.append(problem)


def _rename_to_new(temporary: str, path: str) -> None:
    """Gives a file its name; a FileExistsError if another has it."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        # A file system without links. Nobody else makes this name but a process with the same id elsewhere.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        os.rename(temporary, path)
    else:
        os.unlink(temporary)


class _SpoolDir:
    """The files of a spool. Every method is short, blocks, and raises an IngestError that names LEITSTAND_SPOOL."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._size = 0
        self._looked_at = -math.inf
        # Domains whose files this process has looked at before it made a name.
        self._looked_through: set[str] = set()
        self._acknowledged: set[tuple[str, str]] = set()
        # What is still to be sent of files that could not be shortened.
        self._rests: dict[tuple[str, str], list[bytes]] = {}
        # Files that can neither be delivered nor put aside. Delivery goes on behind them; a flush tries them again.
        self._stuck: set[tuple[str, str]] = set()

    def _error(self, error: OSError, what: str) -> IngestError:
        hint = {errno.ENOSPC: "make room on that disk", errno.EDQUOT: "make room in that quota"}.get(error.errno or 0, "")
        reason = f"{error.strerror or error}" + (f", {hint}" if hint else "")
        places = (error.filename2, error.filename)
        place = next((place for place in places if isinstance(place, str) and place != self.path), None)
        if place is not None:
            reason = f"{os.path.relpath(place, self.path)}: {reason}"
        wrapped = IngestError(f"{what}: LEITSTAND_SPOOL={self.path}: {reason}", retryable=True)
        wrapped.__cause__ = error
        return wrapped

    def _open(self) -> None:
        """Makes the directory and its marker where they are missing."""
        marker = os.path.join(self.path, _MARKER)
        if _is_regular(marker):
            return
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        if os.listdir(self.path) and not os.path.lexists(marker):
            raise SettingsError(
                f"LEITSTAND_SPOOL={self.path} is not empty and no spool ({_MARKER} is missing): name another directory"
            )
        os.close(_open_regular(marker, os.O_WRONLY | os.O_CREAT))
        _sync_directory(self.path)
        _sync_directory(os.path.dirname(self.path))

    def domains(self) -> list[str]:
        try:
            self._open()
            with os.scandir(self.path) as entries:
                return sorted(e.name for e in entries if _DOMAIN.fullmatch(e.name) and e.is_dir())
        except OSError as error:
            raise self._error(error, "cannot read the spool") from error

    def pending(self, domain: str, most: int | None = None) -> list[str]:
        """The names of the files that wait, in the order of their calls; `most`: so many of them, in any order."""
        try:
            self._open()
            with os.scandir(os.path.join(self.path, domain)) as entries:
                names = (e.name for e in entries if _NAME.fullmatch(e.name) and e.is_file(follow_symlinks=False))
                waiting = (name for name in names if (domain, name) not in self._stuck)
                return sorted(itertools.islice(waiting, most))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error(error, "cannot read the spool") from error

    def size(self) -> int:
        total = 0
        for domain in self.domains():
            for part in ("", "rejected", "broken"):
                # A file may be delivered, a directory may not be there yet, and what is no directory holds no events.
                with contextlib.suppress(OSError), os.scandir(os.path.join(self.path, domain, part)) as entries:
                    for entry in entries:
                        if entry.name.endswith(".ndjson"):
                            with contextlib.suppress(OSError):
                                total += entry.stat(follow_symlinks=False).st_size
        return total

    def _reserve(self, size: int) -> None:
        # Without a lock, which an interrupt could leave behind: threads may be wrong by one event each, for a second.
        now = time.monotonic()
        if now - self._looked_at > SIZE_LOOK_EVERY_S or self._size + size > self.max_bytes:
            self._size, self._looked_at = self.size(), now
        if self._size + size > self.max_bytes:
            raise IngestError(
                f"the spool is full: LEITSTAND_SPOOL={self.path} holds {self._size} bytes, with these {size} it would"
                f" be over LEITSTAND_SPOOL_MAX_BYTES={self.max_bytes}; deliver it (flush_spool, or hauski-ingest flush) or"
                " raise that",
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
                _make_directory(directory)
                _sync_directory(self.path)
            while True:
                name = f"{self._next_in(domain, directory):023}-{os.getpid():010}-{_next_number():06}.ndjson"
                try:
                    self._write(directory, os.path.join(directory, name), data)
                    break
                except FileExistsError:
                    # Made by a process with the same id in another container.
                    continue
        except _UnsyncedName as unsynced:
            wrapped = self._error(unsynced.error, "the event is in the spool, but a power cut may take it from there")
            wrapped.written = "maybe"
            raise wrapped from unsynced.error
        except OSError as error:
            self._looked_at = -math.inf
            raise self._error(error, "cannot write the spool") from error

    def _next_in(self, domain: str, directory: str) -> int:
        """A number behind all that were given in the domain, by any process and whatever the clock does."""
        last = _FileLock(os.path.join(directory, "last"))
        try:
            try:
                return self._next_under(last, domain)
            finally:
                last.release()
        finally:
            # An interrupt may have come before the first of them.
            last.release()

    def _next_under(self, last: _FileLock, domain: str) -> int:
        held, highest = False, None
        with contextlib.suppress(OSError):
            held = last.take(NAME_LOCK_WAIT_S)
        if last.fd is not None:
            with contextlib.suppress(OSError):
                text = os.pread(last.fd, 24, 0)
                highest = _plausible(int(text)) if re.fullmatch(rb"[0-9]{23}", text) else None
        known = highest is not None
        if not known or domain not in self._looked_through:
            numbers = (_plausible(int(name[:23])) for name in self._names(domain))
            highest = max((number for number in (highest, *numbers) if number is not None), default=0)
        number = max(time.time_ns(), (highest or 0) + 1)
        if last.fd is not None and held:
            with contextlib.suppress(OSError):
                if os.pwrite(last.fd, b"%023d" % number, 0) != 23:
                    os.ftruncate(last.fd, 0)
                else:
                    if not known:
                        os.ftruncate(last.fd, 23)
                    self._looked_through.add(domain)
        return number

    def _names(self, domain: str) -> list[str]:
        with os.scandir(os.path.join(self.path, domain)) as entries:
            return [entry.name for entry in entries if _NAME.fullmatch(entry.name)]

    def _write(self, directory: str, path: str, data: bytes, replaces: bool = False) -> None:
        """Writes a whole file or none: temporary name, sync, rename, sync of the directory."""
        fd: int | None = None
        there = ""
        try:
            while fd is None:
                # Processes of two containers may have the same id; whoever made the file owns the name.
                temporary = os.path.join(directory, f"tmp-{os.getpid()}-{_next_number()}")
                with contextlib.suppress(FileExistsError):
                    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            there = temporary
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            if replaces:
                if os.path.lexists(path) and not _is_regular(path):
                    raise OSError(errno.EEXIST, _NO_REGULAR_FILE, path)
                os.rename(temporary, path)
            else:
                _rename_to_new(temporary, path)
            there = ""
            try:
                _sync_directory(directory)
            except OSError as error:
                if replaces:
                    raise
                # Somebody may have delivered it already, and a removal need not survive either: it stays.
                raise _UnsyncedName(error) from error
        except BaseException:
            if there:
                with contextlib.suppress(OSError):
                    os.unlink(there)
            raise

    def lock(self, domain: str) -> _Steps[_FileLock | None]:
        """The lock of a domain, or None if somebody else delivers it. Whoever runs the steps lets go of it in the end."""
        lock = _FileLock(os.path.join(self.path, domain, "lock"))
        try:
            return lock if (yield _Take(lock)) else None
        except OSError as error:
            raise self._error(error, "cannot lock the spool") from error

    # What follows is called by the holder of the lock only.

    def tidy(self, domain: str) -> None:
        """Removes what a writer left that ended while writing."""
        directory = os.path.join(self.path, domain)
        for part in (directory, os.path.join(directory, "rejected"), os.path.join(directory, "broken")):
            # Left over is not in the way.
            with contextlib.suppress(OSError), os.scandir(part) as entries:
                for entry in entries:
                    if not _TEMPORARY.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                        continue
                    with contextlib.suppress(OSError):
                        if time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_OVER_AFTER_S:
                            os.unlink(entry.path)

    def leave(self, domain: str, name: str) -> None:
        """Leaves a file where it is: no call tries it again, but a flush does."""
        self._stuck.add((domain, name))

    def try_again(self, domain: str) -> None:
        self._stuck -= {key for key in self._stuck if key[0] == domain}

    def read(self, domain: str, name: str) -> tuple[list[bytes], str] | None:
        """The events of a file, and what is wrong with its other lines, which then are in broken/; None if it is gone."""
        if (rest := self._rests.get((domain, name))) is not None:
            return rest, ""
        try:
            data = _read_regular(os.path.join(self.path, domain, name))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise self._error(error, "cannot read the spool") from error
            raise _Stuck(self._error(error, f"cannot read {domain}/{name}")) from error
        good: list[bytes] = []
        broken: list[bytes] = []
        reason = ""
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line:
                continue
            if why := _no_object(line):
                broken.append(line)
                reason = reason or f"line {number} {why}"
            else:
                good.append(line)
        if not good:
            return [], reason or "it holds no event"
        if broken:
            aside = os.path.join(self.path, domain, "broken")
            try:
                _make_directory(aside)
                self._append(aside, os.path.join(aside, name), b"\n".join(broken) + b"\n")
            except OSError as error:
                raise _Stuck(self._error(error, f"cannot write {domain}/broken/{name}")) from error
            self.replace(domain, name, good)
        return good, reason

    def acknowledged(self, domain: str, names: list[str]) -> None:
        """As long as this process lives it knows that these were acknowledged."""
        known = {(domain, name) for name in names}
        self._acknowledged |= known

    def remove(self, domain: str, names: list[str]) -> None:
        directory = os.path.join(self.path, domain)
        self.acknowledged(domain, names)
        try:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(directory, name))
            _sync_directory(directory)
        except OSError as error:
            wrapped = self._error(error, "delivered, but cannot be removed from the spool")
            # Another process sends it again.
            wrapped.written = "maybe"
            raise wrapped from error
        self._acknowledged -= {(domain, name) for name in names}
        for name in names:
            self._rests.pop((domain, name), None)
        self._looked_at = -math.inf

    def remember(self, domain: str, name: str, lines: list[bytes]) -> None:
        """As long as this process lives it sends only these of a file."""
        if lines:
            self._rests[domain, name] = lines
        else:
            self.acknowledged(domain, [name])

    def remove_acknowledged(self, domain: str) -> None:
        """Removes what could not be removed after its delivery; else an error, and nothing of it is sent again."""
        if names := sorted(name for known, name in self._acknowledged if known == domain):
            self.remove(domain, names)

    def put_aside(self, domain: str, name: str, where: str) -> str:
        """Moves a file to rejected/ or broken/."""
        directory = os.path.join(self.path, domain)
        aside = os.path.join(directory, where)
        target = os.path.join(aside, name)
        try:
            _make_directory(aside)
            if os.path.lexists(target):
                self._append(aside, target, _read_regular(os.path.join(directory, name)))
                os.unlink(os.path.join(directory, name))
            else:
                os.rename(os.path.join(directory, name), target)
            _sync_directory(aside)
            _sync_directory(directory)
        except OSError as error:
            raise _Stuck(self._error(error, f"cannot move {domain}/{name} to {where}/")) from error
        return target

    def reject(self, domain: str, name: str, lines: list[bytes], reasons: str, whole: bool) -> str:
        """Puts refused lines into rejected/ with the answers beside them; `whole`: the file holds nothing else."""
        aside = os.path.join(self.path, domain, "rejected")
        target = os.path.join(aside, name)
        # An earlier, interrupted delivery of the same file may have refused other lines of it.
        again = os.path.lexists(target)
        try:
            _make_directory(aside)
            try:
                self._append(aside, target + ".reason", reasons.encode())
            except OSError as error:
                # On a full disk a refused event must not block the others, whose delivery makes room.
                log.error("cannot write %s.reason (%s): %s", target, error.strerror, reasons.strip())
            if whole and not again and (domain, name) not in self._rests:
                # Needs no room.
                return self.put_aside(domain, name, "rejected")
            self._append(aside, target, b"\n".join(lines) + b"\n")
        except OSError as error:
            raise _Stuck(self._error(error, f"cannot write {domain}/rejected/{name}")) from error
        if whole:
            self.remove(domain, [name])
        return target

    def _append(self, directory: str, path: str, data: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            data = _read_regular(path) + data
        self._write(directory, path, data, replaces=True)

    def replace(self, domain: str, name: str, lines: list[bytes]) -> None:
        """Leaves only these lines of a file: the rest of it is done, whether the disk takes that or not."""
        directory = os.path.join(self.path, domain)
        path = os.path.join(directory, name)
        # Whatever comes between, this process does not send the others again.
        self._rests[domain, name] = lines
        try:
            try:
                self._write(directory, path, b"\n".join(lines) + b"\n", replaces=True)
            except OSError as error:
                # No room for another file, perhaps; in its own place a file needs none.
                log.info("%s is shortened in its place: %s", path, error.strerror)
                _blank(path, lines)
        except OSError as error:
            wrapped = self._error(error, f"cannot shorten {name}; another process may send its first events twice")
            wrapped.written = "maybe"
            raise wrapped from error
        self._rests.pop((domain, name), None)


def _blank(path: str, lines: list[bytes]) -> None:
    """Writes line ends over all other lines of a file. Torn in the middle, it loses none of these."""
    fd = _open_regular(path, os.O_RDWR)
    try:
        size = os.fstat(fd).st_size
        data = os.pread(fd, size, 0)
        left = iter(lines)
        wanted = next(left, None)
        parts = []
        for line in data.split(b"\n"):
            if wanted is not None and line == wanted:
                parts.append(line)
                wanted = next(left, None)
            else:
                parts.append(b"\n" * len(line))
        if wanted is not None or len(data) != size:
            raise OSError(errno.EIO, "the file has changed meanwhile")
        rest, at = memoryview(b"\n".join(parts)), 0
        while at < size:
            at += os.pwrite(fd, rest[at:], at)
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _no_object(line: bytes) -> str | None:
    """Why a line is no event; None if it is one."""
    try:
        # Numbers are not looked at: an integer may be longer than Python converts.
        if not isinstance(json.loads(line.decode(), parse_int=str, parse_float=str, parse_constant=_refuse), dict):
            return "is no JSON object"
    except ValueError as error:
        return f"is no JSON: {error}"
    except RecursionError:
        pass  # Deeper than Python reads; the server judges.
    return None


_spool_dirs: dict[tuple[str, int], _SpoolDir] = {}


def _spool_dir(path: str, max_bytes: int) -> _SpoolDir:
    return _spool_dirs.setdefault((path, max_bytes), _SpoolDir(path, max_bytes))


# ---------------------------------------------------------------------------------------------------- delivery rules


def _check_domain(domain: object) -> None:
    if not isinstance(domain, str):
        raise IngestError(f"a domain must be text, not {type(domain).__name__}")
    if not domain.strip().strip("."):
        raise IngestError(f"invalid domain {domain!r}")


class _Rules:
    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
        if settings.spool and fcntl is None:
            raise SettingsError("LEITSTAND_SPOOL needs flock, which this system does not have")
        self.spool = _spool_dir(settings.spool, settings.spool_max_bytes) if settings.spool else None

    def event(self, domain: str, data: object) -> _Steps[Delivered]:
        if not isinstance(data, Mapping):
            raise IngestError("payload must be a mapping")
        line = _encode(data)
        _check_domain(domain)
        if self.spool is not None:
            _check_size(line)
            _check_same_domain(domain, data)
        try:
            return (yield from self._call(domain, [line]))
        except IngestError as error:
            error.unsent, error.unsent_events = 1, [data]
            raise

    def feed(self, feed: _Feed) -> _Steps[None]:
        """Sends what the feed holds; raises if the next event of it is none."""
        if feed.lines:
            try:
                feed.sent((yield from self._call(feed.domain, feed.lines)))
            except IngestError as error:
                raise feed.stopped(error) from error
        feed.go_on()

    def _call(self, domain: str, lines: list[bytes]) -> _Steps[Delivered]:
        _check_domain(domain)
        send = _sending(domain, lines)
        if self.spool is None:
            yield from _attempts(send, self.settings, self.settings.retries)
            return "ok"
        name = _spool_domain(domain)
        return (yield from self._call_with_spool(self.spool, name, send, lines))

    def _call_with_spool(self, spool: _SpoolDir, domain: str, send: _Send, lines: list[bytes]) -> _Steps[Delivered]:
        lock: _FileLock | None = None
        try:
            failure: IngestError | None = None
            try:
                waiting = yield _Do(lambda: spool.pending(domain, most=1))
                if waiting and not self._quiet():
                    lock = yield from spool.lock(domain)
            except SettingsError:
                raise
            except IngestError as error:
                # Nothing can be in front of this event in a spool that cannot be used, so the server may have it.
                log.error("%s", error)
                waiting = []
            if waiting:
                if lock is None:
                    yield _Do(lambda: spool.put(domain, lines))
                    return "spooled"
                try:
                    yield from self._deliver(spool, domain, 0, _Report())
                except IngestError as error:
                    # It was about other events; these were not sent.
                    error.written = "no"
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
                    if failure.written == "maybe":
                        error.written = "maybe"
                raise
            if failure is not None:
                log.info("in the spool, because: %s", failure)
            return "spooled"
        finally:
            if lock is not None:
                lock.release()

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
            spool.try_again(name)
            try:
                if not (yield _Do(functools.partial(spool.pending, name, most=1))):
                    continue
                lock = yield from spool.lock(name)
            except IngestError as error:
                failed = failed or error
                continue
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
                if error._concerns_all:
                    break
            finally:
                lock.release()
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
        yield _Do(lambda: spool.remove_acknowledged(domain))
        group: list[tuple[str, list[bytes]]] = []
        size = count = 0
        for name in (yield _Do(lambda: spool.pending(domain))):
            try:
                found = yield _Do(functools.partial(spool.read, domain, name))
                if found is None:
                    continue
                lines: list[bytes] = found[0]
                reason: str = found[1]
                if not lines:
                    path = yield _Do(functools.partial(spool.put_aside, domain, name, "broken"))
                    report.add(f"a broken file of the spool was put aside, {reason}: look at {path}")
                    continue
            except _Stuck as error:
                self._leave(spool, domain, name, error, report)
                continue
            if reason:
                report.add(f"broken lines of the spool were put aside, {reason}: look at {domain}/broken/{name}")
            length = sum(map(len, lines)) + len(lines)
            if group and (count + len(lines) > MAX_REQUEST_EVENTS or size + length > MAX_REQUEST_BYTES):
                yield from self._deliver_group(spool, domain, group, retries, report)
                group, size, count = [], 0, 0
            group.append((name, lines))
            size, count = size + length, count + len(lines)
        if group:
            yield from self._deliver_group(spool, domain, group, retries, report)

    def _leave(
        self, spool: _SpoolDir, domain: str, name: str, error: IngestError, report: _Report, refused: object = None
    ) -> None:
        """Nothing behind a file has to wait because it cannot be read or put aside."""
        spool.leave(domain, name)
        why = f"the server refused an event of the spool, {refused}, and " if refused is not None else ""
        report.add(f"{why}{error}; {domain}/{name} stays where it is, and what is behind it is delivered")

    def _deliver_group(
        self, spool: _SpoolDir, domain: str, group: list[tuple[str, list[bytes]]], retries: int, report: _Report
    ) -> _Steps[None]:
        lines = [line for _, part in group for line in part]
        if len(group) == 1 and len(lines) > 1:
            yield from self._deliver_file(spool, domain, group[0], retries, report)
            return
        names = [name for name, _ in group]
        send = _sending(domain, lines, functools.partial(spool.acknowledged, domain, names))
        try:
            yield from _attempts(send, self.settings, retries)
        except IngestError as error:
            if error.status not in _REFUSED_EVENTS:
                raise
            if len(group) > 1:
                for part in group:
                    yield from self._deliver_group(spool, domain, [part], retries, report)
                return
            name, reason = group[0][0], f"{error.status} {error.text}\n"
            try:
                path = yield _Do(lambda: spool.reject(domain, name, lines, reason, True))
                report.add(f"the server refused an event of the spool, {error}: look at {path}")
            except _Stuck as stuck:
                self._leave(spool, domain, name, stuck, report, error)
        else:
            report.delivered += len(lines)
            yield _Do(lambda: spool.remove(domain, names))

    def _deliver_file(
        self, spool: _SpoolDir, domain: str, file: tuple[str, list[bytes]], retries: int, report: _Report
    ) -> _Steps[None]:
        """Delivers a file of several events: whole if that goes, else in pieces, at last event by event."""
        name, lines = file
        progress = _FileProgress()
        try:
            yield from self._deliver_and_settle(spool, domain, file, retries, report, progress)
        finally:
            # Also when an interrupt came before what is settled: what was acknowledged is not sent again.
            if not progress.settled and progress.at > progress.refused:
                spool.remember(domain, name, progress.refused_of(lines) + lines[progress.at :])

    def _deliver_and_settle(
        self,
        spool: _SpoolDir,
        domain: str,
        file: tuple[str, list[bytes]],
        retries: int,
        report: _Report,
        progress: _FileProgress,
    ) -> _Steps[None]:
        stopped: IngestError | None = None
        try:
            yield from self._deliver_pieces(spool, domain, file, retries, report, progress)
        except IngestError as error:
            stopped = error
            raise
        finally:
            try:
                self._settle(spool, domain, file, progress, report)
            except IngestError as unsettled:
                progress.settled = True
                if stopped is None:
                    raise
                stopped.args = (f"{stopped}; {unsettled}",)
                if unsettled.written == "maybe":
                    stopped.written = "maybe"

    def _deliver_pieces(
        self,
        spool: _SpoolDir,
        domain: str,
        file: tuple[str, list[bytes]],
        retries: int,
        report: _Report,
        progress: _FileProgress,
    ) -> _Steps[None]:
        name, lines = file
        most = MAX_REQUEST_EVENTS
        while progress.at < len(lines):
            piece: list[bytes] = []
            size = 0
            for line in lines[progress.at : progress.at + most]:
                if piece and not _fits(len(piece), size, line):
                    break
                piece.append(line)
                size += len(line) + 1
            send = _sending(domain, piece, functools.partial(progress.acknowledge, len(piece)))
            try:
                yield from _attempts(send, self.settings, retries)
                report.delivered += len(piece)
            except IngestError as error:
                if error.status not in _REFUSED_EVENTS:
                    raise
                if len(piece) > 1:
                    most = 1
                    continue
                progress.refuse(f"{error.status} {error.text}\n", str(error))

    def _settle(
        self, spool: _SpoolDir, domain: str, file: tuple[str, list[bytes]], progress: _FileProgress, report: _Report
    ) -> None:
        """Leaves of a file what is not answered. Before anything else goes what was acknowledged."""
        name, lines = file
        at, refused = progress.at, progress.refused_of(lines)
        if len(refused) < at:
            # Whatever becomes of what was refused.
            if left := refused + lines[at:]:
                spool.replace(domain, name, left)
            else:
                spool.remove(domain, [name])
        progress.settled = True
        if not refused:
            return
        try:
            spool.reject(domain, name, refused, "".join(progress.reasons), at == len(lines))
        except _Stuck as stuck:
            if at < len(lines):
                raise
            self._leave(spool, domain, name, stuck, report, progress.errors[0])
            return
        for why in progress.errors:
            report.add(f"the server refused an event of the spool, {why}: look at {domain}/rejected/{name}")
        if at < len(lines):
            spool.replace(domain, name, lines[at:])


class _FileProgress:
    """How far the delivery of a file has come. Each step is one assignment, which nothing can interrupt in the middle."""

    def __init__(self) -> None:
        # How many are answered, which of them were refused, and why.
        self._state: tuple[int, tuple[tuple[int, str, str], ...]] = (0, ())
        self.settled = False

    @property
    def at(self) -> int:
        return self._state[0]

    @property
    def refused(self) -> int:
        return len(self._state[1])

    @property
    def reasons(self) -> list[str]:
        """The answers, for the file beside."""
        return [reason for _, reason, _ in self._state[1]]

    @property
    def errors(self) -> list[str]:
        return [error for _, _, error in self._state[1]]

    def refused_of(self, lines: list[bytes]) -> list[bytes]:
        return [lines[number] for number, _, _ in self._state[1]]

    def acknowledge(self, events: int) -> None:
        at, refused = self._state
        self._state = (at + events, refused)

    def refuse(self, reason: str, error: str) -> None:
        at, refused = self._state
        self._state = (at + 1, (*refused, (at, reason, error)))


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


class _Answers:
    """Follows what a connection reads, to know whether there is a byte on it that nobody asked for."""

    def __init__(self) -> None:
        self.head = b""
        self.left: int | None = None
        self.answers = 0
        self.asked = False
        # Not to be used for another request.
        self.spent = False

    def asks(self) -> None:
        if not self.asked:
            self.asked, self.head, self.left = True, b"", None

    def reads(self, data: bytes) -> None:
        while data and not self.spent:
            if not self.asked:
                self.spent = True
                return
            if self.left is None:
                self.head += data
                head, end, data = self.head.partition(b"\r\n\r\n")
                if not end:
                    self.spent = len(self.head) > 100_000
                    return
                self.head = b""
                if re.match(rb"HTTP/1\.[01] 1(?!01)[0-9]{2}", head):
                    continue
                lengths = re.findall(rb"(?im)^content-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r?$", head)
                if len(lengths) != 1 or re.search(rb"(?im)^transfer-encoding", head):
                    self.spent = True
                    return
                self.left = int(lengths[0])
            taken = min(self.left, len(data))
            self.left, data = self.left - taken, data[taken:]
            if self.left == 0:
                self.answers, self.asked = self.answers + 1, False


def _has_more(stream: Any) -> bool:
    """Whether something can be read from a connection on which nothing is expected."""
    if stream.get_extra_info("is_readable"):
        return True
    tls = stream.get_extra_info("ssl_object")
    if tls is not None and tls.pending() > 0:
        return True
    # anyio reads ahead; how much is no public knowledge.
    inner = getattr(stream, "_stream", None)
    while inner is not None and hasattr(inner, "transport_stream"):
        if getattr(getattr(inner, "_read_bio", None), "pending", 0):
            return True
        inner = inner.transport_stream
    return bool(getattr(getattr(inner, "_protocol", None), "read_queue", None))


class _Watched:
    """What both kinds of streams say about themselves."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._answers = _Answers()

    def _ask(self) -> None:
        answers = self._answers
        if not answers.asked:
            if answers.spent or (answers.answers and _has_more(self._inner)):
                answers.spent = True
                # The pool takes another connection.
                raise httpcore.ConnectionNotAvailable
            answers.asks()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._answers.spent or _has_more(self._inner)
        return self._inner.get_extra_info(info)


class _DeadlineStream(_Watched, httpcore.NetworkStream):
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))
        self._answers.reads(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._ask()
        # In pieces, because the time counts anew whenever the other side takes something.
        for at in range(0, len(buffer), 65536):
            self._inner.write(buffer[at : at + 65536], _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout, httpcore.ConnectTimeout)))


class _AsyncStream(_Watched, httpcore.AsyncNetworkStream):
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = await self._inner.read(max_bytes, timeout)
        self._answers.reads(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._ask()
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        find = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            ipaddress.ip_address(host.strip("[]"))
            addresses = [host.strip("[]")]
        except ValueError:
            try:
                found = await asyncio.wrap_future(_threads().submit(find))
            except (OSError, UnicodeError, RuntimeError) as error:
                raise httpcore.ConnectError(str(error)) from error
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        problem: Exception = httpcore.ConnectError(f"no address of {host}")
        for address in addresses:
            try:
                return _AsyncStream(await self._inner.connect_tcp(address, port, timeout, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._inner.connect_unix_socket(path, timeout, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


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


def _watch(http: httpx.Client | httpx.AsyncClient) -> bool:
    """Wraps the network of a client that this module made; False if a future httpx has other names for it."""
    for transport in [http._transport, *http._mounts.values()]:
        pool: Any = getattr(transport, "_pool", None)
        inner = getattr(pool, "_network_backend", None)
        if isinstance(inner, httpcore.NetworkBackend):
            pool._network_backend = _DeadlineBackend(inner)
        elif isinstance(inner, httpcore.AsyncNetworkBackend):
            pool._network_backend = _AsyncBackend(inner)
        elif transport is not None:
            return False
    return True


# A connection that cannot be watched is not used twice.
_ONE_REQUEST_EACH = httpx.Limits(max_connections=100, max_keepalive_connections=0)

H = TypeVar("H", httpx.Client, httpx.AsyncClient)


def _made(kind: type[H], settings: _Settings, transport: Transport | None) -> H:
    """A client of httpx, or a SettingsError."""
    try:
        if transport is not None:
            made = kind(transport=transport, timeout=settings.timeout_s, trust_env=False)  # type: ignore[arg-type]
        else:
            options = _network(settings)
            made = kind(**options)
            if not _watch(made):
                made = kind(**options, limits=_ONE_REQUEST_EACH)
        return made
    except Exception as error:
        raise _no_client(error, settings) from error


def _encoded(content_type: str, body: bytes, settings: _Settings) -> tuple[bytes, dict[str, str]]:
    """The body as it is sent, and what describes it."""
    headers = {
        "Content-Type": content_type,
        "Accept": "application/problem+json, */*",
        "User-Agent": f"hauski-ingest/{__version__}",
    }
    if settings.gzip and len(body) >= MIN_GZIP_BYTES:
        headers["Content-Encoding"] = "gzip"
        return gzip_format.compress(body, compresslevel=6, mtime=0), headers
    return body, headers


async def _apost(http: httpx.AsyncClient, settings: _Settings, auth: httpx.Auth, send: _Send, form: _Form) -> _Outcome:
    progress = _Progress()

    async def post() -> _Outcome:
        path, content_type, plain = send.request(form)
        body, headers = _encoded(content_type, plain, settings)
        request = http.build_request(
            "POST", settings.url + path, content=body, headers=headers, extensions={"trace": progress.atrace}
        )
        request.extensions["timeout"] = httpx.Timeout(settings.timeout_s).as_dict()
        response = await http.send(request, auth=auth, stream=True, follow_redirects=False)
        try:
            data = b""
            async for part in response.aiter_bytes():
                data += part
                if len(data) > MAX_ANSWER_BYTES:
                    break
            outcome = _judge(response.status_code, response.headers, data)
            if outcome.good and send.on_good is not None:
                send.on_good()
            return outcome
        finally:
            with contextlib.suppress(Exception):
                await response.aclose()

    # A transport of the caller does not tell how far it has come.
    foreign = not isinstance(http._transport, httpx.AsyncHTTPTransport)
    try:
        return await asyncio.wait_for(post(), settings.timeout_s)
    except asyncio.TimeoutError as error:
        if not progress.sending and not foreign:
            return _no_connection(TimeoutError("timed out"), settings.url)
        return _no_answer(settings.timeout_s, settings.url, error)
    except Exception as error:
        return _failed(error, settings, progress.sending or foreign)


class _Base:
    def __init__(self, **settings: Unpack[Options]) -> None:
        values: dict[str, Any] = dict(settings)
        self._transport: Transport | None = values.pop("transport", None)
        if unknown := values.keys() - Options.__annotations__.keys():
            raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
        try:
            self._settings = _settings(**values)
        except IngestError:
            raise
        except Exception as error:
            raise SettingsError(f"a setting cannot be used: {_said(error)}") from error
        self._rules = _Rules(self._settings)
        self._auth = _XAuth(self._settings.token)
        self._form = _Form()
        self._pid = os.getpid()
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.url}>"

    def _forget_the_parent(self) -> None:
        """Called in a child, before it does anything else with this client."""
        raise NotImplementedError

    def _forms(self, send: _Send) -> Generator[_Form, _Outcome, _Outcome]:
        """The forms of one attempt: the one that was good the last time, and others if the server does not know it."""
        form, tried = self._form, set()
        while True:
            outcome = yield form
            tried.add(form)
            following = form.after(outcome.status, len(send.lines))
            if following in tried:
                break
            form = following
        if outcome.good:
            self._form = form
        return outcome

    async def _apost(self, http: httpx.AsyncClient, send: _Send) -> _Outcome:
        forms = self._forms(send)
        form = next(forms)
        try:
            while True:
                form = forms.send(await _apost(http, self._settings, self._auth, send, form))
        except StopIteration as stop:
            outcome: _Outcome = stop.value
            return outcome


class Client(_Base):
    """Keeps its connections between calls; may be used by several threads, and after a fork by the child as well.

    flush_every=SECONDS: a thread delivers what is in the spool, until close(), and once more when the program ends.
    """

    def __init__(self, *, flush_every: float | None = None, **settings: Unpack[Options]) -> None:
        super().__init__(**settings)
        if flush_every is not None and not 0 < flush_every <= 86_400:
            raise SettingsError(f"flush_every must be more than 0 and at most 86400 seconds, not {flush_every!r}")
        if flush_every is not None and self._settings.spool is None:
            raise SettingsError("flush_every needs a spool: set LEITSTAND_SPOOL, or pass spool=")
        # One, or none; a dict, because two threads may make it at the same time.
        self._https: dict[str, httpx.Client] = {}
        self._closing = threading.Event()
        self._flush_every = flush_every
        self._thread: threading.Thread | None = None
        if not isinstance(self._transport, httpx.AsyncBaseTransport):
            try:
                self._connections()
            except SettingsError as error:
                if self._settings.spool is None:
                    raise
                # It may be put right while this program runs; until then the spool takes the events.
                log.warning("%s", error)
        if flush_every is not None:
            _at_exit_closed.add(self)
            self._flush_in_a_thread()

    def _connections(self) -> httpx.Client:
        """The connections of this process."""
        if self._pid != os.getpid():
            self._forget_the_parent()
        http = self._https.get("all")
        if http is None:
            transport = self._transport
            assert transport is None or isinstance(transport, httpx.BaseTransport)
            http = self._https.setdefault("all", _made(httpx.Client, self._settings, transport))
        return http

    def _abandon(self, http: httpx.Client) -> None:
        """Whatever an interrupt left half done in it, a lock or a connection, is not used again."""
        if self._https.get("all") is http:
            del self._https["all"]

    def _forget_the_parent(self) -> None:
        self._pid = os.getpid()
        _of_the_parent.append(self._https)
        self._https, self._thread = {}, None
        self._closing = threading.Event()

    def _flush_in_a_thread(self) -> None:
        """Starts the thread where it is wanted and missing: in a child, or where one could not be had before."""
        if self._flush_every is None or self._thread is not None or self._closing.is_set():
            return
        thread = threading.Thread(target=self._flush_often, args=(self._flush_every,), name="hauski-flush", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("the spool is delivered by calls only, for want of a thread: %s", error)
        else:
            self._thread = thread

    def ingest_event(self, domain: str, data: Event) -> Delivered:
        """Sends one event; returns "ok", with a spool perhaps "spooled"."""
        return self._run(self._rules.event(domain, data))

    ingest_json = ingest_event

    def ingest_events(self, domain: str, events: Iterable[Event]) -> int:
        """Sends many events in few requests; returns how many are delivered or spooled."""
        return self._ingest(domain, events).acknowledged

    def _ingest(self, domain: str, events: Iterable[object]) -> _Feed:
        feed = _Feed(domain, events, self._settings.spool is not None)
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
        """Ends the thread after a last attempt to deliver, and closes the connections. A later call opens new ones."""
        self._closing.set()
        _at_exit_closed.discard(self)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if self._flush_every is not None:
            self._flush_once(unless_quiet=False)
        if self._pid != os.getpid():
            self._forget_the_parent()
        http = self._https.pop("all", None)
        if http is not None:
            with contextlib.suppress(Exception):
                http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, steps: _Steps[T]) -> T:
        held: list[_FileLock] = []
        try:
            return self._drive(steps, held)
        finally:
            _let_go(steps, held)

    def _drive(self, steps: _Steps[T], held: list[_FileLock]) -> T:
        self._flush_in_a_thread()
        try:
            step = next(steps)
            while True:
                try:
                    result = self._perform(step, steps, held)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        except IngestError:
            raise
        except Exception as error:
            raise _unforeseen(error) from error

    def _perform(self, step: _Step, steps: _Steps[Any], held: list[_FileLock]) -> object:
        if isinstance(step, _Send):
            return self._post(step)
        if isinstance(step, _Wait):
            time.sleep(step.seconds)
            return None
        if isinstance(step, _Take):
            return _take(step.lock, steps, held)
        return step.work()

    def _post(self, send: _Send) -> _Outcome:
        if isinstance(self._transport, httpx.AsyncBaseTransport):
            return self._post_to_async_transport(send)
        try:
            http = self._connections()
        except SettingsError as error:
            return _Outcome(text=str(error), written="no", cause=error)
        except Exception as error:
            return _no_connection(error, self._settings.url)
        whole = False
        try:
            _attempt.deadline = time.monotonic() + self._settings.timeout_s
            forms = self._forms(send)
            form = next(forms)
            while True:
                form = forms.send(self._post_to(http, send, form))
        except StopIteration as stop:
            whole = True
            outcome: _Outcome = stop.value
            return outcome
        finally:
            _attempt.deadline = None
            if not whole:
                self._abandon(http)

    def _post_to(self, http: httpx.Client, send: _Send, form: _Form) -> _Outcome:
        settings, progress = self._settings, _Progress()
        foreign = self._transport is not None and not isinstance(self._transport, httpx.HTTPTransport)
        outcome: _Outcome | None = None
        try:
            path, content_type, plain = send.request(form)
            body, headers = _encoded(content_type, plain, settings)
            with http.stream(
                "POST",
                settings.url + path,
                content=body,
                headers=headers,
                auth=self._auth,
                follow_redirects=False,
                extensions={"trace": progress.trace},
            ) as response:
                data = b""
                for part in response.iter_bytes():
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        break
                    if time.monotonic() > _attempt.deadline:
                        return _no_answer(settings.timeout_s, settings.url)
                outcome = _judge(response.status_code, response.headers, data)
                if outcome.good and send.on_good is not None:
                    send.on_good()
            return outcome
        except Exception as error:
            # An answer that was read counts, whatever becomes of its connection.
            return outcome or _failed(error, settings, progress.sending or foreign)

    def _post_to_async_transport(self, send: _Send) -> _Outcome:
        """httpx.ASGITransport speaks only async; it may be used from a synchronous test all the same."""

        async def post() -> _Outcome:
            assert isinstance(self._transport, httpx.AsyncBaseTransport)
            async with httpx.AsyncClient(transport=self._transport) as http:
                return await self._apost(http, send)

        done: list[_Outcome | BaseException] = []

        def run() -> None:
            try:
                done.append(asyncio.run(post()))
            except BaseException as error:
                done.append(error)

        # In a thread of its own, because this one may already run an event loop.
        thread = threading.Thread(target=run)
        try:
            thread.start()
        except RuntimeError as error:
            return _no_connection(error, self._settings.url)
        thread.join()
        if isinstance(done[0], Exception):
            return _failed(done[0], self._settings)
        if isinstance(done[0], BaseException):
            raise done[0]
        return done[0]


def _take(lock: _FileLock, steps: _Steps[Any], held: list[_FileLock]) -> bool:
    """Takes a lock on behalf of steps; whoever runs them lets go of what is held in the end."""
    lock.holder = steps
    held.append(lock)
    return lock.take()


def _let_go(steps: _Steps[Any], held: list[_FileLock]) -> None:
    """Whatever came between: steps that were not at their end note what they know, and no lock stays."""
    try:
        steps.close()
    finally:
        for lock in held:
            lock.release()


_at_exit_closed: weakref.WeakSet[Client] = weakref.WeakSet()


@atexit.register
def _close_at_exit() -> None:
    for client in list(_at_exit_closed):
        if client._pid == os.getpid():
            client.close()


def _unforeseen(error: Exception) -> IngestError:
    """What no rule foresees is an IngestError all the same, and says only what is certain."""
    return IngestError(f"{type(error).__name__}: {_said(error)}", written="maybe", retryable=True)


class AsyncClient(_Base):
    """The same for asyncio, each event loop with connections of its own. The files of a spool are worked on in threads."""

    def __init__(self, **settings: Unpack[Options]) -> None:
        super().__init__(**settings)
        if not isinstance(self._transport, (httpx.AsyncBaseTransport, type(None))):
            raise SettingsError("transport must be an httpx.AsyncBaseTransport here")
        self._https: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = weakref.WeakKeyDictionary()
        if self._settings.spool is None:
            # What is wrong with the environment is said now; a client of httpx belongs to no loop before its first request.
            _made(httpx.AsyncClient, self._settings, self._transport)

    def _connections(self) -> httpx.AsyncClient:
        """The connections of this process and event loop."""
        if self._pid != os.getpid():
            self._forget_the_parent()
        loop = asyncio.get_running_loop()
        http = self._https.get(loop)
        if http is None:
            http = self._https[loop] = _made(httpx.AsyncClient, self._settings, self._transport)
        return http

    def _forget_the_parent(self) -> None:
        self._pid = os.getpid()
        _of_the_parent.append(dict(self._https))
        self._https = weakref.WeakKeyDictionary()

    async def ingest_event(self, domain: str, data: Event) -> Delivered:
        """Sends one event; returns "ok", with a spool perhaps "spooled"."""
        return await self._run(self._rules.event(domain, data))

    ingest_json = ingest_event

    async def ingest_events(self, domain: str, events: Iterable[Event] | AsyncIterable[Event]) -> int:
        """Sends many events in few requests; returns how many are delivered or spooled."""
        feed = _Feed(domain, events, self._settings.spool is not None)
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
        """Closes the connections of this event loop. A later call opens new ones."""
        if self._pid != os.getpid():
            self._forget_the_parent()
        http = self._https.pop(asyncio.get_running_loop(), None)
        if http is not None:
            with contextlib.suppress(Exception):
                await http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, steps: _Steps[T]) -> T:
        held: list[_FileLock] = []
        try:
            return await self._drive(steps, held)
        finally:
            _let_go(steps, held)

    async def _drive(self, steps: _Steps[T], held: list[_FileLock]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._perform(step, steps, held)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        except IngestError:
            raise
        except Exception as error:
            raise _unforeseen(error) from error

    async def _perform(self, step: _Step, steps: _Steps[Any], held: list[_FileLock]) -> object:
        if isinstance(step, _Send):
            return await self._post(step)
        if isinstance(step, _Wait):
            await asyncio.sleep(step.seconds)
            return None
        if isinstance(step, _Take):
            # At once, not in a thread: cancelled there, it would stay locked.
            return _take(step.lock, steps, held)
        # Whoever takes it does the work: an executor that gets no thread keeps what it was given.
        ticket = [step.work]

        def work() -> Any:
            return ticket.pop()() if ticket else None

        try:
            task = asyncio.wrap_future(_threads().submit(work))
        except RuntimeError:
            if not ticket:
                raise
            # No thread can be had, or the program is ending. The work is short.
            return work()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # A thread cannot be stopped, and the lock must not be given up under it.
            await asyncio.wait([task])
            raise

    async def _post(self, send: _Send) -> _Outcome:
        try:
            http = self._connections()
        except SettingsError as error:
            return _Outcome(text=str(error), written="no", cause=error)
        except Exception as error:
            return _no_connection(error, self._settings.url)
        return await self._apost(http, send)


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
    token_file: Spool | None = None,
    gzip: bool | None = None,
    proxy: str | None = None,
    verify: Verify | None = None,
) -> Delivered:
    """Send one event and return "ok" (with a spool perhaps "spooled"), else raise IngestError.

    domain           target domain, such as "example.com"
    data             mapping that JSON can hold
    url              base address (LEITSTAND_URL, http://localhost:8788)
    token            shared secret for X-Auth (LEITSTAND_TOKEN)
    timeout          seconds for one attempt (LEITSTAND_TIMEOUT, 5)
    retries          attempts after the first (LEITSTAND_RETRIES, 3)
    backoff          seconds, base of the pauses between attempts (LEITSTAND_BACKOFF, 0.5)
    transport        httpx transport for tests without sockets, such as httpx.ASGITransport or httpx.MockTransport
    spool            directory for events that cannot be delivered now (LEITSTAND_SPOOL); "" for none
    spool_max_bytes  a spool that would grow beyond this is full (LEITSTAND_SPOOL_MAX_BYTES, 256 MiB)
    token_file       file with the token (LEITSTAND_TOKEN_FILE)
    gzip             compress larger requests; leitstand reads that, the old service does not (LEITSTAND_GZIP, off)
    proxy            address of a proxy, "" for none (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY)
    verify           file or directory of certificates, an ssl.SSLContext, or False (SSL_CERT_FILE, SSL_CERT_DIR)

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
        "token_file": token_file,
        "gzip": gzip,
        "proxy": proxy,
        "verify": verify,
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


def _spelled(text: str) -> str:
    """A number stays as it is written, but one that no double holds is refused: the server would refuse it."""
    if math.isinf(float(text)):
        raise ValueError(f"no double can hold {text[:30]}")
    return text


def _json_stream(file: BinaryIO) -> Iterator[_RawEvent]:
    """The values of a JSON stream, NDJSON or pretty-printed, each as one line with its numbers as they are spelled."""
    decoder = json.JSONDecoder(parse_int=_spelled, parse_float=_spelled, parse_constant=_refuse)
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


def _program() -> str:
    """What this was called as: the command, the module, or a copy of the file."""
    path = sys.argv[0] if sys.argv else ""
    python = os.path.basename(sys.executable or "python3")
    if path.endswith(os.path.join("hauski_ingest", "__main__.py")):
        return f"{python} -m hauski_ingest"
    return f"{python} {path}" if os.path.basename(path) == "hauski_ingest.py" else "hauski-ingest"


def _say(text: str) -> None:
    # Nobody may be there to read it any more; the exit code says the same.
    with contextlib.suppress(OSError, ValueError):
        print(f"hauski-ingest: {text}", file=sys.stderr or open(os.devnull, "w"))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_program(),
        description="Send JSON events to leitstand. The token comes from LEITSTAND_TOKEN, never from the command line.",
        epilog="Exit codes: 0 delivered, or safe in the spool; 1 something was not delivered; 2 wrong usage or settings.",
    )
    parser.add_argument("--version", action="version", version=f"hauski-ingest {__version__}")
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
        command.add_argument("--token-file", metavar="FILE", help="instead of LEITSTAND_TOKEN and LEITSTAND_TOKEN_FILE")
        command.add_argument("--gzip", action="store_true", default=None, help="compress; needs leitstand as server")
    return parser.parse_args(argv)


def _send_file(client: Client, domain: str, path: str) -> int:
    spool = client._settings.spool
    try:
        if path == "-" and sys.stdin is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        file: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb")
        if path != "-" and stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except (OSError, ValueError) as error:
        _say(f"cannot read {path}: {_said(error)}")
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
        except OSError as error:
            _say(f"cannot read {path} further: {_said(error)}; the {done} events before that are safe")
            return 1
        except _BadStream as error:
            _say(f"{error}; the {done} events before it are {'delivered or spooled' if spool else 'delivered'}")
            return 1
    if feed.spooled:
        _say(f"{feed.acknowledged - feed.spooled} events delivered, {feed.spooled} are safe in {spool}: {_program()} flush")
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
            token_file=arguments.token_file,
            gzip=arguments.gzip,
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
