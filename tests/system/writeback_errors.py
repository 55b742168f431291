"""A file system that cannot put a file's data on its disk, and tells only whoever began to: what was acknowledged is there.

ext4 chooses the blocks of new data when it writes it back. If a block of the file's extents cannot be read then, it
throws the data away and returns EIO once, to the caller that triggered the write-back, and to nobody after it. So
here the disk loses one such block of one domain, while it and others are written together.
"""
import contextlib, json, os, random, subprocess, tempfile, threading, time
import common, faultdisk
from common import Server, Skip, find, in_parallel, need, need_root, part, problem, ready, seed, setting

BAD = "bad.example"
PIECES = 16                  # of the file whose extents are lost; four would fit into its inode
PIECE_BYTES = 4096
BIG = "b" * 9000             # needs new blocks
SLOW_FLUSH_MS = 80
SIZE_MIB = {"ext4": 64, "xfs": 320}
ENV = {"LEITSTAND_DISK_RESERVE": "0", "LEITSTAND_LOCK_TIMEOUT": "10"}


def run():
    need_root("mount, loop device"); need("mkfs.ext4", "debugfs", "unshare", *faultdisk.TOOLS)
    if not os.path.exists("/dev/fuse"): raise Skip("no /dev/fuse")
    rng, rounds, few = seed("writeback_errors"), setting("WRITEBACKS", 5, 50), setting("WRITEBACKS_EACH", 2, 10)
    failed = []
    for what, kind, options, count, schedule in (
            ("at once", "ext4", ["-b", "4096"], rounds, at_once), ("a slow flush", "ext4", ["-b", "4096"], rounds, slow_flush),
            ("at once, blocks of 1 KiB", "ext4", ["-b", "1024"], few, at_once), ("a slow flush, blocks of 1 KiB", "ext4", ["-b", "1024"], few, slow_flush),
            ("without a journal", "ext4", ["-b", "4096", "-O", "^has_journal"], few, at_once),
            ("beside others' sync", "ext4", ["-b", "4096"], rounds, beside_sync), ("everysec", "ext4", ["-b", "4096"], few, everysec),
            ("at once", "xfs", [], few, at_once), ("a slow flush", "xfs", [], few, slow_flush)):
        part(f"{kind}, {what}", lambda: failed.extend(rounds_of(f"{kind}, {what}", kind, options, count, schedule, rng)))
    assert not failed, "\n".join(failed)


def rounds_of(what, kind, options, count, schedule, rng):
    """Prints the figures; what must not be, as texts."""
    need(f"mkfs.{kind}", *(["xfs_io"] if kind == "xfs" else []))
    began, felt, problems = time.monotonic(), 0, []
    with faultdisk.FaultDisk(SIZE_MIB[kind]) as disk:
        for _ in range(count):
            happened, wrong = one_round(disk, kind, options, schedule, random.Random(rng.random()))
            felt += happened
            if wrong: problems.append(f"{what}: {'; '.join(wrong)}")
    lost = sum("lost" in text for text in problems)
    print(f"{what}: {count} rounds, the disk failed in {felt}; {lost} with an acknowledged line lost, {len(problems)} with anything wrong "
          f"({(time.monotonic() - began) / count:.2f} s each)", flush=True)
    # XFS may find room elsewhere; so a few rounds may all pass by.
    if felt < (count * 0.8 if kind == "ext4" else count // 10): problems.append(f"{what}: the disk failed in {felt} of {count} rounds only; this proves nothing")
    return problems


def one_round(disk, kind, options, schedule, rng):
    """A new file system, a service on it, and a disk that fails from then on. Did it fail, and what was wrong."""
    disk.format(kind, *options)
    others = [f"d{n}.example" for n in range(rng.randrange(1, 8))]
    wrong = []
    with contextlib.ExitStack() as stack:
        directory = os.path.join(stack.enter_context(disk.mounted()), "data"); os.mkdir(directory)
        in_pieces(os.path.join(directory, BAD + ".jsonl"))
        fsync = "everysec" if schedule is everysec else "always"
        wrap = stack.enter_context(machine(busy=schedule is slow_flush or rng.random() < 0.2))
        with Server({**ENV, "LEITSTAND_FSYNC": fsync}, datadir=directory, wrap=wrap) as server:
            assert server.up, server.log_text()
            round = Round(server, disk)
            # Mostly all files are open; now and then the bad one is opened when the disk is bad already.
            for domain in others + [BAD] * (rng.random() < 0.8): assert round.post(domain, "s") == 202
            before = disk.tell("counts")
            lose_something(disk, kind, directory)
            try: wrong += schedule(round, others, rng)
            finally: disk.tell("heal")
            after = disk.tell("counts")
            failed = any(after[key] > before[key] for key in ("failed_reads", "failed_writes"))
            wrong += round.in_doubt()
    with disk.mounted() as mounted: wrong += round.wrong_in(os.path.join(mounted, "data"), [BAD] if schedule is everysec else [])
    return failed, wrong


@contextlib.contextmanager
def machine(busy):
    """A prefix for a command that sees a machine on which nothing, or much, waits to be written, whatever else runs here.

    The service syncs a whole file system only if that has little to carry; else each file by itself.
    """
    with tempfile.NamedTemporaryFile("w", prefix="vmstat-") as vmstat:
        vmstat.write(f"nr_dirty {1_000_000 * busy}\nnr_writeback 0\n"); vmstat.flush()
        yield (find("unshare"), "--mount", "sh", "-c", 'mount --bind "$0" /proc/vmstat && exec "$@"', vmstat.name)


def in_pieces(file):
    """The file of the bad domain, of so many pieces that its inode cannot name them all."""
    line = b'{"old":"%s","domain":"%s"}\n' % (b"o" * (PIECE_BYTES - 23 - len(BAD)), BAD.encode())
    with open(file, "wb", buffering=0) as bad:
        bad.write(line * 2 * PIECES); os.fsync(bad.fileno())
        # Every second one is taken out; the others stay where they are.
        for n in range(PIECES): faultdisk.collapse_range(bad.fileno(), n * PIECE_BYTES, PIECE_BYTES)
        os.fsync(bad.fileno())
    assert open(file, "rb").read() == line * PIECES and len(line) == PIECE_BYTES


def lose_something(disk, kind, directory):
    """From now on: ext4 cannot read where the file's blocks are; XFS, which remembers that, cannot write behind its last."""
    file = os.path.join(directory, BAD + ".jsonl")
    faultdisk.run("sync", "-f", directory)
    if kind == "ext4":
        block_bytes = os.statvfs(directory).f_bsize
        with contextlib.suppress(OSError): faultdisk.checkpoint(directory)   # there may be no journal
        block = faultdisk.extent_block(disk.device, os.stat(file).st_ino)
        disk.drop_caches()
        disk.tell("bad_reads", [block * block_bytes, (block + 1) * block_bytes])
    else:
        end = faultdisk.last_byte(file)
        disk.tell("bad_writes", [end, end + (1 << 20)])


class Round:
    """Requests with numbered events, and their answers."""

    def __init__(self, server, disk):
        self.server, self.disk, self.lock = server, disk, threading.Lock()
        self.answers, self.next_id = {}, 0

    def post(self, domain, pad):
        with self.lock:
            n = self.next_id; self.next_id += 1
        status, answer, _ = problem(self.server.port, domain, {"id": n, "pad": pad})
        with self.lock: self.answers[n] = (status, domain, answer.get("written"))
        return status

    def in_doubt(self):
        """What the service does with a domain of which it does not know what is on the disk."""
        if "maybe" not in (written for _, domain, written in self.answers.values() if domain == BAD): return []
        wrong = ["ready in spite of a domain in doubt"] * (ready(self.server.port) != 503)
        return wrong + ["a domain in doubt goes on"] * (self.post(BAD, "s") != 500)

    def wrong_in(self, directory, may_lose=()):
        acked = {n: domain for n, (status, domain, _) in self.answers.items() if status == 202 and domain not in may_lose}
        strange = {(status, domain) for status, domain, _ in self.answers.values() if status not in (202, 500)}
        return wrong_in(directory, acked) + [f"{domain} answered {status}" for status, domain in strange]


def wrong_in(directory, acked):
    """Acknowledged events that are not in their file, and events that are anywhere twice; torn lines are nobody's."""
    found, wrong = {}, []
    for name in os.listdir(directory):
        if not name.endswith(".jsonl"): continue
        for line in open(os.path.join(directory, name), "rb"):
            try: event = json.loads(line)
            except ValueError: continue
            if isinstance(event, dict) and "id" in event: found.setdefault(event["id"], []).append(name[:-6])
    wrong += [f"event {n} is there {len(at)} times" for n, at in found.items() if len(at) > 1]
    return wrong + [f"event {n} of {domain} acknowledged and lost" for n, domain in acked.items() if found.get(n) != [domain]]


def at_once(round, others, rng, events=3):
    """All domains at the same time, each with a client that waits for its answers, the bad one with two."""
    domains = others + [BAD, BAD]
    rng.shuffle(domains)
    pads = [[rng.choice(("s", "s" * 300, BIG)) for _ in range(events)] for _ in domains]
    for domain, row in zip(domains, pads):
        if domain == BAD: row[:] = [BIG] * events
    barrier = threading.Barrier(len(domains))

    def client(n):
        barrier.wait()
        for pad in pads[n]: round.post(domains[n], pad)
    in_parallel(len(domains), client)
    return []


def slow_flush(round, others, rng):
    """A group that needs no new block is synced, slowly; meanwhile, within 10 ms, one is written that needs some."""
    round.disk.tell("flush_delay_ms", SLOW_FLUSH_MS)
    requests = [(0, BAD, "s"), (rng.uniform(0.002, 0.007), BAD, BIG)]
    requests += [(rng.uniform(0, 0.02), domain, rng.choice(("s", BIG))) for domain in others[:rng.choice((0, 0, 1, 7))]]

    def client(n):
        after_s, domain, pad = requests[n]
        time.sleep(after_s)
        round.post(domain, pad)
    in_parallel(len(requests), client)
    return []


@contextlib.contextmanager
def others_sync(directory):
    """Somebody else syncs the file system again and again."""
    loop = subprocess.Popen(["sh", "-c", 'while :; do sync -f "$1"; done', "sh", directory], stderr=subprocess.DEVNULL)
    try: yield
    finally: loop.kill(); loop.wait()


def beside_sync(round, others, rng):
    """The only report of the failure goes to somebody else."""
    with others_sync(round.server.dir): return at_once(round, others, rng)


def everysec(round, others, rng):
    """The answer is out before the sync: the domain is poisoned and the log says why, as soon as the sync has failed."""
    before = set(round.answers)
    at_once(round, others, rng)
    if not any(status == 202 and domain == BAD for n, (status, domain, _) in round.answers.items() if n not in before): return []
    until = time.monotonic() + 3
    while ready(round.server.port) != 503 and time.monotonic() < until: time.sleep(0.02)
    wrong = ["acknowledged and lost, and ready"] * (time.monotonic() >= until)
    # A thread of its own writes the log. Whoever finds out first tells it: the sync after the answer, or the next request.
    until = time.monotonic() + 3
    while "sync failed" not in round.server.log_text() and time.monotonic() < until: time.sleep(0.02)
    return wrong + [f"the log does not say that a sync failed: {round.server.log_text()[-2000:]}"] * (time.monotonic() >= until)
