"""A Python writer that does not let go: 503 in time for its domain, and nobody else notices."""
import contextlib, fcntl, http.client, os, resource, subprocess, sys, tempfile, threading, time
from common import TOKEN, Server, at_once, percentile, problem, setting
from filelock_beside import install

HOLDER = r"""
import sys, time
sys.path.insert(0, sys.argv[1])
import filelock
with filelock.FileLock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


ATTEMPTS = 3


def run():
    library = install(setting("FILELOCK_VERSIONS", "4.2.0", "4.2.0").split(",")[0])
    for attempt in range(1, ATTEMPTS + 1):
        # In memory, so that the disk's time for others is not taken for ours.
        with tempfile.TemporaryDirectory(prefix="held-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
            try: one_lock(library, directory); break
            except Late as late:
                # A machine that others use gives no time to anybody for a while; a fault of ours stays.
                if attempt == ATTEMPTS: raise
                print(f"held lock: again, this was too late: {late}")
    many_locks()


class Late(AssertionError):
    """A time limit was missed, and nothing else."""


def one_lock(library, directory):
    late, waits, others, usual = [], setting("HELD_WAITS", 4, 30), [], []
    with Server({"LEITSTAND_LOCK_TIMEOUT": "1", "LEITSTAND_DISK_RESERVE": "0", "LOG_LEVEL": "WARNING"}, datadir=directory) as server, contextlib.ExitStack() as stack:
        assert server.up, server.log_text()
        conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for n in range(400): usual.append(post_free(conn, n))
        assert problem(server.port, "held.example", {"n": 0})[0] == 202
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, library, os.path.join(server.dir, "held.example.jsonl.lock")],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(holder.wait); stack.callback(holder.kill)
        assert holder.stdout.readline() == b"held\n"

        def refused():
            for n in range(waits):
                # Three at once, so that also those wait long enough that are not first in the queue.
                for status, answer, seconds in at_once([lambda: problem(server.port, "held.example", {"n": n})] * 3):
                    assert (status, answer.get("detail"), answer.get("written")) == (503, "lock timeout", "no"), answer
                    assert int(answer["headers"]["retry-after"]) >= 1
                    late.append(seconds - 1)
        waiting = Failing(refused)
        waiting.start()
        while waiting.is_alive(): others.append(post_free(conn, len(others)))
        waiting.result()
        holder.stdin.close(); holder.wait()
        status, _, seconds = problem(server.port, "held.example", {"n": 1})
        assert status == 202, status
        if seconds > 0.25: raise Late(f"{seconds:.2f} s for an append after the lock was free")
        assert open(os.path.join(server.dir, "held.example.jsonl"), "rb").read().count(b"\n") == 2
    p99, usual = percentile(others, 0.99), percentile(usual, 0.99)
    text = (f"{len(late)} times 503, {min(late) * 1000:+.0f} to {max(late) * 1000:+.0f} ms after the timeout; {len(others)} appends "
            f"to others meanwhile, p99 {p99 * 1000:.1f} ms (before {usual * 1000:.1f} ms), longest {max(others) * 1000:.1f} ms")
    assert min(late) >= 0, min(late)
    if max(late) > 0.25 or p99 > max(0.05, 2 * usual): raise Late(text)
    print("held lock: " + text)


def post_free(conn, n):
    time.sleep(0.002)
    began = time.monotonic()
    conn.request("POST", f"/v1/ingest?domain=free{n % 20}.example", "{}", {"X-Auth": TOKEN, "Content-Type": "application/json"})
    answer = conn.getresponse(); answer.read()
    assert answer.status == 202
    return time.monotonic() - began


class Failing(threading.Thread):
    """A thread whose failure is not lost."""

    def __init__(self, call):
        super().__init__(); self.call, self.error = call, None

    def run(self):
        try: self.call()
        except Exception as error: self.error = error

    def result(self):
        self.join()
        if self.error: raise self.error


def many_locks():
    """600 domains whose locks somebody holds, all with a request waiting, and one domain that is free."""
    count = setting("HELD_LOCKS", 600, 600)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    with Server({"LEITSTAND_LOCK_TIMEOUT": "3", "LEITSTAND_DISK_RESERVE": "0", "LOG_LEVEL": "WARNING"}) as server:
        assert server.up, server.log_text()
        held = []
        for n in range(count):
            held.append(open(os.path.join(server.dir, f"h{n}.example.jsonl.lock"), "wb")); fcntl.flock(held[-1], fcntl.LOCK_EX)
        waiting = Failing(lambda: results.extend(at_once([lambda n=n: problem(server.port, f"h{n}.example", {"n": n}) for n in range(count)])))
        results = []
        waiting.start()
        time.sleep(1.5)
        threads = int(next(l.split()[1] for l in open(f"/proc/{server.p.pid}/status") if l.startswith("Threads")))
        free = [problem(server.port, "free.example", {"n": n}) for n in range(50)]
        assert not results, "the others were to be waiting still"
        waiting.result()
        assert all(status == 202 for status, _, _ in free), free
        codes = {(status, answer.get("detail")) for status, answer, _ in results}
        assert codes == {(503, "lock timeout")}, codes
        assert all(seconds >= 3 for _, _, seconds in results)
        for f in held: f.close()
        again = at_once([lambda n=n: problem(server.port, f"h{n}.example", {"n": n}) for n in range(0, count, 20)])
        assert all(status == 202 for status, _, _ in again)
    slowest, longest = max(s for _, _, s in free), max(s for _, _, s in results)
    print(f"{count} held locks: all 503, the last after {longest:.2f} s (timeout 3 s); the free domain: 50 times 202, "
          f"slowest {slowest * 1000:.1f} ms; {threads} threads")
    assert slowest <= 0.25, slowest
    # Python's own 600 threads are part of what is measured here.
    assert longest <= 4, longest
