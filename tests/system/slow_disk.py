"""One file on which a call takes very long: no other domain, no health, no metrics and no stop waits for it, in any mode."""
import contextlib, os, re, signal, threading, time
import faultdisk
from common import TRACEABLE, Server, Skip, Tracer, at_once, need, need_root, part, paths_of, problem, setting, wait_until
from harness import request
from writeback_errors import ENV

SLOW = "slow.example"
OTHERS = [f"d{n}.example" for n in range(5)]
SYNC_S = 15                       # of the slow file
SYNCED_S_MAX = 1.5                # half a second between the rounds of everysec, and one more
SHUTDOWN_S = 2
STOPPED = ("stopped, 0 writes pending", "stopped with appends in flight")
EXIT_S_MAX = 2                    # of the process, once the kernel lets go of the call
PROBE_S_MAX, PROBES, LATE_MAX = 0.1, 40, 2   # of so many, so many may be late for reasons of the machine's


def run():
    need("strace")
    wrong = []
    part("a slow sync in everysec", slow_sync, wrong)
    for mode in ("never", "everysec", "always"): part(f"a write that hangs with {mode}", hung_write, mode, wrong)
    for mode in ("never", "everysec", "always"): part(f"a frozen file system with {mode}", frozen, mode, wrong)
    assert not wrong, "\n".join(wrong)


def held_back(server, domain, calls, seconds):
    """A tracer under which these calls take so long on the file of one domain."""
    delay = f"inject={calls}:delay_enter={seconds * 1_000_000}"
    return Tracer(server, paths_of(server, domain + ".jsonl"), f"trace={calls}", delay)


def background(domain, server, n):
    thread = threading.Thread(target=lambda: contextless(problem, server.port, domain, {"id": n}, SYNC_S * 4), daemon=True)
    thread.start()
    return thread


def contextless(call, *args):
    """For a request that may end with its connection."""
    try: return call(*args)
    except OSError: return None


def probe(server):
    """How many of the probes, each on a connection of its own, came late; and the latest."""
    times = []
    for n in range(PROBES):
        began = time.monotonic()
        status = request(server.port, "GET", ("/health/live", "/metrics")[n % 2], wait=0.0, timeout=5)[0]
        times.append(time.monotonic() - began if status == 200 else 5.0)
    return sum(t > PROBE_S_MAX for t in times), max(times)


def judge_probes(what, server, wrong):
    late, latest = probe(server)
    if late > LATE_MAX: wrong.append(f"{what}: {late} of {PROBES} answers of health and metrics came late, one after {latest:.1f} s")
    return latest


@contextlib.contextmanager
def on_two_disks():
    """A data directory in which the file of one domain is on a disk of its own. Gives both disks and the directory."""
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(faultdisk.FaultDisk(32)) for _ in range(2)]
        for disk in disks: disk.format("ext4", "-b", "4096")
        ours, other = (stack.enter_context(disk.mounted()) for disk in disks)
        directory = os.path.join(ours, "data"); os.mkdir(directory)
        name = SLOW + ".jsonl"
        for place in (directory, other): open(os.path.join(place, name), "wb").close()
        faultdisk.run("mount", "--bind", os.path.join(other, name), os.path.join(directory, name))
        stack.callback(faultdisk.unmount, os.path.join(directory, name))
        yield disks, directory


def slow_sync(wrong):
    """What others write meanwhile is synced as soon as ever, and the time of each sync is counted."""
    need_root("mount, loop device"); need("mkfs.ext4", *faultdisk.TOOLS)
    if not os.path.exists("/dev/fuse"): raise Skip("no /dev/fuse")
    what, late, longest, latest = "a slow sync in everysec", [], 0.0, 0.0
    with on_two_disks() as (disks, directory), Server({**ENV, "LEITSTAND_FSYNC": "everysec"}, datadir=directory, wrap=TRACEABLE) as server:
        assert server.up, server.log_text()
        for n, domain in enumerate([SLOW] + OTHERS[:3]): assert problem(server.port, domain, {"id": -n - 1})[0] == 202
        time.sleep(1)
        disks[1].tell("flush_delay_ms", SYNC_S * 1000)
        try:
            assert problem(server.port, SLOW, {"id": 0})[0] == 202
            time.sleep(0.7)                                                    # its sync is under way now
            paths = [path for domain in OTHERS for path in paths_of(server, domain + ".jsonl")] + [directory]
            with Tracer(server, paths, "trace=writev,fdatasync,fsync,syncfs") as tracer:
                for n, domain in enumerate(OTHERS):
                    status, _, seconds = problem(server.port, domain, {"id": n})
                    assert status == 202; longest = max(longest, seconds)
                last = time.monotonic()
                latest = judge_probes(what, server, wrong)
                time.sleep(max(0.0, last + SYNCED_S_MAX - time.monotonic()))
        finally: disks[1].tell("heal")
        late = [domain for domain in OTHERS if not synced(tracer.lines, domain)]
        if late: wrong.append(f"{what}: {len(late)} of {len(OTHERS)} others were not synced within {SYNCED_S_MAX} s")
        time.sleep(1)
        syncs = next((line for line in request(server.port, "GET", "/metrics", wait=0.0)[2].decode().splitlines()
                      if line.startswith("leitstand_sync_seconds_count")), "none")
        if syncs.endswith((" 0", "none")): wrong.append(f"everysec: no sync was counted: {syncs}")
    print(f"{what}: while one file is synced for {SYNC_S} s, {len(late)} of {len(OTHERS)} others were not synced within {SYNCED_S_MAX} s; "
          f"appends took at most {longest:.2f} s, health and metrics {latest:.2f} s; {syncs}", flush=True)


def synced(lines, domain):
    """Was there a good sync of the file, or of the file system, behind its write?"""
    file = re.escape(domain + ".jsonl>")
    writes = [n for n, line in enumerate(lines) if re.search(rf"writev\(\d+<[^>]*/{file}", line)]
    assert writes, f"no write of {domain} in the trace"
    began = [(line.split()[0], n) for n, line in enumerate(lines[writes[-1]:], writes[-1])
             if re.search(rf"fdatasync\(\d+<[^>]*/{file}", line) or " syncfs(" in line]
    return any(lines[n].endswith("= 0") or any(re.match(rf"{pid}\s+<\.\.\. \w+ resumed>.*= 0$", line) for line in lines[n + 1:]) for pid, n in began)


def hung_write(mode, wrong):
    what = f"a write that hangs with {mode}"
    env = {**ENV, "LEITSTAND_FSYNC": mode, "LEITSTAND_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S), "LEITSTAND_REQUEST_TIMEOUT": "60"}
    with Server(env, wrap=TRACEABLE) as server:
        assert server.up, server.log_text()
        for n, domain in enumerate([SLOW] + OTHERS): assert problem(server.port, domain, {"id": -n - 1})[0] == 202
        # Longer than the whole part: the hang must not end by itself before it is asked how the service bears it.
        with held_back(server, SLOW, "writev,write,pwrite64,pwritev", setting("HANG_SECONDS", 30, 60)) as tracer:
            waiting = [background(SLOW, server, n) for n in range(3)]
            time.sleep(0.5)
            answers = at_once([lambda d=d: contextless(problem, server.port, d, {"id": 1}, 4) for d in OTHERS * 4])
            bad = [answer for answer in answers if answer is None or answer[0] != 202]
            slowest = max([answer[2] for answer in answers if answer] or [0.0])
            if bad or slowest > 1: wrong.append(f"{what}: {len(bad)} of {len(answers)} appends of others were not answered, the slowest after {slowest:.1f} s")
            latest = judge_probes(what, server, wrong)
            try: took = stopped(what, server, wrong)
            finally: tracer.p.kill()
            exited = ended(what, server, wrong)
        for thread in waiting: thread.join(5)
    print(f"{what}: appends of others took at most {slowest:.2f} s, health and metrics {latest:.2f} s, "
          f"the stop {took:.1f} s with a limit of {SHUTDOWN_S}, the process {exited:.1f} s after the call", flush=True)


def stopped(what, server, wrong):
    """How long it took until the service said that it had stopped: the process may have to wait for the call."""
    began = time.monotonic()
    server.p.send_signal(signal.SIGTERM)
    wait_until(lambda: any(said in server.log_text() for said in STOPPED), 20, "it says that it has stopped")
    took = time.monotonic() - began
    if took > SHUTDOWN_S + 1: wrong.append(f"{what}: the stop took {took:.1f} s with a limit of {SHUTDOWN_S}")
    return took


def ended(what, server, wrong):
    """How long the process lived on after the call that hung was let go."""
    began = time.monotonic()
    server.p.wait(20)
    took = time.monotonic() - began
    if took > EXIT_S_MAX: wrong.append(f"{what}: the process ended {took:.1f} s after the call")
    return took


def frozen(mode, wrong):
    """A call that no signal ends: whoever writes sleeps in the kernel until the file system is thawed."""
    need_root("mount, loop device"); need("mkfs.ext4", "fsfreeze", *faultdisk.TOOLS)
    if not os.path.exists("/dev/fuse"): raise Skip("no /dev/fuse")
    what = f"a frozen file system with {mode}"
    with faultdisk.FaultDisk(32) as disk:
        disk.format("ext4", "-b", "4096")
        with disk.mounted() as directory:
            data = os.path.join(directory, "data"); os.mkdir(data)
            env = {**ENV, "LEITSTAND_FSYNC": mode, "LEITSTAND_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S)}
            with Server(env, datadir=data) as server:
                assert server.up, server.log_text()
                assert problem(server.port, SLOW, {"id": 0})[0] == 202
                faultdisk.run("fsfreeze", "-f", directory)
                try:
                    waiting = [background(SLOW, server, n) for n in range(1, 4)]
                    time.sleep(1.5)   # in `never`, what has come to the thread that hangs is not answered: see ADR 0022
                    latest = judge_probes(what, server, wrong)
                    took = stopped(what, server, wrong)
                finally: faultdisk.run("fsfreeze", "-u", directory)
                exited = ended(what, server, wrong)
                for thread in waiting: thread.join(5)
    print(f"{what}: health and metrics took at most {latest:.2f} s, the stop {took:.1f} s with a limit of {SHUTDOWN_S}, "
          f"the process {exited:.1f} s after the thaw", flush=True)
