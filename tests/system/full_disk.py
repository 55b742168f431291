"""A full disk in every way that can be had here, and foreign permissions: 507 or 500, old bytes untouched, and on it goes."""
import contextlib, errno, fcntl, json, os, shutil, subprocess, tempfile, threading, time
import common, harness
from common import Server, Skip, at_once, find, need, need_root, part, setting, verify
from harness import post, request, TOKEN


def run():
    part("weak file systems", weak)
    part("full tmpfs", tmpfs)
    for kind in ("ext4", "xfs", "btrfs"): part(f"full {kind}", image, kind)
    part("no inodes", no_inodes)
    part("quota", quota)
    part("file size limit", file_size_limit)
    part("permissions", foreign_permissions)


class Mounted:
    """A file system of its own, gone after `with`."""

    def __init__(self, *options, device="tmpfs"):
        need_root("mount"); need("mount", "umount")
        self.directory = tempfile.mkdtemp(prefix="full-")
        done = subprocess.run([find("mount"), *options, device, self.directory], capture_output=True, text=True)
        if done.returncode:
            os.rmdir(self.directory)
            raise Skip(f"cannot mount: {done.stderr.strip()}")

    def __enter__(self): return self.directory

    def __exit__(self, *_):
        subprocess.run([find("umount"), self.directory], check=True); os.rmdir(self.directory)


def tmpfs():
    sizes = setting("TMPFS_KIB", "64,256", "64,128,256,512,1024").split(",")
    for size in sizes:
        with Mounted("-t", "tmpfs", "-o", f"size={size}k") as directory: fill(directory, f"tmpfs of {size} KiB")
    with Mounted("-t", "tmpfs", "-o", "size=1m") as directory: neighbours(directory, "tmpfs")
    with Mounted("-t", "tmpfs", "-o", "size=256k") as directory:
        with Server({}, datadir=directory) as server:   # the default reserve: 1 % of 256 KiB
            assert post(server.port, "example.com", {"new": 2})[0] == 202
        before = open(os.path.join(directory, "example.com.jsonl"), "rb").read()
        with Server({"LEITSTAND_DISK_RESERVE": "1MiB"}, datadir=directory) as server:
            assert post(server.port, "example.com", {"new": 3})[0] == 507
            assert request(server.port, "GET", "/health/ready")[0] == 503
            assert open(os.path.join(directory, "example.com.jsonl"), "rb").read() == before


def weak():
    """What cannot keep the promise whatever the service does is told at the start and by `doctor`, and nothing else is."""
    def told(directory):
        kinds = ("in memory", "without a journal", "fast_commit", "another machine")
        with Server({}, datadir=directory) as server:
            assert all(post(server.port, "a", {"n": n})[0] == 202 for n in range(30))
            assert server.stop() == 0
        with Server({}, datadir=directory) as server:
            env = {**os.environ, "LEITSTAND_TOKEN": TOKEN, "LEITSTAND_DATA_DIR": directory, "LEITSTAND_PORT": str(server.port)}
            doctor = subprocess.run([common.BIN, "doctor"], env=env, capture_output=True, text=True).stdout
            assert server.stop() == 0
            return [kind for kind in kinds if kind in server.log_text()], [kind for kind in kinds if kind in doctor]
    with Mounted("-t", "tmpfs", "-o", "size=1m") as directory: assert told(directory) == (["in memory"],) * 2
    for options, want in (((), []), (("-O", "^has_journal"), ["without a journal"]), (("-O", "fast_commit"), ["fast_commit"])):
        with formatted("ext4", 32, *options) as mounted:
            directory = os.path.join(mounted, "data"); os.mkdir(directory)
            assert told(directory) == (want, want), (options, told(directory))
    print("weak file systems: memory, ext4 without a journal and with fast_commit are told, plain ext4 is not")


def image(kind):
    """A file system with blocks, where space is only promised before it is given."""
    size = {"ext4": 8, "xfs": 300, "btrfs": 256}[kind]
    if kind == "xfs" and not common.LONG: raise Skip("only in a long run (the smallest image is 300 MiB)")
    if kind == "btrfs" and not common.LONG: raise Skip("only in a long run (filling it takes long)")
    with formatted(kind, size) as mounted:
        directory = os.path.join(mounted, "data"); os.mkdir(directory)
        fill(directory, kind)
        neighbours(directory, kind)
        if kind == "btrfs": lone(directory, kind)


@contextlib.contextmanager
def formatted(kind, size_mib, *options):
    """A new file system of this kind, in a file."""
    need_root("mount"); need(f"mkfs.{kind}", "mount", "umount")
    quiet = {"ext4": ["-q", "-F"], "xfs": ["-q", "-f"], "btrfs": ["-q", "-f"]}[kind]
    with tempfile.TemporaryDirectory(prefix="image-") as outer:
        file = os.path.join(outer, "image")
        with open(file, "wb") as f: f.truncate(size_mib << 20)
        done = subprocess.run([find(f"mkfs.{kind}"), *quiet, *options, file], capture_output=True, text=True)
        if done.returncode: raise Skip(f"mkfs.{kind}: {done.stderr.strip()}")
        with Mounted("-o", "loop", device=file) as mounted: yield mounted


class Ballast:
    """Takes all the space there is, down to the last block."""

    def __init__(self, directory, spare_bytes=0):
        self.path, self.spare = os.path.join(directory, "ballast"), os.path.join(directory, "spare")
        if spare_bytes:
            with open(self.spare, "wb") as f: f.write(b"s" * spare_bytes); f.flush(); os.fsync(f.fileno())
        for size in (1 << 20, 4096, 1):
            # btrfs gives a little back after each commit.
            for _ in range(5):
                try:
                    with open(self.path, "ab", buffering=0) as f:
                        while f.write(b"z" * size): pass
                except OSError as e:
                    if e.errno not in (errno.ENOSPC, errno.EDQUOT): raise
                os.sync()

    def give_back_spare(self): os.unlink(self.spare); os.sync()

    def give_back(self): os.unlink(self.path)


def first_good(server, domain, event, what):
    """The first request after space is back; a second of grace, because a file system may free blocks late."""
    began = time.monotonic()
    while True:
        answer = post(server.port, domain, event)
        seconds = time.monotonic() - began
        if answer[0] == 202: break
        assert answer[0] == 507, answer
        assert seconds < 1, f"{what}: no success {seconds:.2f} s after space was back"
        time.sleep(0.02)
    assert seconds <= 1, f"{what}: first good answer after {seconds:.2f} s"
    return seconds


def fill(directory, what):
    """507 each time, the old bytes untouched, and it goes on as soon as there is room."""
    path, refused, slowest = os.path.join(directory, "example.com.jsonl"), 0, 0.0
    with Server({"LEITSTAND_DISK_RESERVE": "0"}, datadir=directory) as server:
        assert server.up, server.log_text()
        assert post(server.port, "example.com", {"old": 1})[0] == 202
        for n in range(3 if common.LONG else 1):
            ballast = Ballast(directory)
            # What is left of the file's last block may still hold small events: use it up, by appending.
            for _ in range(2000):
                answer = post(server.port, "example.com", {"fill": "f" * 200})
                if answer[0] != 202: break
            assert answer[0] == 507 and json.loads(answer[2]) == {"detail": "insufficient storage"}, (what, answer)
            before = open(path, "rb").read()
            for size in (6000, 12_000, 100_000, 250):
                for _ in range(5):
                    answer = post(server.port, "example.com", {"a": "y" * size})
                    assert answer[0] == 507 and json.loads(answer[2]) == {"detail": "insufficient storage"}, (what, answer)
                    assert open(path, "rb").read() == before, f"{what}: a refused event changed the file"
                    refused += 1
            batch = [{"i": i, "p": "z" * 500} for i in range(20)]
            assert post(server.port, "example.com", batch)[0] == 507
            assert post(server.port, f"brand.new{n}", {"a": "y" * 6000})[0] == 507
            assert open(path, "rb").read() == before
            ballast.give_back()
            slowest = max(slowest, first_good(server, "example.com", {"new": n}, what))
            assert open(path, "rb").read() == before + b'{"new":%d,"domain":"example.com"}\n' % n
            assert request(server.port, "GET", "/health/ready")[0] == 200
    assert not verify(directory, {}, {})
    print(f"{what}: {refused} times 507, the old bytes untouched, the first good answer {slowest * 1000:.0f} ms after space was back")


def neighbours(directory, what):
    """One huge request and small ones wait for the same lock, so they become one group."""
    path = os.path.join(directory, "group.example.jsonl")
    with Server({"LEITSTAND_DISK_RESERVE": "0", "LEITSTAND_LOCK_TIMEOUT": "20"}, datadir=directory) as server:
        assert post(server.port, "group.example", {"id": 0})[0] == 202
        ballast = Ballast(directory, spare_bytes=200 << 10)
        ballast.give_back_spare()
        with open(path + ".lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            small = [lambda n=n: post(server.port, "group.example", {"id": n})[0] for n in range(1, 9)]
            huge = lambda: post(server.port, "group.example", {"huge": "h" * 900_000})[0]
            release = threading.Timer(0.7, lambda: fcntl.flock(lock, fcntl.LOCK_UN)); release.start()
            statuses = at_once([*small[:4], huge, *small[4:]])
            release.join()
        assert statuses == [202] * 4 + [507] + [202] * 4, (what, statuses, server.log_text()[-1000:])
        assert sorted(json.loads(line)["id"] for line in open(path, "rb")) == list(range(9))
        ballast.give_back()
        seconds = first_good(server, "group.example", {"id": 9}, what)
    print(f"{what}: 8 of 8 small neighbours of a huge request stored, the huge one 507, and {seconds * 1000:.0f} ms until the next")


def lone(directory, what):
    """A refused request must not take the room that is left: not for others, not for good."""
    with Server({"LEITSTAND_DISK_RESERVE": "0"}, datadir=directory) as server:
        assert post(server.port, "lone.example", {"p": "x" * 3000})[0] == 202
        ballast = Ballast(directory, spare_bytes=200 << 10)
        ballast.give_back_spare()
        for n in range(20):
            assert post(server.port, "lone.example", {"huge": "h" * 900_000})[0] == 507
            answer = post(server.port, "lone.example", {"id": n})
            assert answer[0] == 202, (what, n, answer)
        assert post(server.port, "lone.example", {"half": "h" * 100_000})[0] == 202, f"{what}: 200 KiB were free"
        ballast.give_back()
    print(f"{what}: 20 huge requests refused, and the room they did not get is still there")


def no_inodes():
    with Mounted("-t", "tmpfs", "-o", "size=1m,nr_inodes=20") as directory:
        with Server({"LEITSTAND_DISK_RESERVE": "0"}, datadir=directory) as server:
            assert post(server.port, "example.com", {"n": 1})[0] == 202
            made = []
            while True:
                try: made.append(os.path.join(directory, f"inode{len(made)}")); open(made[-1], "xb").close()
                except OSError as e: assert e.errno == errno.ENOSPC; made.pop(); break
            for n in range(20):
                assert post(server.port, f"new{n}.example", {"n": 1})[0] == 507
            os.unlink(made.pop())   # enough for a lock file, not for the data file
            for _ in range(5): assert post(server.port, "half.example", {"n": 1})[0] == 507
            assert post(server.port, "example.com", {"n": 2})[0] == 202, "an old file needs no inode"
            for path in made: os.unlink(path)
            seconds = first_good(server, "half.example", {"n": 1}, "no inodes")
        assert not verify(directory, {}, {})
        assert not [n for n in os.listdir(directory) if n.startswith("new")], "a refused domain left a file"
    print(f"no inodes: 25 times 507, known domains go on, new ones {seconds * 1000:.0f} ms after inodes are back")


def quota():
    """EDQUOT from the kernel. Where it knows no quota, `faults` makes up for that: it injects EDQUOT into every call."""
    try: return quota_of_user()
    except Skip as reason:
        if not common.LONG: raise Skip(f"{reason}; by a group of btrfs only in a long run")
        print(f"quota of a user: {reason}")
    need("btrfs", "mkfs.btrfs")
    with tempfile.TemporaryDirectory(prefix="image-") as outer:
        file = os.path.join(outer, "image")
        with open(file, "wb") as f: f.truncate(256 << 20)
        subprocess.run([find("mkfs.btrfs"), "-q", "-f", file], check=True, capture_output=True)
        with Mounted("-o", "loop", device=file) as mounted:
            directory = os.path.join(mounted, "data")
            for command in (["subvolume", "create", directory], ["quota", "enable", mounted], ["qgroup", "limit", "8M", directory]):
                done = subprocess.run([find("btrfs"), *command], capture_output=True, text=True)
                if done.returncode: raise Skip(f"btrfs {command[0]}: {done.stderr.strip()}")
            with open(os.path.join(mounted, "outside"), "wb") as f: f.write(b"o" * (1 << 20))   # the disk is not full
            fill(directory, "btrfs with a quota")


def quota_of_user():
    nobody = 65534
    with Mounted("-t", "tmpfs", "-o", "size=4m,usrquota,usrquota_block_hardlimit=64k") as directory, as_nobody(directory) as server:
        path = os.path.join(directory, "example.com.jsonl")
        for _ in range(1000):
            if post(server.port, "example.com", {"fill": "f" * 2000})[0] != 202: break
        before = open(path, "rb").read()
        for _ in range(20):
            answer = post(server.port, "example.com", {"a": "y" * 6000})
            assert answer[0] == 507 and json.loads(answer[2]) == {"detail": "insufficient storage"}, answer
            assert open(path, "rb").read() == before
        os.chown(path, 0, 0); os.chmod(path, 0o666)   # no longer on nobody's account
        seconds = first_good(server, "second.example", {"n": 1}, "quota")
        assert os.stat(os.path.join(directory, "second.example.jsonl")).st_uid == nobody
        assert open(path, "rb").read() == before
    print(f"quota of a user: 20 times 507, the old bytes untouched, and {seconds * 1000:.0f} ms after there is room again")


@contextlib.contextmanager
def as_nobody(directory):
    nobody = 65534
    need_root("another user"); need("setpriv")
    outer = tempfile.mkdtemp(prefix="user-"); os.chmod(outer, 0o755)
    cwd, binary = os.path.join(outer, "cwd"), os.path.join(outer, "leitstand")
    os.mkdir(cwd); os.chown(cwd, nobody, nobody); os.chown(directory, nobody, nobody)
    shutil.copy(harness.BIN, binary); os.chmod(binary, 0o755)
    kept, harness.BIN = harness.BIN, binary
    try:
        with Server({"LEITSTAND_DISK_RESERVE": "0"}, datadir=directory, cwd=cwd, user=nobody) as server:
            assert server.up, server.log_text()
            yield server
    finally:
        harness.BIN = kept
        shutil.rmtree(outer, ignore_errors=True)


def file_size_limit():
    need("prlimit")
    with Server({"LEITSTAND_DISK_RESERVE": "0", "LOG_LEVEL": "ERROR"}, wrap=("prlimit", "--fsize=4096")) as server:
        assert post(server.port, "a", {"n": 1})[0] == 202
        before = open(os.path.join(server.dir, "a.jsonl"), "rb").read()
        for _ in range(20):
            assert post(server.port, "a", {"p": "x" * 5000})[0] == 507, "RLIMIT_FSIZE is EFBIG, not the end of the process"
            assert open(os.path.join(server.dir, "a.jsonl"), "rb").read() == before
        assert post(server.port, "a", {"n": 2})[0] == 202
        assert not verify(server.dir, {}, {})
    print("file size limit: 20 times 507, and the service goes on")


def foreign_permissions():
    outer = tempfile.mkdtemp(prefix="perm-")
    os.chmod(outer, 0o755)
    directory = os.path.join(outer, "data")
    os.mkdir(directory)
    try:
        with as_nobody(directory) as server:
            with open(os.path.join(directory, "example.com.jsonl"), "wb") as f: f.write(b'{"old":1}\n')
            os.chmod(f.name, 0o444)
            answer = post(server.port, "example.com", {})
            assert answer[0] == 500 and json.loads(answer[2]) == {"detail": "storage error"}, answer
            os.chmod(directory, 0o555); os.chown(directory, 0, 0)
            answer = post(server.port, "other.example", {})
            assert answer[0] == 500 and json.loads(answer[2]) == {"detail": "storage error"}, answer
            assert request(server.port, "GET", "/health", [("X-Auth", TOKEN)])[0] == 200
            assert request(server.port, "GET", "/health/ready")[0] == 503
        print("permissions: 500 storage error, health as recorded, ready says no")
    finally:
        shutil.rmtree(outer, ignore_errors=True)
