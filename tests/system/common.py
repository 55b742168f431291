"""What the system checks share: the real binary, concurrent clients, and the oracle."""
import http.client, json, os, random, shutil, subprocess, sys, tempfile, threading, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "golden"))
os.chdir(ROOT)
import harness  # noqa: E402
from harness import TOKEN, Server  # noqa: E402

BIN = harness.BIN
# The long form of every check that has one: more rounds, more clients, real time.
LONG = os.environ.get("LONG", "0") not in ("", "0")

# Without this, Yama lets only ancestors and root attach to the service; a tracer is neither.
TRACEABLE = (sys.executable, "-c", "import ctypes, os, sys; ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0); "
             "os.execvp(sys.argv[1], sys.argv[1:])")


class Skip(Exception):
    """The machine lacks something; the reason is printed and counted."""


skipped_parts = []


def part(name, run, *args):
    """Runs a part of a check; what the machine lacks for it does not skip the other parts."""
    try: run(*args)
    except Skip as reason:
        skipped_parts.append(name)
        print(f"{name}: SKIPPED: {reason}", flush=True)


def setting(name, short, long):
    """How much of something: the variable, else the figure for this length of run."""
    return type(short)(os.environ.get(name, long if LONG else short))


def need(*tools):
    for tool in tools:
        if not find(tool): raise Skip(f"{tool} is not installed")


def find(tool):
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")


def need_root(why):
    if os.geteuid() != 0: raise Skip(f"needs root ({why})")


class Tracer:
    """strace on a running service, limited to some paths, perhaps with a fault; gone after `with`."""

    def __init__(self, server, paths, *expressions):
        handle, self.file = tempfile.mkstemp(prefix="leitstand-trace-"); os.close(handle)
        command = ["strace", "-f", "-y", "-s", "64", "-o", self.file, "-p", str(server.p.pid)]
        for path in paths: command += ["-P", path]
        for expression in expressions: command += ["-e", expression]
        self.p = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        said = []
        for line in self.p.stderr:
            said.append(line)
            if " attached" in line: break
        else:
            os.unlink(self.file)
            text = "".join(said).strip()
            if "Operation not permitted" in text: raise Skip(f"strace may not attach: {text}")
            raise AssertionError(f"strace: {text}")
        # A pipe nobody reads would stop strace when it is full.
        threading.Thread(target=self.p.stderr.read, daemon=True).start()

    def __enter__(self): return self

    def __exit__(self, *_):
        self.p.terminate(); self.p.wait()
        self.lines = open(self.file, errors="replace").read().split("\n")
        os.unlink(self.file)

    def injected(self): return [line for line in self.lines if "(INJECTED)" in line]


def paths_of(server, name):
    """A name in the data directory, as openat gets it and as the kernel names an open file."""
    return [name, os.path.join(server.dir, name)]


def problem(port, domain, event, timeout=20):
    """Posts one event; (status, the answer as a problem document or its text, seconds)."""
    body, began = json.dumps(event).encode(), time.monotonic()
    head = [("X-Auth", TOKEN), ("Content-Type", "application/json"), ("Accept", "application/problem+json")]
    status, headers, text = harness.request(port, "POST", f"/v1/ingest?domain={domain}", head, body, wait=0.0, timeout=timeout)
    seconds = time.monotonic() - began
    answer = json.loads(text) if text[:1] == b"{" else {"detail": text.decode()}
    answer["headers"] = headers
    return status, answer, seconds


def ready(port): return harness.request(port, "GET", "/health/ready", wait=0.0)[0]


def wait_until(true, seconds, what):
    """How long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began


def at_once(calls):
    """Runs all calls at the same time; their results in order."""
    results = [None] * len(calls)

    def one(n, call): results[n] = call()
    threads = [threading.Thread(target=one, args=(n, call)) for n, call in enumerate(calls)]
    for t in threads: t.start()
    for t in threads: t.join()
    return results


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def seed(name):
    value = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"{name}: seed {value} (SEED={value} repeats it)")
    return random.Random(value)


def in_parallel(n, work):
    """Calls `work(0)` to `work(n - 1)` in threads of their own; the first exception is raised here."""
    results, errors = [None] * n, []

    def one(i):
        try: results[i] = work(i)
        except BaseException as error: errors.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    for t in threads: t.start()
    for t in threads: t.join()
    if errors: raise errors[0]
    return results


def memory_kib(pid, field):
    """VmRSS (now) or VmHWM (the peak) of a process."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":"))


def peak_from_here(pid):
    """The peak RSS of the process counts from now on, see proc(5)."""
    with open(f"/proc/{pid}/clear_refs", "w") as f: f.write("5")


class Load:
    """Clients that post numbered events until stopped, and remember what was acknowledged."""

    def __init__(self, port, rng, clients, domains, start_id=0, batches=(1, 1, 1, 2, 5, 20, 100)):
        self.port, self.domains, self.batches = port, domains, batches
        self.acked, self.sent = {}, {}
        self.lock, self.next_id = threading.Lock(), start_id
        self.stopping, self.wanted = threading.Event(), threading.Event()
        self.wanted.set()
        self.threads = [threading.Thread(target=self.client, args=(random.Random(rng.random()),), daemon=True) for _ in range(clients)]
        for t in self.threads: t.start()

    def __enter__(self): return self

    def __exit__(self, *_): self.stop()

    def ids(self, n):
        with self.lock:
            first = self.next_id; self.next_id += n
            return list(range(first, first + n))

    def client(self, rng):
        conn = None
        while not self.stopping.is_set():
            self.wanted.wait()
            domain, ids = rng.choice(self.domains), self.ids(rng.choice(self.batches))
            events = [json.dumps({"id": i, "pad": "x" * rng.choice([0, 10, 200, 1500])}) for i in ids]
            if len(events) == 1: body, ct = events[0], "application/json"
            elif rng.random() < 0.5: body, ct = "[" + ",".join(events) + "]", "application/json"
            else: body, ct = "\n".join(events), "application/x-ndjson"
            path = f"/v1/ingest?domain={domain}" if ct != "application/json" or rng.random() < 0.7 else f"/ingest/{domain}"
            for i in ids: self.sent[i] = domain
            try:
                conn = conn or http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                conn.request("POST", path, body, {"X-Auth": TOKEN, "Content-Type": ct})
                answer = conn.getresponse(); text = answer.read()
                if answer.status in (200, 202) and text == b"ok":
                    for i in ids: self.acked[i] = domain
            except (OSError, http.client.HTTPException):
                if conn: conn.close()
                conn = None

    def rest(self):
        """No further requests until `go`; those under way are finished."""
        self.wanted.clear()

    def go(self):
        self.wanted.set()

    def stop(self):
        self.stopping.set(); self.wanted.set()
        for t in self.threads: t.join()


def leitstand_verify(directory):
    """Exit code and document of the binary's own look at its data."""
    done = subprocess.run([BIN, "verify", "--json", "--data-dir", directory], capture_output=True, text=True)
    assert done.stdout and not done.stderr, (done.returncode, done.stderr)
    return done.returncode, json.loads(done.stdout)


def verify(directory, acked, sent):
    """Every acknowledged id once, whole, in its own line, in the right file; others at most once."""
    found, problems = {}, []
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".jsonl"): continue
        domain = name[:-6]
        data = open(os.path.join(directory, name), "rb").read()
        if data and not data.endswith(b"\n"): problems.append(f"{name}: torn last line")
        for n, line in enumerate(data.split(b"\n")[:-1], 1):
            try: event = json.loads(line)
            except ValueError: problems.append(f"{name}:{n}: not JSON: {line[:80]!r}"); continue
            if not isinstance(event, dict) or event.get("domain") != domain:
                problems.append(f"{name}:{n}: domain {event!r:.80}"); continue
            i = event.get("id")
            if i is None: continue   # not of the load
            if i in found: problems.append(f"id {i} is there twice")
            found[i] = domain
    lost = [i for i, d in acked.items() if found.get(i) != d]
    if lost: problems.append(f"{len(lost)} acknowledged events lost, e.g. {lost[:5]}")
    strange = [i for i in found if i >= 0 and sent.get(i) != found[i]]
    if strange: problems.append(f"{len(strange)} events nobody sent, e.g. {strange[:5]}")
    return problems
