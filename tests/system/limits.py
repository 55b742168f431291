"""Rate limits from outside: many addresses, forged ones, real ones, a jumping clock, and a crowd that was refused."""
import glob, http.client, json, os, random, shutil, socket, subprocess, sys, tempfile, threading, time
from common import LONG, Server, Skip, TOKEN, in_parallel, memory_kib, seed
from harness import request

ADDRESSES = 1_000_000 if LONG else 120_000
GROWTH_KIB_MAX = 32 << 10
STORM_CLIENTS = 200


def run():
    """Broken, a limit is got round by a header, costs all memory, or makes everybody come back at once."""
    rng = seed("limits")
    parts = [forged, long_enough, lambda: storm(rng), clock, namespaces]
    skipped = []

    def part(i):
        try: parts[i]()
        except Skip as reason: skipped.append(str(reason))

    # The figures for memory need nobody else; the rest mostly waits.
    addresses(rng)
    in_parallel(len(parts), part)
    if skipped: raise Skip("; ".join(skipped) + "; the rest was checked")


def attempt(port, fields=()):
    """A request that costs the limiter only: admitted, then refused for its domain. Status and headers."""
    answer = request(port, "POST", "/v1/ingest?domain=_", [("X-Auth", TOKEN), ("Content-Length", "0"), *fields], wait=0)
    return answer[0], answer[1]


def passes(port, requests):
    """How many of these were admitted; each is a list of fields."""
    statuses = [attempt(port, fields)[0] for fields in requests]
    assert set(statuses) <= {400, 429}, set(statuses)
    return statuses.count(400)


def addresses(rng):
    """As many clients as the map never holds, each through a trusted proxy, with right and wrong tokens."""
    first = rng.randrange(1 << 24)
    with Server({"LEITSTAND_RATE_LIMIT": "60/minute", "LEITSTAND_AUTH_RATE_LIMIT": "60/minute", "LOG_LEVEL": "ERROR"}) as server:
        assert server.up, server.log_text()
        pour(server.port, [f"2001:db8:{n >> 16:x}:{n & 0xffff:x}::1" for n in range(2000)], TOKEN)
        before = memory_kib(server.p.pid, "VmRSS")
        for token in (TOKEN, "wrong"):
            def quarter(k, token=token):
                return pour(server.port, (f"11.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" if n < 1 << 24 else f"12.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"
                                          for n in range(first + k, first + ADDRESSES, 4)), token)
            in_parallel(4, quarter)
        grown = memory_kib(server.p.pid, "VmHWM") - before
        page = request(server.port, "GET", "/metrics")[2].decode()
        keys = float(page.split("\nleitstand_rate_limit_keys ")[1].split()[0])
    print(f"limits: {ADDRESSES} addresses with a right and {ADDRESSES} with a wrong token: {keys:.0f} keys, peak RSS {grown} KiB more")
    assert keys <= 100_000 and grown <= GROWTH_KIB_MAX, (keys, grown)


def pour(port, addresses, token):
    """One request for each address, many under way at once on one connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
        want = b"400" if token == TOKEN else b"401"
        batch, addresses = [], iter(addresses)
        while batch := [a for a, _ in zip(addresses, range(200))]:
            s.sendall(b"".join(b"POST /v1/ingest?domain=_ HTTP/1.1\r\nHost: h\r\nX-Auth: %s\r\nContent-Length: 0\r\nX-Forwarded-For: %s\r\n\r\n"
                               % (token.encode(), a.encode()) for a in batch))
            buf = b""
            while (n := buf.count(b"HTTP/1.1 ")) < len(batch) or not buf.endswith(b"}"):
                data = s.recv(1 << 20)
                assert data, buf[-300:]
                buf += data
            assert buf.count(b"HTTP/1.1 " + want) == n == len(batch), buf[:300]


def forged():
    """X-Forwarded-For from a peer that is not trusted gains nothing; from one that is, only real clients count."""
    with Server({"LEITSTAND_RATE_LIMIT": "10/hour", "LEITSTAND_TRUSTED_PROXIES": "192.0.2.1"}) as server:
        forms = [lambda n: [("X-Forwarded-For", f"198.51.100.{n}")], lambda n: [("X-Forwarded-For", f"2001:db8:{n:x}::1")],
                 lambda n: [("X-Forwarded-For", f"192.0.2.1, 198.51.100.{n}")], lambda n: [("Forwarded", f"for=198.51.100.{n}")],
                 lambda n: [("X-Real-IP", f"198.51.100.{n}")], lambda n: [("X-Forwarded-For", f"x{n}")],
                 lambda n: [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", f"198.51.100.{n}")]]
        gained = passes(server.port, [form(n) for n in range(60) for form in forms]) - 10
        assert gained == 0, f"a forged address gained {gained} requests"
    with Server({"LEITSTAND_RATE_LIMIT": "10/hour"}) as server:
        def through(addresses): return passes(server.port, [[("X-Forwarded-For", a)] for a in addresses])
        assert through(f"198.51.100.{n}, 203.0.113.1" for n in range(50)) == 10, "the client chose what stands left"
        assert through(f"2001:db8:1:2:{n:x}::1" for n in range(50)) == 10, "one subscriber, one /64, one client"
        assert through(f"2001:db8:1:{n:x}::1" for n in range(3, 53)) == 50
        assert through(["203.0.113.9", "::ffff:203.0.113.9", "::ffff:cb00:7109", "203.0.113.9:80", "[::ffff:203.0.113.9]:1"] * 10) == 10
        assert through(f"nobody{n}" for n in range(50)) == 10, "what is no address is the proxy itself"
    print("limits: forged addresses gain 0 requests; a /64 and an IPv4-mapped address are one client")


def long_enough():
    """Whoever waits as long as Retry-After says gets through; whatever the moment he asked."""
    with Server({"LEITSTAND_RATE_LIMIT": "2/2 seconds"}) as server:
        def client(k):
            rng, waited = random.Random(k), []
            fields = [("X-Forwarded-For", f"203.0.113.{k}")]
            for _ in range(8 if LONG else 3):
                while (answer := attempt(server.port, fields))[0] == 400: time.sleep(rng.uniform(0, 0.4))
                seconds = int(answer[1]["retry-after"])
                assert 1 <= seconds <= 2, seconds
                time.sleep(seconds)
                assert attempt(server.port, fields)[0] == 400, f"{seconds} s were not enough"
                waited.append(seconds)
            return len(waited)
        waits = sum(in_parallel(40, client))
    print(f"limits: {waits} times Retry-After was at least 1 and enough")


def storm(rng):
    """200 clients behind one address, all at once, twice what a window passes; each honours Retry-After."""
    window, pace = 2, 5.0
    windows = 8 if LONG else 6
    with Server({"LEITSTAND_RATE_LIMIT": f"{STORM_CLIENTS}/{window} seconds"}) as server:
        seeds, lock, seen, began = [rng.random() for _ in range(STORM_CLIENTS)], threading.Lock(), [], time.monotonic() + 1

        def client(k):
            mine, backlog, due = random.Random(seeds[k]), 2, began
            conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            time.sleep(max(0, began - time.monotonic()))
            while time.monotonic() < began + windows * window:
                conn.request("POST", "/v1/ingest?domain=_", b"", {"X-Auth": TOKEN})
                answer = conn.getresponse(); answer.read()
                with lock: seen.append((time.monotonic() - began, answer.status))
                if answer.status == 429: time.sleep(int(answer.headers["Retry-After"])); continue
                backlog -= 1
                if backlog <= 0:
                    # Its own events come in their own time.
                    due = max(due, time.monotonic()) + mine.uniform(0.5, 1.5) * pace; backlog = 1
                    time.sleep(max(0, due - time.monotonic()))
            conn.close()

        in_parallel(STORM_CLIENTS, client)
    settled = [(at, status) for at, status in seen if at > 2 * window and at < windows * window]
    refused = sum(status == 429 for _, status in settled) / len(settled)
    bins = [0] * ((windows - 2) * window)
    for at, _ in settled: bins[int(at - 2 * window)] += 1
    peak, mean = max(bins), sum(bins) / len(bins)
    early = sum(status == 429 for at, status in seen if at <= 2 * window)
    print(f"limits: storm of {STORM_CLIENTS} clients: {early} refusals in the first two windows, {refused:.1%} of {len(settled)} "
          f"requests after them; peak {peak} in a second, mean {mean:.1f}")
    assert early >= STORM_CLIENTS / 2, "that was no storm"
    assert refused <= 0.05 and peak <= 3 * mean, (refused, bins)


def clock():
    """The wall clock jumps an hour ahead and back: no window opens early or stays shut."""
    library = next(iter(glob.glob("/usr/lib/*/faketime/libfaketime.so.1")), None)
    if not library: raise Skip("clock: libfaketime is not installed")
    with tempfile.NamedTemporaryFile("w", suffix=".clock") as stamp:
        def jump(offset):
            stamp.seek(0); stamp.truncate(); stamp.write(offset + "\n"); stamp.flush(); time.sleep(0.2)
        jump("+0")
        env = {"LEITSTAND_RATE_LIMIT": "3/4 seconds", "LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": stamp.name,
               "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        with Server(env) as server:
            assert server.up, server.log_text()
            for n, offset in enumerate(("+3600", "-3600", "+0")):
                fields = [("X-Forwarded-For", f"203.0.113.{n}")]
                assert passes(server.port, [fields] * 5) == 3
                before = attempt(server.port, fields)[1]
                jump(offset)
                status, headers = attempt(server.port, fields)
                assert status == 429 and 1 <= int(headers["retry-after"]) <= 4, (offset, headers)
                moved = int(headers["x-ratelimit-reset"]) - int(before["x-ratelimit-reset"])
                assert n == 2 or abs(moved) > 3000, f"the clock of the service did not jump: {moved}"
                time.sleep(int(headers["retry-after"]))
                assert attempt(server.port, fields)[0] == 400, f"after {offset} s the window stayed shut"
    print("limits: clock jumps of an hour ahead and back change nothing")


NAMESPACE_CLIENT = r"""
import http.client, json, socket, sys
host, port, token, sources = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")
statuses = {}
for source in sources:
    conn = http.client.HTTPConnection(host, port, timeout=10, source_address=(source, 0))
    conn.request("POST", "/v1/ingest?domain=_", b"", {"X-Auth": token, "X-Forwarded-For": "198.51.100.77"})
    answer = conn.getresponse(); answer.read(); conn.close()
    statuses[answer.status] = statuses.get(answer.status, 0) + 1
print(json.dumps(statuses))
"""


def namespaces():
    """Real client addresses, over a veth pair into a network of its own; IPv4 arrives IPv4-mapped."""
    if os.geteuid() != 0 or not shutil.which("ip"): raise Skip("real addresses: needs root and ip")
    name = f"leit{os.getpid() % 100000}"
    outside, inside = f"{name}a", f"{name}b"
    def ip(*words, must=True):
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if must and done.returncode: raise Skip(f"real addresses: ip {' '.join(words)}: {done.stderr.strip()}")
    try:
        ip("netns", "add", name)
        ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        ip("addr", "add", "10.213.7.1/24", "dev", outside); ip("-6", "addr", "add", "fd00:213:7::1/48", "dev", outside, "nodad")
        ip("link", "set", outside, "up"); ip("-n", name, "link", "set", inside, "up"); ip("-n", name, "link", "set", "lo", "up")
        fours = [f"10.213.7.{n}" for n in range(10, 14)]
        near = [f"fd00:213:7:1::{n:x}" for n in range(1, 31)]
        far = [f"fd00:213:7:{n:x}::1" for n in range(2, 22)]
        for a in fours: ip("-n", name, "addr", "add", a + "/24", "dev", inside)
        for a in near + far: ip("-n", name, "-6", "addr", "add", a + "/48", "dev", inside, "nodad")
        with Server({"LEITSTAND_RATE_LIMIT": "5/hour", "LEITSTAND_HOST": "::"}) as server:
            assert server.up, server.log_text()
            def ask(host, sources):
                done = subprocess.run(["ip", "netns", "exec", name, sys.executable, "-c", NAMESPACE_CLIENT, host, str(server.port), TOKEN, ",".join(sources)],
                                      capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
                return json.loads(done.stdout)
            assert ask("10.213.7.1", fours * 10) == {"400": 20, "429": 20}, "each IPv4 address has its own budget"
            assert ask("fd00:213:7::1", near * 2) == {"400": 5, "429": 55}, "a /64 has one budget, however it rotates"
            assert ask("fd00:213:7::1", far * 6) == {"400": 100, "429": 20}, "each /64 has its own"
            # The proxy on the loopback speaks for the same client: the same budget, used up.
            assert passes(server.port, [[("X-Forwarded-For", "10.213.7.10")]] * 3) == 0
            assert passes(server.port, [[("X-Forwarded-For", "198.51.100.77")]] * 7) == 5, "untrusted peers could not use it"
        print("limits: real addresses over veth: budgets by IPv4 address and by /64, forged headers gain 0")
    finally:
        ip("link", "del", outside, must=False); ip("netns", "del", name, must=False)
