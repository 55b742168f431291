"""A device that runs out of room, or dies, under several domains at full speed: what was acknowledged is there afterwards.

ext4 aborts its journal when it cannot write it. Who asks then for a transaction that is over, though it failed, gets
success: the `fdatasync` of a file of which only the new length was still to come, if somebody else's sync, or the
journal's own every five seconds, came before it (Linux 6.18).
"""
import contextlib, os, random, subprocess, tempfile, threading, time
import common, faultdisk
from common import TRACEABLE, Server, Skip, Tracer, find, need, need_root, part, paths_of, problem, seed, setting, wait_until
from writeback_errors import ENV, machine, others_sync, wrong_in

SIZE_MIB = {"ext4": 64, "xfs": 320}
CLIENTS, DOMAINS = 12, 8
ROUND_S_MAX = 6
HELD_MS = 600
PAGE_KIB = 4                 # blocks of the file systems, and requests to the device
MKFS = {"ext4": ["-b", "4096"], "xfs": []}


def run():
    need_root("mount, loop device"); need("mkfs.ext4", "e2fsck", "unshare", *faultdisk.TOOLS)
    rng, rounds, few = seed("thin_device"), setting("THIN", 2, 26), setting("THIN_EACH", 1, 10)
    wrong = []
    for kind, options, count, device, beside in (
            ("ext4", "errors=remount-ro", rounds, thin, False), ("ext4", "errors=continue", rounds, thin, False),
            ("ext4", "errors=remount-ro", rounds, dying, False), ("ext4", "errors=continue", 2 * rounds, dying, False),
            ("ext4", "errors=remount-ro", rounds, dying, True), ("ext4", "errors=continue", rounds, dying, True),
            ("xfs", "nouuid", few, thin, False), ("xfs", "nouuid", few, dying, False)):
        what = f"{kind}, {options}, a {device.__name__} device" + ", beside others' sync" * beside
        part(what, lambda: wrong.extend(rounds_of(what, kind, options, count, device, beside, rng)))
    for options in ("errors=remount-ro", "errors=continue"):
        part(f"ext4, {options}, an aborted journal", aborted_journal, options, setting("ABORTED_JOURNALS", 2, 10), wrong)
    assert not wrong, "\n".join(wrong)


def rounds_of(what, kind, options, count, device, beside, rng):
    need(f"mkfs.{kind}")
    began, acked, refused, lost, problems = time.monotonic(), 0, 0, 0, []
    with device(kind) as (path, end_soon, make_whole):
        for _ in range(count):
            load, wrong = one_round(kind, options, path, end_soon, make_whole, beside, random.Random(rng.random()))
            acked += len(load.acked); refused += load.refused > 0
            lost += any("lost" in text for text in wrong)
            if wrong: problems.append(f"{what}: {'; '.join(wrong[:5])}")
    print(f"{what}: {count} rounds, {refused} with refused events, {acked} acknowledged; {lost} with an acknowledged line lost, "
          f"{len(problems)} with anything wrong ({(time.monotonic() - began) / count:.2f} s each)", flush=True)
    if refused < count * 0.8: problems.append(f"{what}: events were refused in {refused} of {count} rounds only; this proves nothing")
    return problems


@contextlib.contextmanager
def thin(kind):
    """A device with less room behind it than it promises: a sparse file on a tmpfs that is full at some point.

    Gives the device, what lets it end soon, and what makes it whole again.
    """
    directory = tempfile.mkdtemp(prefix="thin-"); size = SIZE_MIB[kind]
    with contextlib.ExitStack() as stack:
        stack.callback(os.rmdir, directory)
        try: faultdisk.run("mount", "-t", "tmpfs", "-o", f"size={2 * size}m", "tmpfs", directory)
        except OSError as error: raise Skip(f"cannot mount: {error}")
        stack.callback(faultdisk.unmount, directory)
        file = os.path.join(directory, "image")
        with open(file, "wb") as image: image.truncate(size << 20)
        try: device = faultdisk.run("losetup", "-f", "--show", file).strip()
        except OSError as error: raise Skip(f"no loop device: {error}")
        stack.callback(faultdisk.run, "losetup", "-d", device)
        stack.enter_context(faultdisk.honest(device, PAGE_KIB))

        def resize(bytes_): faultdisk.run("mount", "-o", f"remount,size={bytes_ >> 10}k", directory)
        yield (device, lambda rng: resize(os.stat(file).st_blocks * 512 + rng.randrange(64 << 10, 2 << 20)), lambda: resize(2 * size << 20))


@contextlib.contextmanager
def dying(kind):
    """A disk that takes so many writes more, and then none, until it is whole again."""
    if not os.path.exists("/dev/fuse"): raise Skip("no /dev/fuse")
    with faultdisk.FaultDisk(SIZE_MIB[kind]) as disk:
        yield disk.device, lambda rng: disk.tell("writes_left", rng.randrange(20, 400)), lambda: disk.tell("heal")


def one_round(kind, options, path, end_soon, make_whole, beside, rng):
    faultdisk.format_device(path, kind, *MKFS[kind])
    with faultdisk.mounted(path, options) as mounted:
        directory = os.path.join(mounted, "data"); os.mkdir(directory)
        faultdisk.run("sync", "-f", directory)
        with machine(busy=rng.random() < 0.3) as wrap, Server(ENV, datadir=directory, wrap=wrap) as server:
            assert server.up, server.log_text()
            with others_sync(directory) if beside else contextlib.nullcontext():
                end_soon(rng)
                try: load = Load(server.port, rng)
                finally: make_whole()
            wrong = [] if server.p.poll() is None else ["the service died"]
    # Exit code 1: errors were corrected.
    if kind == "ext4": subprocess.run([find("e2fsck"), "-f", "-y", path], capture_output=True)
    with faultdisk.mounted(path, options) as mounted:
        return load, wrong + wrong_in(os.path.join(mounted, "data"), load.acked)


def aborted_journal(options, rounds, wrong):
    """The one order in which nobody of ours is told, made by hand: written, begun, died, committed by others, synced."""
    need("strace")
    lost = 0
    with faultdisk.FaultDisk(SIZE_MIB["ext4"]) as disk:
        for n in range(rounds):
            status, missing = after_a_failed_commit(disk, options, domains=1 + n % 2)
            lost += bool(missing); wrong += [f"ext4, {options}, an aborted journal: {text}" for text in missing]
            if status == 202 and not missing: wrong.append("the disk failed, and nothing is missing; this proves nothing")
    print(f"ext4, {options}, an aborted journal that nobody told of: {rounds} rounds, {lost} with an acknowledged line lost", flush=True)


def after_a_failed_commit(disk, options, domains):
    """One answer, and what is missing of what was acknowledged."""
    disk.format("ext4", *MKFS["ext4"])
    names = [f"d{n}.example" for n in range(domains)]
    acked = {}
    with disk.mounted(options) as mounted:
        directory = os.path.join(mounted, "data"); os.mkdir(directory)
        with machine(busy=False) as wrap, Server({**ENV, "LOG_LEVEL": "ERROR"}, datadir=directory, wrap=(*wrap, *TRACEABLE)) as server:
            for n, domain in enumerate(names):
                assert problem(server.port, domain, {"id": n})[0] == 202
                acked[n] = domain
            faultdisk.run("sync", "-f", directory)
            files = [os.path.join(directory, domain + ".jsonl") for domain in names]
            lengths = [os.stat(file).st_size for file in files]
            paths = [path for domain in names for path in paths_of(server, domain + ".jsonl")] + [directory]
            held = "fdatasync,syncfs"
            with Tracer(server, paths, f"trace={held}", f"inject={held}:delay_enter={HELD_MS * 1000}"):
                answers = []
                posts = [threading.Thread(target=lambda n=n: answers.append((n, problem(server.port, names[n], {"id": 100 + n})[0]))) for n in range(domains)]
                for thread in posts: thread.start()
                wait_until(lambda: all(os.stat(file).st_size > before for file, before in zip(files, lengths)), 5, "written")
                for file in files: faultdisk.write_back(file)
                disk.tell("writes_left", 0)
                subprocess.run(["sync", "-f", directory], capture_output=True)
                for thread in posts: thread.join()
            disk.tell("heal")
    acked.update({100 + n: names[n] for n, status in answers if status == 202})
    subprocess.run([find("e2fsck"), "-f", "-y", disk.device], capture_output=True)
    with disk.mounted(options) as mounted: return max(status for _, status in answers), wrong_in(os.path.join(mounted, "data"), acked)


class Load:
    """Clients that post until each was refused some times; then it is over."""

    def __init__(self, port, rng):
        self.port, self.acked, self.refused, self.next_id, self.lock = port, {}, 0, 0, threading.Lock()
        self.until = time.monotonic() + ROUND_S_MAX
        common.in_parallel(CLIENTS, lambda n: self.client(random.Random(f"{n} {rng.random()}")))

    def client(self, rng):
        refused = 0
        while refused < 3 and time.monotonic() < self.until:
            with self.lock: n = self.next_id; self.next_id += 1
            domain = f"d{rng.randrange(DOMAINS)}.example"
            status = problem(self.port, domain, {"id": n, "pad": "x" * rng.choice((10, 300, 3000, 12_000))})[0]
            assert status in (202, 500, 507), status
            with self.lock:
                if status == 202: self.acked[n] = domain
                else: refused += 1; self.refused += 1
