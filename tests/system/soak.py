"""A long even load: memory and descriptors must not grow, nothing may be lost, every probe must be answered.

SOAK_SECONDS (600) is how long, SOAK_RATE (500) the events a second. Connections come and go, domains come and
go, some requests are refused, some are cut off in the middle: what a service meets in a week, in small.
"""
import http.client, json, os, shutil, socket, tempfile, threading, time
from common import Server, TOKEN, seed, verify

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
RATE = float(os.environ.get("SOAK_RATE", "500"))
CLIENTS = 8
SLOPE_KIB_A_MINUTE_MAX = 1024
#: The first part fills caches, heaps and the map of domains.
WARM_UP = 0.25


def run():
    rng = seed("soak")
    directory = tempfile.mkdtemp(prefix="soak-")
    try:
        with Server({"LEITSTAND_DISK_RESERVE": "0", "LEITSTAND_NEW_DOMAINS_PER_HOUR": "10000", "LEITSTAND_FSYNC": os.environ.get("SOAK_FSYNC", "always")}, datadir=directory) as server:
            assert server.up, server.log_text()
            result = soak(server, rng)
            assert server.stop() == 0
        check(directory, *result)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def soak(server, rng):
    acked, sent, lock, ids = {}, {}, threading.Lock(), iter(range(1 << 60))
    deadline = time.monotonic() + SECONDS
    refused, failures = [0], []

    def client(number, rng):
        conn, begun, mine = None, time.monotonic(), 0
        while time.monotonic() < deadline:
            # Each client keeps to its share of the rate, and catches up after a slow answer.
            wait = begun + mine * CLIENTS / RATE - time.monotonic()
            if wait > 0: time.sleep(wait)
            mine += 1
            kind = rng.random()
            if conn is None or kind < 0.02:
                if conn: conn.close()
                conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            try:
                if kind < 0.04:
                    request(conn, "/v1/ingest?domain=a", b"{broken", {}); refused[0] += 1
                    continue
                if kind < 0.05:
                    cut_off(server.port); continue
                with lock: event_id = next(ids)
                domain = f"soak-{rng.randrange(40)}" if kind < 0.9 else f"rare-{rng.randrange(2000)}"
                sent[event_id] = domain
                body = json.dumps({"id": event_id, "pad": "x" * rng.choice([0, 50, 300, 5000])}).encode()
                if request(conn, f"/v1/ingest?domain={domain}", body, {}) == 202: acked[event_id] = domain
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error)); conn = None
        if conn: conn.close()

    threads = [threading.Thread(target=client, args=(n, type(rng)(rng.random()))) for n in range(CLIENTS)]
    for t in threads: t.start()
    samples, begun = [], time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SECONDS / 20))
        samples.append((time.monotonic() - begun, rss_kib(server.p.pid), descriptors(server.p.pid)))
        probe = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        probe.request("GET", "/health/live"); assert probe.getresponse().status == 200
        probe.close()
    for t in threads: t.join()
    return acked, sent, samples, refused[0], failures


def request(conn, path, body, headers):
    conn.request("POST", path, body, {"X-Auth": TOKEN, "Content-Type": "application/json", **headers})
    answer = conn.getresponse(); answer.read()
    return answer.status


def cut_off(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as s:
        s.sendall(f"POST /v1/ingest?domain=a HTTP/1.1\r\nHost: x\r\nX-Auth: {TOKEN}\r\nContent-Length: 100\r\n\r\n{{\"id\":".encode())


def check(directory, acked, sent, samples, refused, failures):
    warm = [s for s in samples if s[0] >= SECONDS * WARM_UP]
    slope = slope_a_minute([(at, rss) for at, rss, _ in warm])
    fds = [fd for _, _, fd in warm]
    problems = verify(directory, acked, sent)
    print(f"soak: {SECONDS:.0f} s, {len(acked)} acknowledged, {refused} refused, {len(failures)} failed; RSS {warm[0][1]} to {warm[-1][1]} KiB "
          f"(most {max(r for _, r, _ in samples)}), {slope:+.0f} KiB a minute; descriptors {min(fds)} to {max(fds)}; {len(problems)} problems")
    assert len(acked) > SECONDS * RATE * 0.5, "the load was not kept up, so nothing is proven"
    assert not failures, failures[:5]
    assert not problems, problems[:10]
    # A line through a few seconds says nothing about a minute.
    if SECONDS >= 120: assert slope <= SLOPE_KIB_A_MINUTE_MAX, f"memory grows by {slope:.0f} KiB a minute"
    half = len(fds) // 2
    assert max(fds[half:]) <= max(fds[:half]) + 16, f"descriptors grow: {max(fds[:half])}, then {max(fds[half:])}"


def slope_a_minute(points):
    """Least squares."""
    n = len(points); mean_x = sum(x for x, _ in points) / n; mean_y = sum(y for _, y in points) / n
    below = sum((x - mean_x) ** 2 for x, _ in points)
    return 60 * sum((x - mean_x) * (y - mean_y) for x, y in points) / below if below else 0.0


def rss_kib(pid):
    with open(f"/proc/{pid}/status") as f: return int(next(line for line in f if line.startswith("VmRSS:")).split()[1])


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
