"""Thousands of idle connections: cheap, closed in time, and nobody else waits because of them."""
import http.client, json, selectors, socket, subprocess, sys, threading, time
from common import LONG, Server, Skip, TOKEN, memory_kib

CONNECTIONS = 10_000 if LONG else 1_000
RATE = 200
# The machine that runs all checks may be busy with other things.
P99_MS_MAX = 50 if LONG else 250
RSS_KIB_MAX = 200 << 10
IDLE_S_MAX = 13
SENDERS = 20


def run():
    """Broken, a few thousand forgotten connections of a broken client make every event late, or the service huge."""
    env = {"LEITSTAND_MAX_CONNECTIONS": str(CONNECTIONS + 500), "LEITSTAND_KEEP_ALIVE_TIMEOUT": "10"}
    with Server(env) as server:
        assert server.up, server.log_text()
        if "open files" in server.log_text(): raise Skip("the limit of open files is too low")
        drivers = [subprocess.Popen([sys.executable, __file__, str(server.port), str(CONNECTIONS // 2)],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        opened = [json.loads(d.stdout.readline()) for d in drivers]
        before = gauge(server.port)
        late, seconds = steady(server.port, drivers)
        rss = memory_kib(server.p.pid, "VmHWM")
        reports = [json.loads(d.stdout.readline()) for d in drivers]
        assert all(d.wait() == 0 for d in drivers)
        after = gauge(server.port)
    late.sort()
    p50, p99 = late[len(late) // 2] * 1000, late[len(late) * 99 // 100] * 1000
    closed, longest = sum(r["closed"] for r in reports), max(r["longest"] for r in reports)
    print(f"idle: {before:.0f} connections open, half of them silent, half after a request; {len(late)} events in {seconds:.0f} s: "
          f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; peak RSS {rss / 1024:.0f} MiB; {closed} closed, the last after {longest:.1f} s idle")
    assert before >= CONNECTIONS, (before, opened)
    assert closed == CONNECTIONS and longest <= IDLE_S_MAX and after <= 2, (closed, longest, after)
    assert len(late) >= 0.9 * RATE * seconds, "the load was not what it claims to be"
    assert p99 <= P99_MS_MAX and rss <= RSS_KIB_MAX, (p99, rss)


def gauge(port):
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    conn.request("GET", "/metrics")
    page = conn.getresponse().read().decode(); conn.close()
    return float(page.split("\nleitstand_connections ")[1].split()[0])


def steady(port, drivers):
    """`RATE` events a second until the drivers see no open connection; times count from when each was due."""
    late, done, lock, began = [], threading.Event(), threading.Lock(), time.monotonic()

    def sender(k):
        conn, n = http.client.HTTPConnection("127.0.0.1", port, timeout=10), 0
        conn.connect(); conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not done.is_set():
            due = began + (k + n * SENDERS) / RATE
            time.sleep(max(0, due - time.monotonic()))
            conn.request("POST", f"/v1/ingest?domain=d{k % 4}", '{"n":1}', {"X-Auth": TOKEN, "Content-Type": "application/json"})
            answer = conn.getresponse(); answer.read()
            assert answer.status == 202, answer.status
            with lock: late.append(time.monotonic() - due)
            n += 1
        conn.close()

    threads = [threading.Thread(target=sender, args=(k,)) for k in range(SENDERS)]
    for t in threads: t.start()
    for d in drivers: d.stdin.write("watch\n"); d.stdin.flush()
    # The drivers answer when all is closed, or at their own end of patience.
    ready = selectors.DefaultSelector()
    for d in drivers: ready.register(d.stdout, selectors.EVENT_READ)
    waiting = set(drivers)
    while waiting:
        for key, _ in ready.select(1):
            ready.unregister(key.fileobj)
            waiting -= {d for d in drivers if d.stdout is key.fileobj}
    done.set()
    seconds = time.monotonic() - began
    for t in threads: t.join()
    return late, seconds


def drive(port, connections):
    """The other process: opens them as fast as it can, then watches them end."""
    request = f"GET /version HTTP/1.1\r\nHost: h\r\nX-Auth: {TOKEN}\r\n\r\n".encode()
    selector, since = selectors.DefaultSelector(), {}
    for n in range(connections):
        s = socket.create_connection(("127.0.0.1", port), timeout=10)
        if n % 2:
            s.sendall(request)
            assert b" 200 " in s.recv(4096)
        s.setblocking(False)
        since[s] = time.monotonic()
        selector.register(s, selectors.EVENT_READ)
    print(json.dumps({"opened": connections, "took": time.monotonic() - min(since.values())}), flush=True)
    sys.stdin.readline()
    closed, longest, until = 0, 0.0, time.monotonic() + 20
    while closed < connections and time.monotonic() < until:
        for key, _ in selector.select(0.5):
            try: data = key.fileobj.recv(4096)
            except OSError: data = b""
            if data: continue
            selector.unregister(key.fileobj)
            closed += 1; longest = max(longest, time.monotonic() - since[key.fileobj])
            key.fileobj.close()
    print(json.dumps({"closed": closed, "longest": longest}), flush=True)


if __name__ == "__main__":
    drive(int(sys.argv[1]), int(sys.argv[2]))
