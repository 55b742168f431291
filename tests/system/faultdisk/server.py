"""The disk itself: one file, mounted over a file, served from memory over /dev/fuse. `server.py MOUNT_POINT SIZE_MIB`

The mount point is a file in a directory of its own, which goes with the disk.

No package is needed: the kernel's protocol (linux/fuse.h) is a few structs, and a disk is a read, a write and a flush.
It answers one request after the other, like a disk with one queue. Needs root.

A write is seen by every later read at once, but is on the medium (`stable`) only after the next flush; until then it
is `pending`, and a crash image may have it, lack it or have half of it.

Commands come on stdin, one JSON list a line, `["name", arguments…]`; each is answered by one line on stdout. At the
end of stdin, also when the parent was killed, everything that stands on the disk is taken away, and the disk too.
"""
import contextlib, ctypes, errno, json, os, random, shutil, struct, subprocess, sys, threading, time

IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
READ_WRITE_IN = struct.Struct("<QQIIQII")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = 3, 4, 14, 15, 16, 17, 18, 20, 25, 26
UNANSWERED = {2, 36, 42}              # FORGET, INTERRUPT, BATCH_FORGET
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22
KEEP_CACHE = 2                        # pages stay in the cache when the file is opened anew
PAGES_AT_ONCE, PAGE = 64, 4096
FOR_EVER_S = 1 << 30
SECTOR = 512


class Medium:
    """The bytes, the faults that are switched on, and what has been counted."""

    def __init__(self, size):
        self.size, self.lock = size, threading.Lock()
        self.seen, self.stable, self.pending = bytearray(size), bytearray(size), []
        self.counts = dict.fromkeys(("reads", "writes", "flushes", "failed_reads", "failed_writes", "failed_flushes"), 0)
        self.heal()

    def heal(self):
        self.bad_reads = self.bad_writes = None   # (from, to), in bytes
        self.writes_left = None                   # then all fail
        self.flush_fails, self.flush_lies, self.flush_delay_ms = False, False, 0

    def count(self, what, fails=False):
        self.counts["failed_" + what if fails else what] += 1
        if fails: raise OSError(errno.EIO, what)

    def read(self, offset, size):
        with self.lock:
            self.count("reads", touches(self.bad_reads, offset, size))
            return bytes(self.seen[offset:offset + size])

    def write(self, offset, data):
        with self.lock:
            if offset + len(data) > self.size: raise OSError(errno.ENOSPC, "beyond the end of the disk")
            self.count("writes", self.writes_left == 0 or touches(self.bad_writes, offset, len(data)))
            if self.writes_left: self.writes_left -= 1
            self.seen[offset:offset + len(data)] = data
            self.pending.append((offset, data))

    def flush(self):
        with self.lock:
            self.count("flushes", self.flush_fails)
            until, done = time.monotonic() + self.flush_delay_ms / 1000, len(self.pending)
        while self.flush_delay_ms and time.monotonic() < until: time.sleep(0.001)
        with self.lock:
            if self.flush_lies: return
            for offset, data in self.pending[:done]: self.stable[offset:offset + len(data)] = data
            del self.pending[:done]

    def crash_image(self, path, mode, seed):
        """Writes what a power cut may leave: all that is stable, and of what is pending

        `none`, `all`, a `prefix`, a random `subset` of the writes, or of these only some sectors (`torn`).
        """
        rng = random.Random(seed)
        with self.lock:
            image, pending = bytearray(self.stable), list(self.pending)
        if mode == "none": pending = []
        elif mode == "prefix": pending = pending[:rng.randrange(len(pending) + 1)]
        elif mode in ("subset", "torn"): pending = [write for write in pending if rng.random() < 0.5]
        elif mode != "all": raise ValueError(mode)
        for offset, data in pending:
            for at in range(0, len(data), SECTOR) if mode == "torn" else (0,):
                if mode == "torn" and rng.random() < 0.25: continue
                part = data[at:at + SECTOR] if mode == "torn" else data
                image[offset + at:offset + at + len(part)] = part
        with open(path, "wb") as f: f.write(image)


def touches(bad, offset, size):
    return bad is not None and offset < bad[1] and offset + size > bad[0]


class Connection:
    """The mount, and the kernel's requests."""

    def __init__(self, medium, mount_point):
        self.medium, self.fd = medium, os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.fd},rootmode=100000,user_id=0,group_id=0".encode()
        if libc.mount(b"faultdisk", mount_point.encode(), b"fuse.faultdisk", ctypes.c_ulong(0), options):
            number = ctypes.get_errno()
            raise OSError(number, f"mount: {os.strerror(number)}")

    def serve(self):
        while True:
            try: request = os.read(self.fd, (PAGES_AT_ONCE + 1) * PAGE)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT): continue   # the request was taken back
                return                                                    # ENODEV: unmounted
            _, opcode, unique = IN_HEADER.unpack_from(request)[:3]
            if opcode in UNANSWERED: continue
            try: answer, failed = self.answer(opcode, request), 0
            except OSError as error: answer, failed = b"", -error.errno
            try: os.write(self.fd, OUT_HEADER.pack(OUT_HEADER.size + len(answer), failed, unique) + answer)
            except OSError as error:
                if error.errno != errno.ENOENT: return

    def answer(self, opcode, request):
        medium, arguments = self.medium, IN_HEADER.size
        if opcode == READ:
            _, offset, size, *_ = READ_WRITE_IN.unpack_from(request, arguments)
            return medium.read(offset, size)
        if opcode == WRITE:
            _, offset, size, *_ = READ_WRITE_IN.unpack_from(request, arguments)
            data = arguments + READ_WRITE_IN.size
            medium.write(offset, request[data:data + size])
            return struct.pack("<II", size, 0)
        if opcode == FSYNC:
            medium.flush()
            return b""
        if opcode in (GETATTR, SETATTR):
            file = ATTRIBUTES.pack(1, medium.size, medium.size // SECTOR, 0, 0, 0, 0, 0, 0, 0o100600, 1, 0, 0, 0, PAGE, 0)
            return struct.pack("<QII", FOR_EVER_S, 0, 0) + file
        if opcode == OPEN: return struct.pack("<QIi", 0, KEEP_CACHE, 0)
        if opcode in (RELEASE, FLUSH): return b""
        if opcode == STATFS: return struct.pack("<QQQQQIIII24x", medium.size // PAGE, 0, 0, 1, 0, PAGE, 255, PAGE, 0)
        if opcode == INIT:
            major, minor = struct.unpack_from("<II", request, arguments)
            return INIT_OUT.pack(major, min(minor, 31), 0, BIG_WRITES | MAX_PAGES, 16, 12, PAGES_AT_ONCE * PAGE, 1, PAGES_AT_ONCE, 0, 0)
        raise OSError(errno.ENOSYS, f"operation {opcode}")


def obey(medium, name, *arguments):
    """One command; what it returns is the answer."""
    if name in ("bad_reads", "bad_writes", "writes_left", "flush_fails", "flush_lies", "flush_delay_ms"):
        with medium.lock: setattr(medium, name, arguments[0])
    elif name == "counts":
        with medium.lock: return {**medium.counts, "pending": len(medium.pending)}
    elif name in ("heal", "crash_image"): return getattr(medium, name)(*arguments)
    else: raise ValueError(f"no such command: {name}")


def take_away(mount_point):
    """Unmounts what is on the disk, frees its loop devices, unmounts the disk and removes its directory."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    listed = subprocess.run(["losetup", "-n", "-O", "NAME", "-j", mount_point], capture_output=True, text=True).stdout
    for loop in listed.split():
        with open("/proc/mounts") as mounts: on_it = [line.split()[1] for line in mounts if line.split()[0] == loop]
        for directory in on_it:
            if subprocess.run(["umount", directory], **quiet).returncode: subprocess.run(["umount", "-l", directory], **quiet)
            with contextlib.suppress(OSError): os.rmdir(directory)
        subprocess.run(["losetup", "-d", loop], **quiet)
    subprocess.run(["umount", "-l", mount_point], **quiet)
    shutil.rmtree(os.path.dirname(mount_point), ignore_errors=True)


def main():
    mount_point, size_mib = sys.argv[1], int(sys.argv[2])
    medium = Medium(size_mib << 20)
    threading.Thread(target=Connection(medium, mount_point).serve, daemon=True).start()
    print(json.dumps("mounted"), flush=True)
    for line in sys.stdin:
        try: answer = {"done": obey(medium, *json.loads(line))}
        except Exception as error: answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)
    medium.heal()
    take_away(mount_point)


if __name__ == "__main__":
    main()
