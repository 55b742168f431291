"""The servers that are compared: how each is started, and stopped."""
import os, shutil, signal, socket, subprocess, sys, time

import load, machine

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "tests", "golden"))
from harness import free_port  # noqa: E402

TARGET = os.path.join(ROOT, "target", "bench")
LEITSTAND = os.environ.get("LEITSTAND_BIN", os.path.join(ROOT, "target", "release", "leitstand"))
LIMITS = os.path.join(TARGET, "limits", "release")
READY = ("POST /v1/ingest?domain=ready HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Auth: " + load.TOKEN +
         "\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n").encode() + b'{"event":"ready"}'


class Peer:
    """A way to run a server. `fsync` is what an answer waits for."""

    def __init__(self, name, command, env=None, stores=True, cwd=None):
        self.name, self.command, self.env, self.stores, self.cwd = name, command, env or {}, stores, cwd


def leitstand(name, fsync, binary=LEITSTAND, log_level="WARNING", **more):
    """Everything of the product is on; only the limiter is set so high that it never refuses."""
    return Peer(name, [binary, "serve"], {
        "LEITSTAND_TOKEN": load.TOKEN, "LEITSTAND_FSYNC": fsync, "LEITSTAND_HOST": "127.0.0.1", "LEITSTAND_PORT": "@PORT@",
        "LEITSTAND_DATA_DIR": "@DATA@", "LEITSTAND_RATE_LIMIT": "100000000/minute",
        "LEITSTAND_NEW_DOMAINS_PER_HOUR": "1000000", "LOG_LEVEL": log_level, **more})


def original(checkout, python):
    """The Python service that this one replaces; one worker, access log off, its best case."""
    return Peer("original", [python, "-m", "uvicorn", os.environ.get("ORIGINAL_APP", "app:app"), "--host", "127.0.0.1", "--port", "@PORT@",
                             "--no-access-log", "--log-level", "warning"],
                {"LEITSTAND_TOKEN": load.TOKEN, "LEITSTAND_DATA_DIR": "@DATA@", "LEITSTAND_RATE_LIMIT": "100000000/minute", "LOG_LEVEL": "WARNING"},
                cwd=checkout)


def find_original():
    """(peer, None), or (None, why there is none)."""
    checkout = os.environ.get("ORIGINAL")
    if not checkout: return None, "ORIGINAL is not set (the directory of a checkout with a virtual environment)"
    checkout = os.path.abspath(checkout)
    python = os.environ.get("ORIGINAL_PYTHON") or next(
        (path for path in (os.path.join(checkout, venv, "bin", "python") for venv in (".venv", "venv")) if os.path.exists(path)), None)
    if not python: return None, "ORIGINAL has neither .venv/bin/python nor venv/bin/python (ORIGINAL_PYTHON names another)"
    if subprocess.run([python, "-c", "import uvicorn"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        return None, "the Python of ORIGINAL has no uvicorn"
    return original(checkout, os.path.abspath(python)), None


CEILING = Peer("ceiling", [os.path.join(LIMITS, "ceiling"), "@PORT@"], stores=False)


class Running:
    """A server from its start until `stop`, on a data directory of its own."""

    def __init__(self, peer, scratch, prepare=None):
        self.peer, self.port = peer, free_port()
        self.data, self.log = os.path.join(scratch, "data"), os.path.join(scratch, "server.log")
        shutil.rmtree(self.data, ignore_errors=True)
        os.makedirs(self.data)
        if prepare: prepare(self.data)
        # What earlier runs left for the kernel to write would be written during this one.
        os.sync()
        fill = lambda text: text.replace("@PORT@", str(self.port)).replace("@DATA@", self.data)
        env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": scratch, **{k: fill(v) for k, v in peer.env.items()}}
        with open(self.log, "wb") as log:
            began = time.perf_counter()
            # Not in the checkout: a .env there is not for the benchmark.
            self.p = subprocess.Popen([fill(c) for c in peer.command], env=env, cwd=peer.cwd or scratch, stdin=subprocess.DEVNULL,
                                      stdout=log, stderr=log, start_new_session=True)
        try:
            self.start_ms = self.first_event(began) * 1000
        except BaseException:
            self.stop()
            raise

    def first_event(self, began):
        while time.perf_counter() - began < 60:
            if self.p.poll() is not None: raise RuntimeError(f"{self.peer.name} did not start:\n{self.log_text()}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=10) as s:
                    s.sendall(READY)
                    answer = s.recv(4096)
                if answer[9:10] == b"2": return time.perf_counter() - began
                if answer: raise RuntimeError(f"{self.peer.name} refused the first event: {answer[:200]!r}")
            except ConnectionError:
                pass
            time.sleep(0.0002)
        raise RuntimeError(f"{self.peer.name} did not answer within 60 s:\n{self.log_text()}")

    def log_text(self):
        with open(self.log, errors="replace") as f: return f.read()[-2000:]

    def memory(self, field):
        return machine.memory_mib(self.p.pid, field)

    def stop(self):
        """An orderly end, so that everything that was under way is in the files or is not."""
        for sent, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            if self.p.poll() is not None: return
            self.p.send_signal(sent)
            try: self.p.wait(seconds)
            except subprocess.TimeoutExpired: pass


def diskbench(scratch, size, seconds, threads=1):
    return [os.path.join(LIMITS, "diskbench"), scratch, str(size), str(seconds), str(threads)]
