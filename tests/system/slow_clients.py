"""Slow heads, slow bodies, clients that never read: they are ended in time and hurt nobody."""
import json, selectors, socket, subprocess, sys, time
from common import LONG, Server, TOKEN, memory_kib
from harness import post, request

CONNECTIONS = 2000 if LONG else 200
BODY_TIMEOUT_S = 30 if LONG else 5
# The limit, a tick of the clock that counts it, and what a busy machine takes.
HEAD_S_MAX, BODY_S_MAX = 10 + 1 + 2, BODY_TIMEOUT_S + 1 + 2
# A client that takes nothing off its socket is given up after 30 s, and a refused one is listened to for 5 s more after its
# answer; only the long form waits for that. Looked at once a second.
STALL_S = (29, 30 + 5 + 1 + 2)
SECONDS = 42 if LONG else 14
PROBE_S_MAX = 5
CONNECTION_KIB_MAX = 64

HEAD = f"POST /v1/ingest?domain=slow HTTP/1.1\r\nHost: h\r\nX-Auth: {TOKEN}\r\nContent-Type: application/json\r\n".encode()
KINDS = ("head", "body", "chunks", "reader")


def run():
    """Broken, a few hundred slow connections of one client keep everybody else out for as long as they like."""
    with Server({"LEITSTAND_BODY_TIMEOUT": str(BODY_TIMEOUT_S)}) as server:
        assert server.up, server.log_text()
        assert post(server.port, "probe", {"n": -1})[0] == 202
        rss = memory_kib(server.p.pid, "VmRSS")
        # A process of its own, so that its connections do not slow the probes down.
        driver = subprocess.Popen([sys.executable, __file__, str(server.port), str(CONNECTIONS), str(SECONDS)],
                                  stdout=subprocess.PIPE, text=True)
        failures, slowest, open_at = probe(server.port, driver)
        report = json.loads(driver.stdout.read())
        assert driver.wait() == 0
        grown = memory_kib(server.p.pid, "VmHWM") - rss
    readers = report.pop("reader")["opened"]
    # Only the server knows when it gave a reader up: its end queues behind what the reader does not take.
    gone = next((at for at, n in open_at if at > HEAD_S_MAX and n <= 2), None)
    print(f"slow clients: {CONNECTIONS} connections; " + "; ".join(
        f"{kind}: {r['closed']} closed after {r['first']:.1f} to {r['last']:.1f} s, answers {r['answers']}" for kind, r in report.items())
        + f"; {readers} that do not read: " + (f"gone {gone:.1f} s after the first" if LONG else "not waited for")
        + f"; {len(open_at)} probes, {failures} failures, slowest {slowest * 1000:.0f} ms; peak RSS {grown} KiB more")
    assert failures == 0, failures
    for kind, r in report.items():
        assert r["closed"] == r["opened"], f"{kind}: {r['opened'] - r['closed']} were never closed"
    assert report["head"]["last"] <= HEAD_S_MAX, report["head"]
    for kind in ("body", "chunks"):
        r = report[kind]
        assert r["last"] <= BODY_S_MAX and r["answers"] == {"408": r["opened"]}, (kind, r)
    assert grown <= CONNECTION_KIB_MAX * CONNECTIONS, f"{grown} KiB for {CONNECTIONS} connections"
    if LONG: assert gone and STALL_S[0] <= gone <= STALL_S[1], open_at


def probe(port, driver):
    """One event a second, as any other client sends it; and how many connections were open when."""
    failures, slowest, open_at, began = 0, 0.0, [], time.monotonic()
    while driver.poll() is None:
        started = time.monotonic()
        status = post(port, "probe", {"n": len(open_at)})[0]
        took = time.monotonic() - started
        slowest = max(slowest, took)
        if status != 202 or took > PROBE_S_MAX: failures += 1
        page = request(port, "GET", "/metrics")[2].decode()
        open_at.append((started - began, float(page.split("\nleitstand_connections ")[1].split()[0])))
        time.sleep(max(0, 1 - (time.monotonic() - started)))
    return failures, slowest, open_at


# ---- the driver, in its own process

class Slow:
    def __init__(self, port, kind):
        self.kind, self.got, self.ended, self.n = kind, b"", None, 0
        self.s = socket.socket()
        if kind == "reader": self.s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.s.settimeout(10)
        self.s.connect(("127.0.0.1", port))
        if kind == "body": self.s.sendall(HEAD + b"Content-Length: 100000\r\n\r\n[")
        if kind == "chunks": self.s.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n")
        if kind == "reader": self.s.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: h\r\n\r\n" * 20)
        self.s.setblocking(False)
        self.began = time.monotonic()

    def drip(self):
        """One more byte; the reader sends nothing and takes nothing."""
        try:
            if self.kind == "head": self.s.send(HEAD[self.n:self.n + 1]); self.n += 1
            if self.kind == "body": self.s.send(b" ")
            if self.kind == "chunks": self.s.send(b"1\r\n \r\n")
        except BlockingIOError: pass
        except OSError: self.end()

    def read(self):
        try:
            data = self.s.recv(65536)
            self.got += data
            if not data: self.end()
        except BlockingIOError: pass
        except OSError: self.end()

    def end(self):
        if self.ended is None: self.ended = time.monotonic() - self.began


def drive(port, connections, seconds):
    # Few readers: the kernel takes some megabytes for each, and that is not what is looked at here.
    slow = [Slow(port, "reader" if n % 20 == 0 else KINDS[n % 3]) for n in range(connections)]
    selector = selectors.DefaultSelector()
    for c in slow:
        if c.kind != "reader": selector.register(c.s, selectors.EVENT_READ, c)
    until, next_drip = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for key, _ in selector.select(0.05):
            key.data.read()
            if key.data.ended is not None: selector.unregister(key.fileobj)
        if time.monotonic() >= next_drip:
            next_drip = time.monotonic() + 1
            for c in slow:
                if c.ended is None: c.drip()
                if c.ended is not None and c.s.fileno() >= 0 and c.kind != "reader":
                    try: selector.unregister(c.s)
                    except KeyError: pass
    report = {}
    for kind in KINDS:
        mine = [c for c in slow if c.kind == kind]
        ended = [c.ended for c in mine if c.ended is not None]
        answers = {}
        for c in mine:
            if kind != "reader" and c.got: answers[c.got[9:12].decode()] = answers.get(c.got[9:12].decode(), 0) + 1
        report[kind] = {"opened": len(mine), "closed": len(ended), "first": min(ended, default=0), "last": max(ended, default=0), "answers": answers}
    print(json.dumps(report))


if __name__ == "__main__":
    drive(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
