#!/usr/bin/env python3
"""What a snapshot costs others, and how fast a restore is, on RECOVERY_MIB (1024) of events in four domains.

    python3 benches/recovery.py [restore] [snapshot] [domains]

`restore`: `cp -r`, `cp -r` and a sync of what was copied, and `leitstand restore`, in turn, RECOVERY_ROUNDS (3) times
with the snapshot out of the page cache, as after a loss, and as often with it there. A restore hashes every
byte and has synced all of it when it ends; `cp -r` alone does neither.
`snapshot`: p99 of 3 s of W1 while a snapshot is taken, against 3 s of W1 alone right before it. The snapshot begins first,
and must last longer.
`domains`: RECOVERY_DOMAINS (100000) domains of one line each: time and memory of a full snapshot, of one that is built on
it with nothing new and with one line more in each domain, of the last of a chain of RECOVERY_CHAIN (30), of a restore, of
a restore to a time, and the memory of a service that is asked for one.
Writes to RECOVERY_DIR (target/bench/recovery), which must not be a file system in memory.
"""
import json, os, random, shutil, socket, statistics, subprocess, sys, time, urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import load, payload, peers  # noqa: E402

MIB = int(os.environ.get("RECOVERY_MIB", 1024))
ROUNDS = int(os.environ.get("RECOVERY_ROUNDS", 3))
DIR = os.path.abspath(os.environ.get("RECOVERY_DIR", os.path.join(peers.TARGET, "recovery")))
DOMAINS = int(os.environ.get("RECOVERY_DOMAINS", 100_000))
CHAIN = int(os.environ.get("RECOVERY_CHAIN", 30))
SECONDS = 3
DATA, SNAPSHOT, COPY, SERVICE = (os.path.join(DIR, name) for name in ("generated", "snapshot", "copy", "service"))


def leitstand(*args):
    done = subprocess.run([peers.LEITSTAND, *args], capture_output=True, text=True)
    if done.returncode: sys.exit(f"leitstand {' '.join(args)}: {done.stderr.strip()}")


def generate():
    """Four files of the same size, mixed events of about 200 bytes."""
    rng = random.Random(7)
    os.makedirs(DATA, mode=0o700, exist_ok=True)
    for n in range(4):
        domain = f"d{n}"
        some = b"".join(line + b"\n" for line in (payload.stored(payload.small(rng), domain).rstrip(b"\n") for _ in range(5000)))
        with open(os.path.join(DATA, f"{domain}.jsonl"), "wb") as file:
            for _ in range(MIB * (1 << 20) // 4 // len(some) + 1): file.write(some)
            os.fsync(file.fileno())


def remove(path): shutil.rmtree(path, ignore_errors=True)


def files_of(directory): return [os.path.join(directory, name) for name in sorted(os.listdir(directory))]


def prepare(cold):
    """Nothing is left to be written; the snapshot is in the page cache, or nothing of it is."""
    remove(COPY)
    os.sync()
    for path in files_of(SNAPSHOT):
        with open(path, "rb") as file:
            if cold: os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 20): pass
    time.sleep(0.3)


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cp(): subprocess.run(["cp", "-r", SNAPSHOT, COPY], check=True)


def cp_and_sync():
    cp()
    subprocess.run(["sync", *files_of(COPY), COPY], check=True)


def restore():
    ways = {"cp -r": cp, "cp -r and sync": cp_and_sync, "restore": lambda: leitstand("restore", "--from", SNAPSHOT, "--to", COPY)}
    for cold in (True, False):
        took = {way: [] for way in ways}
        for n in range(ROUNDS):
            for way in list(ways)[:: 1 if n % 2 == 0 else -1]:
                prepare(cold)
                took[way].append(seconds(ways[way]))
        middle = {way: statistics.median(values) for way, values in took.items()}
        state = "snapshot not in the page cache" if cold else "snapshot in the page cache"
        print(f"{state}: " + ", ".join(f"{way} {value:.2f} s ({min(took[way]):.2f} to {max(took[way]):.2f})" for way, value in middle.items()))
        print(f"    speed of restore: {middle['cp -r'] / middle['restore']:.2f} of cp -r, {middle['cp -r and sync'] / middle['restore']:.2f} of cp -r and sync")
    remove(COPY)


def p99_ms(requests, running):
    said = load.Wrk(requests, running.port, SECONDS, DIR).result()
    if said["errors"]: sys.exit(f"errors under load: {said['errors']}")
    return said["p99_us"] / 1000


def beside_snapshot():
    requests, peer = load.Requests(load.W1), peers.leitstand("always", "always")
    running = peers.Running(peer, SERVICE, prepare=lambda data: [os.link(path, os.path.join(data, os.path.basename(path))) for path in files_of(DATA)])
    ratios = []
    try:
        p99_ms(requests, running)   # the first one warms up
        for n in range(max(ROUNDS, 3)):
            # What it costs to delete the one before is not in the figure: a file system that discards
            # does that with the next syncs.
            remove(COPY)
            os.sync()
            time.sleep(1)
            alone = p99_ms(requests, running)
            began = time.perf_counter()
            command = subprocess.Popen([peers.LEITSTAND, "snapshot", "--data-dir", running.data, "--to", COPY, "--json"], stdout=subprocess.PIPE, text=True)
            time.sleep(0.2)
            beside = p99_ms(requests, running)
            lasted = command.poll() is None
            report = json.loads(command.communicate()[0])
            if command.returncode: sys.exit("the snapshot failed")
            mib = report["bytes"] / (1 << 20)
            if mib < MIB: sys.exit(f"the snapshot has {mib:.0f} MiB")
            ratios.append(beside / alone)
            print(f"W1 always: p99 {alone:.2f} ms alone, {beside:.2f} ms beside a snapshot of {mib:.0f} MiB ({beside / alone:.2f} times), "
                  f"which took {time.perf_counter() - began:.1f} s" + ("" if lasted else "; W1 went on for longer"), flush=True)
    finally:
        running.stop()
        remove(COPY)
    print(f"    median {statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")


def measured(what, *args):
    """Runs a command, and says how long it took and how much memory it had."""
    began = time.perf_counter()
    child = subprocess.Popen([peers.LEITSTAND, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began
    if child.returncode: sys.exit(f"leitstand {' '.join(args)}: {child.returncode}")
    print(f"{what}: {took:.2f} s, {used.ru_maxrss / 1024:.0f} MiB", flush=True)


def memory_mib(pid, figure):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(figure + ":"))


def asked_service(data, backups):
    """A snapshot over HTTP: what the service holds before, at most, and 10 s after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "LEITSTAND_TOKEN": "bench", "LEITSTAND_ADMIN_TOKEN": "bench-admin", "LEITSTAND_DATA_DIR": data, "LEITSTAND_SNAPSHOT_DIR": backups}
    server = subprocess.Popen([peers.LEITSTAND, "serve", "--port", str(port)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(3)
        before = memory_mib(server.pid, "VmRSS")
        began = time.perf_counter()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/admin/snapshot", json.dumps({"path": "asked"}).encode(),
                                         {"X-Auth": "bench-admin", "Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=3600).read()
        took = time.perf_counter() - began
        time.sleep(10)
        print(f"POST /admin/snapshot: {took:.2f} s; the service has {before:.0f} MiB before, {memory_mib(server.pid, 'VmHWM'):.0f} at most, "
              f"{memory_mib(server.pid, 'VmRSS'):.0f} after", flush=True)
    finally:
        server.terminate()
        server.wait()


def many_domains():
    data, backups = os.path.join(DIR, "domains"), os.path.join(DIR, "backups")
    names = [f"n{n:06}.example" for n in range(DOMAINS)]

    def add(number):
        for name in names:
            with open(os.path.join(data, f"{name}.jsonl"), "a") as file: file.write(f'{{"id":{number},"domain":"{name}"}}\n')

    def snapshot(what, to, base=None):
        measured(what, "snapshot", "--data-dir", data, "--to", os.path.join(backups, to), *(["--base", os.path.join(backups, base)] if base else []))

    os.makedirs(data, mode=0o700)
    os.makedirs(backups)
    add(0)
    os.sync()
    time.sleep(4)   # a file that has just changed is looked at once more
    snapshot(f"full, {DOMAINS} domains", "full")
    snapshot("built on it, nothing new", "same", "full")
    last = "full"
    for n in range(1, CHAIN + 1):
        add(n)
        os.sync()
        snapshot(f"built on it, one line more in each, {n}", f"chain{n}", last)
        if last != "full": remove(os.path.join(backups, last))
        last = f"chain{n}"
    snapshot("full again", "full2")
    size = os.path.getsize(os.path.join(backups, last, "manifest.json"))
    print(f"manifest of the last of the chain: {size / DOMAINS:.0f} bytes a domain; {len(os.listdir(os.path.join(backups, last)))} names")
    measured("restore", "restore", "--from", os.path.join(backups, last), "--to", COPY)
    remove(COPY)
    measured("restore to a time", "restore", "--from", backups, "--until", "2099-01-01T00:00:00Z", "--to", COPY)
    asked_service(data, backups)


def main():
    wanted = sys.argv[1:] or ["restore", "snapshot", "domains"]
    remove(DIR)
    try:
        if "domains" in wanted:
            os.makedirs(DIR)
            many_domains()
            remove(DIR)
        if wanted != ["domains"]: generate()
        if "restore" in wanted:
            leitstand("snapshot", "--data-dir", DATA, "--to", SNAPSHOT)
            restore()
        if "snapshot" in wanted: beside_snapshot()
    finally:
        remove(DIR)


main()
