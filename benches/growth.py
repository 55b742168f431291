"""How cost grows: rows whose cells differ in one number, which is `x`. Lists of the operator, headers and bodies of clients,
and how many domains there are.

What a server spends is its processor time, which says more than requests a second where wrk shares the cores with it.
"""
import gzip, http.client, os, random, shutil, statistics, subprocess, time

import load, machine, payload, peers
from cells import Cell, closed, fixed_rate
from check import Lost

ROUNDS = min(2, int(os.environ.get("BENCH_ROUNDS", 5)))
# The goals rest on these.
GOAL_ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
# A hundred thousand take four minutes more.
FILES_MAX = int(os.environ.get("BENCH_FILES", 10_000))
# Long enough for some ten thousand requests; a curve needs many cells.
SECONDS = 1
SMALL_SECONDS, SMALL_RATE, HOSTILE = 2, 400, 16
LONG_NAME = ".".join(["a" * 61] * 4) + ".aaaaa"
MEMBERS_MAX = 4_096
BODY_BYTES = 60_000


def curve(name, points, over_s=0.6, rounds=ROUNDS):
    """`points`: (x, series, peer, workload)."""
    return [Cell(f"{name} {x} {series}", peer, spent(closed(workload)), SECONDS, over_s, rounds, x, series)
            for x, series, peer, workload in points]


def spent(measure):
    """Processor time for a request and for a byte of it, beside what is measured."""
    def measured(peer, seconds, scratch):
        run = measure(peer, seconds, scratch)
        if not run["acked"]: raise RuntimeError(f"{peer.name}: nothing was answered within {seconds} s")
        request_us = run["server_cpu_s"] / run["acked"] * 1e6
        body_bytes = run["mb_s"] * 1e6 / run["req_s"]
        return {**run, "cpu_us_per_request": round(request_us, 3), "cpu_ns_per_byte": round(request_us * 1000 / body_bytes, 4),
                "p99_ms": round(run["p99_us"] / 1000, 3)}
    return measured


# -- What may be written: LEITSTAND_ALLOW_DOMAINS, LEITSTAND_DENY_DOMAINS -----------------------------

def ordinary(n): return (f"team{n}.example", f"*.team{n}.example", f"ci-*.service{n}.example", f"*.host{n}.*")[n % 4]


def hostile(n):
    """Each begins as the name goes on for 253 characters, and none matches."""
    return f"*{'a' * (n % 60 + 1)}b{n // 60}*"


def many_stars(n): return f"{'*a' * (n % 100 + 1)}*b{n // 100}*"


LISTS = {"ordinary": (ordinary, "bench"), "ordinary, long name": (ordinary, LONG_NAME), "*aa…b*, long name": (hostile, LONG_NAME),
         "*a*a…*b*, long name": (many_stars, LONG_NAME)}


def patterns():
    """Denied names of which none matches, so that all of the list has to be ruled out."""
    points = []
    for x in (0, 10, 100, 1000):
        for series, (pattern, domain) in LISTS.items():
            # Without patterns only the name makes a difference, and the curve of ordinary ones is there once.
            if x == 0 and series.startswith("*") or x == 10 and series != "ordinary" or x == 100 and series == "ordinary, long name": continue
            peer = peers.leitstand(f"{x} {series}", "never", LEITSTAND_DENY_DOMAINS=",".join(map(pattern, range(x))))
            points.append((x, series, peer, load.Workload(f"W1 to {domain[:8]}", domain=domain)))
    # What is compared stands side by side.
    points.sort(key=lambda point: (point[0] in (0, 1000), LISTS[point[1]][1] != "bench", point[0]))
    cells = curve("patterns", points)
    for cell in cells:
        if cell.x in (0, 1000) and cell.series in ("ordinary", "ordinary, long name", "*aa…b*, long name"): cell.rounds = GOAL_ROUNDS
    return cells


# -- gzip bodies of many members ----------------------------------------------------------------------

EMPTY_MEMBER = gzip.compress(b"", mtime=0)
GZIP = "Content-Encoding: gzip\r\n"


def behind_empty_members(count):
    """An event in the last of so many members."""
    return lambda body: EMPTY_MEMBER * (count - 1) + gzip.compress(body, mtime=0)


def members_of_gzip():
    never = peers.leitstand("never", "never")
    return curve("gzip", [(x, "empty members", never, load.Workload(f"{x} members", connections=HOSTILE, distinct=64, headers=GZIP, coded=behind_empty_members(x)))
                          for x in (1, 10, 40, 400, MEMBERS_MAX)])


def beside_members_of_gzip():
    """A small gzip request 400 times a second, while clients send members as fast as they are answered."""
    never = peers.leitstand("never", "never")
    small = load.Workload("small gzip", connections=16, rate=SMALL_RATE, headers=GZIP, coded=behind_empty_members(1))

    def cell(x, series, neighbour):
        beside = neighbour and load.Workload(series, connections=x, distinct=64, domain="bulk", seed=8, headers=GZIP, coded=behind_empty_members(neighbour))
        return Cell(f"small gzip beside {x} {series}", never, spent(fixed_rate(small, beside)), SMALL_SECONDS, 2.8 if beside else 0.8, ROUNDS, x, series)

    return [cell(0, "nobody", None), cell(HOSTILE, f"of {MEMBERS_MAX} members", MEMBERS_MAX),
            # As many as a body has that takes the way for short ones.
            cell(HOSTILE, "of 800 members", 800)]


# -- X-Forwarded-For and LEITSTAND_TRUSTED_PROXIES ----------------------------------------------------

def forwarded():
    points = []
    for proxies in (1, 1000):
        networks = ["127.0.0.1", *(f"10.{n // 250}.{n % 250}.0/24" for n in range(proxies - 1))]
        peer = peers.leitstand(f"never, {proxies} proxies", "never", LEITSTAND_TRUSTED_PROXIES=",".join(networks))
        for x in (2, 20, 200):
            # All are trusted but the first, so all are looked at, as far as anybody looks.
            chain = ["203.0.113.9", *(f"10.{n % 3}.{n % 250}.{n % 200 + 1}" if proxies > 1 else "127.0.0.1" for n in range(x - 1))]
            points.append((x, f"{proxies} proxies", peer, load.Workload(f"{x} entries", headers=f"X-Forwarded-For: {', '.join(chain)}\r\n")))
    return curve("forwarded", points)


# -- The shape of a body ------------------------------------------------------------------------------

def shapes():
    """Bodies of the same size and the same tokens, but for the number of events in one."""
    never, points = peers.leitstand("never", "never"), []

    def of(x, series, make, event_bytes):
        per = max(1, BODY_BYTES // event_bytes)
        points.append((x, series, never, load.Workload(f"{series} {x}", per=per, connections=4, distinct=8, make=make)))

    for x in (40, 400, 4000):
        of(x, "members", lambda rng, x=x: payload.members(rng, x), x * 15)
        of(x, "members, one twice", lambda rng, x=x: payload.members(rng, x, repeated=True), x * 15)
    for x in (9, 90, 900): of(x, "levels", lambda rng, x=x: payload.nested(rng, x), x * 7)
    for x in (100, 1000, 10_000):
        points.append((x, "events in a body", never, load.Workload(f"{x} events", per=x, connections=4, distinct=max(2, 8000 // x), size=100)))
    return curve("shape", points)


# -- Domains and files that are there -----------------------------------------------------------------

def name_of(n): return f"n{n:06}.example"


def directory_of(count, scratch):
    """A data directory of so many domains with one event each; made once, and used by turns."""
    path = os.path.join(scratch, f"domains-{count}")
    if not os.path.exists(path):
        os.makedirs(path, mode=0o700)
        for n in range(count):
            with open(os.path.join(path, f"{name_of(n)}.jsonl"), "w") as f: f.write(f'{{"n":{n},"domain":"{name_of(n)}"}}\n')
            os.close(os.open(os.path.join(path, f"{name_of(n)}.jsonl.lock"), os.O_CREAT | os.O_WRONLY, 0o600))
        os.sync()
        # A file that has just changed is looked at once more by a snapshot.
        time.sleep(3)
    return path


class Asked:
    """One connection, and how long an answer takes in the median."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ms(self, times, path, body=None, wanted=200):
        took = []
        for n in range(times):
            began = time.perf_counter()
            self.connection.request("POST" if body else "GET", path(n) if callable(path) else path, body and body(n),
                                    {"X-Auth": load.TOKEN, "Content-Type": "application/json"})
            answer = self.connection.getresponse()
            answer.read()
            took.append(time.perf_counter() - began)
            if answer.status != wanted: raise RuntimeError(f"{path}: {answer.status} where {wanted} is wanted")
        return round(statistics.median(took) * 1000, 4)


def beside_domains(count):
    def measure(peer, _, scratch):
        path, rng = directory_of(count, scratch), random.Random(count)
        chosen = rng.sample(range(count), 100)

        def take(directory):
            os.rmdir(directory)
            os.rename(path, directory)

        meter = machine.Meter(None)
        server = peers.Running(peer, scratch, take)
        try:
            asked = Asked(server.port)
            run = {"start_ms": round(server.start_ms, 2),
                   "append_ms": asked.ms(100, lambda n: f"/v1/ingest?domain={name_of(chosen[n])}", lambda n: f'{{"append":{n}}}', 202),
                   "health_ms": asked.ms(50, "/health"), "metrics_ms": asked.ms(20, "/metrics"),
                   "page_ms": asked.ms(20, f"/stats?limit=100&after={name_of(count // 2)}"), "one_ms": asked.ms(20, lambda n: f"/stats?domain={name_of(chosen[n])}")}
        finally:
            server.stop()
            os.rename(server.data, path)
        for n, domain in enumerate(chosen):
            with open(os.path.join(path, f"{name_of(domain)}.jsonl")) as f: last = f.readlines()[-1]
            if not last.startswith(f'{{"append":{n},'): raise Lost(f"{name_of(domain)}: the acknowledged event {n} is not there: {last!r}")
        return {**run, **meter.stop()}
    return measure


def domains_there():
    # A snapshot of the state directory would count too; and the limit of domains is not what is measured.
    peer = peers.leitstand("never", "never", LEITSTAND_ADMIN_TOKEN=load.TOKEN, LEITSTAND_TOKEN="other", LEITSTAND_MAX_DOMAINS="1000000")
    return [Cell(f"{x} domains there", peer, beside_domains(x), 1, 3 + x / 8_000, 1 if x > 10_000 else ROUNDS, x, "domains") for x in tops()]


def tops(): return [x for x in (1000, 10_000, 100_000) if x <= FILES_MAX]


def leitstand(*arguments):
    done = subprocess.run([peers.LEITSTAND, *arguments], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f"leitstand {' '.join(arguments)}: {done.stderr.strip()}")


def copied(count):
    """A snapshot, and a restore of it; each compares what it has written by its hash."""
    def measure(_, __, scratch):
        data, snapshot, restored = directory_of(count, scratch), os.path.join(scratch, "snapshot"), os.path.join(scratch, "restored")
        for path in (snapshot, restored): shutil.rmtree(path, ignore_errors=True)
        os.sync()
        meter, began = machine.Meter(None), time.perf_counter()
        leitstand("snapshot", "--data-dir", data, "--to", snapshot)
        between = time.perf_counter()
        leitstand("restore", "--from", snapshot, "--to", restored)
        ended = time.perf_counter()
        there = sum(name.endswith(".jsonl") for name in os.listdir(restored))
        if there < count: raise Lost(f"{there} of {count} files are restored")
        return {"snapshot_us": round((between - began) / there * 1e6, 2), "restore_us": round((ended - between) / there * 1e6, 2), **meter.stop()}
    return measure


def copies():
    return [Cell(f"copies of {x} files", None, copied(x), 0, 0.5 + x / 4000, 1, x, "files") for x in tops()]


def rows():
    """Name → (what it is, its cells)."""
    return {
        "patterns": ("patterns in LEITSTAND_DENY_DOMAINS", patterns()),
        "gzip": ("members of a gzip body, 16 connections", members_of_gzip()),
        "gzip-beside": ("a small gzip request beside bodies of many members", beside_members_of_gzip()),
        "forwarded": ("entries of X-Forwarded-For and trusted proxies", forwarded()),
        "shape": ("members, levels and events of a body", shapes()),
        "there": ("domains that are there", domains_there()),
        "copies": ("files in a snapshot and a restore", copies()),
    }
