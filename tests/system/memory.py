"""Connections that announce much, send long heads and no end, or wait after a large body: what they cost is bounded, and others are served."""
import selectors, socket, subprocess, sys, time
from common import LONG, Server, Skip, TOKEN, memory_kib, need, part
from harness import post, request

HEADS = 10_000 if LONG else 4_000
HEAD_BYTES = 31_000
# A silent connection costs something too; the short form opens fewer.
RSS_MIB_MAX = 300 if LONG else 150
BODIES, BODY_BYTES = 2_500, 9_000
ADDRESS_SPACE = 3 << 30
# Connections after a request that hyper has served, and what each may take beside what is counted.
USED = 9_000 if LONG else 2_000
LARGE_BYTES, UNFINISHED_BYTES = 30_000, 6_000
IDLE_KIB_MAX, HEAD_KIB_MAX, BODY_KIB_MAX = 8, 16, 38
CONNECTED_FROM = [f"127.0.0.{n}" for n in range(1, 21)]


def run():
    """Broken, a stranger without a token ends the service for everybody by what it keeps for him."""
    for kind in ("POST", "GET", "second"): part(f"heads, {kind}", heads, kind)
    part("bodies", bodies)
    for kind, kib_max in (("idle", IDLE_KIB_MAX), ("head", HEAD_KIB_MAX), ("half", BODY_KIB_MAX)): part(f"used, {kind}", used, kind, kib_max)


def heads(kind):
    """Unfinished heads: of a request that is plain so far, of another, and behind a whole request."""
    with Server({"LOG_LEVEL": "ERROR"}) as server:
        assert server.up, server.log_text()
        if "open files" in server.log_text(): raise Skip("the limit of open files is too low")
        before = memory_kib(server.p.pid, "VmRSS")
        with Crowd(server.port, HEADS, kind) as crowd:
            deadline, asked, slowest = time.monotonic() + (8 if LONG else 5), 0, 0.0
            while time.monotonic() < deadline:
                began = time.monotonic()
                # One small head, and one that is longer than most and comes at once.
                assert post(server.port, "probe", {"n": asked})[0] == 202
                assert request(server.port, "GET", "/health/ready", wait=0.0)[0] == 200
                slowest = max(slowest, time.monotonic() - began); asked += 1
                time.sleep(0.2)
            rss = memory_kib(server.p.pid, "VmHWM")
            report = crowd.end()
        page = request(server.port, "GET", "/metrics")[2].decode()
    print(f"memory: {HEADS} unfinished heads of {HEAD_BYTES} bytes, {kind}: peak RSS {rss / 1024:.0f} MiB, from {before / 1024:.0f}; "
          f"{asked} probes, slowest {slowest * 1000:.0f} ms; {report}")
    assert rss / 1024 <= RSS_MIB_MAX, f"{rss / 1024:.0f} MiB"
    assert slowest < 3, slowest
    assert float(page.split('\nleitstand_refused_total{reason="head_budget"} ')[1].split()[0]) > 0, "the budget was never reached"


def bodies():
    """Bodies of 1 MiB, announced and begun, where there is not so much address space."""
    need("prlimit")
    with Server({"LOG_LEVEL": "ERROR"}, wrap=("prlimit", f"--as={ADDRESS_SPACE}")) as server:
        assert server.up, server.log_text()
        with Crowd(server.port, BODIES, "body") as crowd:
            for n in range(10):
                assert server.p.poll() is None, server.log_text()[-2000:]
                assert post(server.port, "probe", {"n": n})[0] == 202
                time.sleep(0.2)
            rss = memory_kib(server.p.pid, "VmHWM")
            crowd.end()
        assert post(server.port, "probe", {"n": -1})[0] == 202
    print(f"memory: {BODIES} bodies of 1 MiB announced and {BODY_BYTES} bytes sent in {ADDRESS_SPACE >> 30} GiB of address space: peak RSS {rss / 1024:.0f} MiB")


def used(kind, kib_max):
    """A large chunked body, stored; then nothing, a head without an end, or a chunked body without one."""
    with Server({"LOG_LEVEL": "ERROR", "LEITSTAND_FSYNC": "never"}) as server:
        assert server.up, server.log_text()
        if "open files" in server.log_text(): raise Skip("the limit of open files is too low")
        # What threads and files take once is not of the connections.
        with Crowd(server.port, 20, kind) as crowd: crowd.end()
        before = memory_kib(server.p.pid, "VmRSS")
        with Crowd(server.port, USED, kind) as crowd:
            time.sleep(1)
            rss, counted = memory_kib(server.p.pid, "VmRSS"), gauge(server.port) / 1024
            report = crowd.end()
        assert post(server.port, "probe", {"n": 1})[0] == 202
    each = (rss - before - counted) / USED
    print(f"memory: {USED} connections after a chunked body of {LARGE_BYTES} bytes, {kind}: RSS {rss / 1024:.0f} MiB, from {before / 1024:.0f}, "
          f"{counted / 1024:.0f} counted: {each:.1f} KiB each; {report}")
    assert report.startswith(f"{USED} opened, 0 of them"), report
    assert (counted * 1024 >= USED * UNFINISHED_BYTES * 0.9) == (kind == "half"), counted
    assert each <= kib_max, f"{each:.1f} KiB"


def gauge(port):
    page = request(port, "GET", "/metrics")[2].decode()
    return float(page.split("\nleitstand_in_flight_bytes ")[1].split()[0])


class Crowd:
    """A process of its own that opens connections and keeps them until told."""

    def __init__(self, port, connections, kind):
        self.p = subprocess.Popen([sys.executable, __file__, str(port), str(connections), kind],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.p.stdout.readline().strip() == "ready"

    def __enter__(self): return self

    def __exit__(self, *_):
        if self.p.poll() is None: self.p.kill()
        self.p.wait()

    def end(self):
        self.p.stdin.write("end\n"); self.p.stdin.flush()
        return self.p.stdout.readline().strip()


def conversation(kind):
    """What a client sends: a request that is answered with a status, or none; and then something without an end."""
    ingest = f"POST /v1/ingest?domain=a HTTP/1.1\r\nHost: h\r\nX-Auth: {TOKEN}\r\nContent-Type: application/json\r\n".encode()
    chunked = ingest + b"Transfer-Encoding: chunked\r\n\r\n"
    large = b'{"a":"%s"}' % (b"x" * LARGE_BYTES)
    stored = (b"%s%x\r\n%s\r\n0\r\n\r\n" % (chunked, len(large), large), b" 202 ")
    live = b"GET /health/live HTTP/1.1\r\nHost: h\r\n"
    def long(head, length): return head + b"X-A: " + b"a" * (length - len(head))
    return {"POST": ((b"", b""), long(b"POST /v1/ingest?domain=a HTTP/1.1\r\nHost: h\r\n", HEAD_BYTES)),
            "GET": ((b"", b""), long(live, HEAD_BYTES)),
            "second": ((live + b"\r\n", b" 200 "), long(live, HEAD_BYTES)),
            "body": ((b"", b""), ingest + b"Content-Length: %d\r\n\r\n[" % (1 << 20) + b" " * BODY_BYTES),
            "idle": (stored, b""),
            "head": (stored, long(ingest, UNFINISHED_BYTES)),
            "half": (stored, chunked + b"2000\r\n" + b"[" * UNFINISHED_BYTES)}[kind]


def drive(port, connections, kind):
    (first, status), rest = conversation(kind)
    open_now, refused = [], 0
    for n in range(connections):
        s = socket.socket()
        s.bind((CONNECTED_FROM[n % len(CONNECTED_FROM)], 0))
        s.settimeout(10)
        try:
            s.connect(("127.0.0.1", port))
            s.sendall(first)
            if first and status not in s.recv(4096): refused += 1; continue
            # Not in one piece, as from far away.
            s.sendall(rest[:100]); s.sendall(rest[100:1000]); s.sendall(rest[1000:])
        except OSError: refused += 1; s.close(); continue
        s.setblocking(False)
        open_now.append(s)
    print("ready", flush=True)
    sys.stdin.readline()
    closed = 0
    for s in open_now:
        try:
            data = s.recv(4096)
            closed += 1
        except BlockingIOError: pass
        except OSError: closed += 1
    print(f"{len(open_now)} opened, {closed} of them answered or closed, {refused} refused", flush=True)


if __name__ == "__main__":
    drive(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
