"""Workloads, the requests they are made of, and the two load generators: wrk and an open loop."""
import ctypes, hashlib, json, os, random, re, select, socket, subprocess, time

import payload

TOKEN = "bench-token"


class Workload:
    """What is sent: `per` events in a request, over `connections`, to `domains` domains.

    `make` is another way to make an event from a random source, `headers` more lines of the head, and `coded` makes what is
    sent of a body.
    """

    def __init__(self, name, per=1, connections=64, domains=1, distinct=1000, size=None, rate=None, domain="bench", seed=7,
                 make=payload.small, headers="", coded=None):
        self.name, self.per, self.connections, self.domains = name, per, connections, domains
        self.distinct, self.size, self.rate, self.domain, self.seed = max(distinct, domains), size, rate, domain, seed
        self.make, self.headers, self.coded = make, headers, coded

    def domain_of(self, n):
        return self.domain if self.domains == 1 else f"d{n % self.domains:05}.{self.domain}"


W1 = Workload("W1")
W2 = Workload("W2", domains=64, distinct=1024)
W3 = Workload("W3", per=100, connections=16, distinct=64)
# 5,400 events are 1.037 MB: just below the largest body that the service takes by default.
W4 = Workload("W4", per=5400, connections=4, distinct=4)
W6 = Workload("W6", connections=16, rate=500)
# The neighbour of W6: W4 to another domain, with other events.
BULK = Workload("W4 beside", per=5400, connections=4, distinct=4, domain="bulk", seed=8)


def file_of(domain):
    """The data file of a domain; as everywhere, a name over 255 bytes is shortened."""
    if len(domain) > 249: domain = f"{domain[:240]}-{hashlib.sha256(domain.encode()).hexdigest()[:8]}"
    return f"{domain}.jsonl"


class Requests:
    """The requests of a workload as bytes, and which lines each of them must leave in which file."""

    def __init__(self, workload):
        rng = random.Random(workload.seed)
        self.workload, self.raw, self.lines, body_bytes = workload, [], [], 0
        kind = "application/json" if workload.per == 1 else "application/x-ndjson"
        for n in range(workload.distinct):
            domain = workload.domain_of(n)
            events = [payload.sized(rng, workload.size) if workload.size else workload.make(rng) for _ in range(workload.per)]
            body = events[0] if workload.per == 1 else b"".join(event + b"\n" for event in events)
            if workload.coded: body = workload.coded(body)
            self.raw.append((f"POST /v1/ingest?domain={domain} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Auth: {TOKEN}\r\n"
                             f"Content-Type: {kind}\r\n{workload.headers}Content-Length: {len(body)}\r\n\r\n").encode() + body)
            self.lines.append((domain, [payload.stored(event, domain) for event in events]))
            body_bytes += len(body)
        self.body_bytes = body_bytes / workload.distinct


# A table of finished requests is the cheapest that wrk can be fed with. The first one is taken
# when wrk looks at the script, and is not sent.
LUA = r'''
local f = assert(io.open("%(file)s", "rb"))
local data = f:read("*a"); f:close()
local requests, at = {}, 1
while at <= #data do
  local nl = string.find(data, "\n", at, true)
  local n = tonumber(string.sub(data, at, nl - 1))
  requests[#requests + 1] = string.sub(data, nl + 1, nl + n); at = nl + n + 1
end
data = nil
local n, i = #requests, 0
taken = 0
request = function() taken = taken + 1; i = i + 1; if i > n then i = 1 end; return requests[i] end
local worker
setup = function(thread) worker = thread end
done = function(s, l, r)
  io.write(string.format('\nJSON{"taken":%%d,"answers":%%d,"seconds":%%.6f,"connect":%%d,"read":%%d,"write":%%d,"status":%%d,"timeout":%%d,"p50_us":%%d,"p99_us":%%d,"p999_us":%%d,"max_us":%%d}\n',
    worker:get("taken"), s.requests, s.duration / 1e6, s.errors.connect, s.errors.read, s.errors.write, s.errors.status, s.errors.timeout,
    l:percentile(50), l:percentile(99), l:percentile(99.9), l.max))
end
'''


class Wrk:
    """wrk with one thread, as fast as the server answers."""

    def __init__(self, requests, port, seconds, scratch):
        workload = requests.workload
        self.requests = requests
        stem = os.path.join(scratch, workload.name.replace(" ", "-").replace("/", "-"))
        with open(stem + ".requests", "wb") as f:
            for raw in requests.raw: f.write(b"%d\n" % len(raw) + raw)
        with open(stem + ".lua", "w") as f: f.write(LUA % {"file": stem + ".requests"})
        self.p = subprocess.Popen(["wrk", "-t1", f"-c{workload.connections}", f"-d{seconds}s", "--timeout", "30s", "-s",
                                   stem + ".lua", f"http://127.0.0.1:{port}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.limit_s = seconds + 120

    def result(self):
        out = self.p.communicate(timeout=self.limit_s)[0]
        found = re.search(rb"JSON(\{.*\})", out)
        if not found: raise RuntimeError("wrk failed: " + out.decode(errors="replace").strip())
        said = json.loads(found.group(1))
        taken = said.pop("taken") - 1
        errors = {k: said.pop(k) for k in ("connect", "read", "write", "status", "timeout")}
        count = len(self.requests.raw)
        # From the second request on, round and round.
        sent = [taken // count + (1 if 0 <= (n - 1) % count < taken % count else 0) for n in range(count)]
        return {**said, "acked": said["answers"] - errors["status"], "errors": {k: v for k, v in errors.items() if v}, "sent": sent}


def open_loop(requests, port, seconds):
    """Sends at a fixed rate, whatever the server does. The time of an answer counts from the moment
    at which the request was due, so that a server that stands still is not asked less often.
    """
    workload, raw = requests.workload, requests.raw
    # The kernel may be late by 50 us with every timer; here by 1 ns.
    ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)

    def connect():
        s = socket.create_connection(("127.0.0.1", port))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.setblocking(False)
        return s

    free = [connect() for _ in range(workload.connections)]
    busy, total, sent, acked, refused = {}, int(workload.rate * seconds), 0, 0, 0
    times_us, late_us, clock = [], [], time.perf_counter
    began = clock() + 0.05
    while acked + refused < total and clock() < began + seconds + 30:
        while sent < total and free and clock() >= began + sent / workload.rate:
            s, due = free.pop(0), began + sent / workload.rate
            late_us.append((clock() - due) * 1e6)
            s.sendall(raw[sent % len(raw)])
            busy[s] = [b"", due]
            sent += 1
        wait = began + sent / workload.rate - clock() if sent < total and free else 0.05
        # Sleep to shortly before it is due, then look without waiting. select, not epoll: that one waits whole milliseconds.
        ready = select.select([*busy, *free], [], [], wait - 0.0002 if wait > 0.0003 else 0)[0]
        now = clock()
        for s in ready:
            data = s.recv(65536)
            if not data:
                if s in busy: raise RuntimeError("the server closed a connection that had a request under way")
                free.remove(s); s.close(); free.append(connect())
                continue
            busy[s][0] += data
            answer, due = busy[s]
            head = answer.find(b"\r\n\r\n")
            if head < 0: continue
            length = re.search(rb"content-length: *(\d+)", answer[:head].lower())
            if not length or len(answer) < head + 4 + int(length.group(1)): continue
            if answer[9:10] == b"2": acked += 1; times_us.append((now - due) * 1e6)
            else: refused += 1
            del busy[s]; free.append(s)
    for s in [*busy, *free]: s.close()
    times_us.sort(); late_us.sort()
    at = lambda values, share: round(values[min(len(values) - 1, int(len(values) * share))], 1) if values else None
    count = len(raw)
    missing = total - acked - refused
    return {"answers": acked + refused, "acked": acked, "seconds": float(seconds),
            "errors": {k: v for k, v in (("status", refused), ("timeout", missing)) if v},
            "p50_us": at(times_us, 0.5), "p99_us": at(times_us, 0.99), "p999_us": at(times_us, 0.999), "max_us": at(times_us, 1),
            "late_p99_us": at(late_us, 0.99), "sent": [sent // count + (1 if n < sent % count else 0) for n in range(count)]}
