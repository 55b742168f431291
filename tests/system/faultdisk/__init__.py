"""A disk that fails when it is told to, below a loop device, and file systems on it; all of it gone after `with`."""
import contextlib, ctypes, fcntl, json, os, re, shutil, subprocess, sys, tempfile, time
from common import Skip

SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server.py")
BLKFLSBUF = 0x1261                # linux/fs.h: write the block device's cache and drop what nobody uses
EXT4_IOC_CHECKPOINT = 0x4004662b  # linux/ext4.h: write everything that stands in the journal to its place
SYNC_FILE_RANGE_ALL = 7           # linux/fs.h: wait, write, wait
FALLOC_FL_COLLAPSE_RANGE = 0x08   # linux/falloc.h
TOOLS = ("mount", "umount", "losetup")


class FaultDisk:
    """The disk: `file` is its mount, `device` the loop device on it. See server.py for what it can be told."""

    def __init__(self, size_mib):
        self.directory = tempfile.mkdtemp(prefix="faultdisk-")
        self.file, self.device, self.server, self.requests = os.path.join(self.directory, "disk"), None, None, None
        open(self.file, "wb").close()
        try:
            # A session of its own: Ctrl-C must not end the disk before what stands on it.
            self.server = subprocess.Popen([sys.executable, SERVER, self.file, str(size_mib)], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
            if not self.server.stdout.readline(): raise OSError(self.server.stderr.read().strip().rsplit("\n", 1)[-1])
            self.device = run("losetup", "-f", "--show", self.file).strip()
            self.requests = honest(self.device, 128)
            self.requests.__enter__()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError): raise Skip(f"no disk of ours can be had here: {error}")
            raise

    def __enter__(self): return self

    def __exit__(self, *_): self.close()

    def close(self):
        """The server takes everything away when nobody talks to it any more."""
        if self.requests: self.requests.__exit__(None, None, None)
        if self.server:
            self.server.stdin.close()
            try: self.server.wait(20)
            except subprocess.TimeoutExpired:
                self.server.kill(); self.server.wait()
                subprocess.run(["umount", "-l", self.file], capture_output=True)
            for pipe in (self.server.stdout, self.server.stderr): pipe.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def tell(self, *command):
        """One command, done when this returns."""
        self.server.stdin.write(json.dumps(command) + "\n"); self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        if "error" in answer: raise RuntimeError(f"{command}: {answer['error']}")
        return answer["done"]

    def drop_caches(self):
        """What the kernel has of the disk and needs no more; the next read comes to the disk."""
        device = os.open(self.device, os.O_RDONLY)
        try: fcntl.ioctl(device, BLKFLSBUF)
        finally: os.close(device)
        file = os.open(self.file, os.O_RDONLY)
        try: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally: os.close(file)

    def format(self, kind, *options): format_device(self.device, kind, *options)

    @contextlib.contextmanager
    def mounted(self, *options):
        with mounted(self.device, *options) as directory: yield directory


@contextlib.contextmanager
def honest(device, kib):
    """No request to a loop device is larger than what its file takes or refuses as a whole.

    The loop driver takes a write that its file cut short for done (Linux 6.18). With the usual requests of up to
    1280 KiB a device that has run out of room so loses what it has flushed: one thread, no service.
    """
    with open(f"/sys/block/{os.path.basename(device)}/queue/max_sectors_kb", "r+") as setting:
        before = setting.read(); setting.write(str(kib)); setting.flush()
        try: yield
        finally: setting.write(before); setting.flush()


def format_device(device, kind, *options):
    quiet = {"ext4": ["-q", "-F"], "xfs": ["-q", "-f"]}[kind]
    run(f"mkfs.{kind}", *quiet, *options, device)


@contextlib.contextmanager
def mounted(device, *options):
    """A directory with the file system of `device`; whoever still uses it at the end is no reason to leave it there."""
    directory = tempfile.mkdtemp(prefix="mounted-")
    try:
        run("mount", *(["-o", ",".join(options)] if options else []), device, directory)
        try: yield directory
        finally: unmount(directory)
    finally:
        with contextlib.suppress(FileNotFoundError): os.rmdir(directory)


def unmount(directory, seconds=5):
    until = time.monotonic() + seconds
    while subprocess.run(["umount", directory], capture_output=True).returncode:
        if time.monotonic() > until:
            run("umount", "-l", directory)
            raise AssertionError(f"{directory} is still in use")
        time.sleep(0.05)


def run(*command):
    """The output of a command; its own words when it fails."""
    path = shutil.which(command[0], path=os.environ["PATH"] + ":/usr/sbin:/sbin") or command[0]
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True)
    if done.returncode: raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def extent_block(device, inode):
    """Where an ext4 file keeps the last of its blocks of extents (depth 1), in blocks of the file system."""
    blocks = re.findall(r"^\s*0/\s*1\s+\d+/\s*\d+\s+\d+\s*-\s*\d+\s+(\d+)", run("debugfs", "-R", f"ex <{inode}>", device), re.M)
    assert blocks, "no block of extents at depth 1:\n" + run("debugfs", "-R", f"ex <{inode}>", device)
    return int(blocks[-1])


def checkpoint(directory):
    """ext4 keeps no block in its journal, so that the caches of metadata can be dropped."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
        fcntl.ioctl(fd, EXT4_IOC_CHECKPOINT, (0).to_bytes(4, "little"))
    finally: os.close(fd)


def last_byte(file):
    """Where on the device the last block of a file ends, in bytes."""
    ends = [int(end) for end in re.findall(r"^\s*\d+:\s*\[\d+\.\.\d+\]:\s*\d+\.\.(\d+)", run("xfs_io", "-r", "-c", "fiemap", file), re.M)]
    return (ends[-1] + 1) * 512


def collapse_range(fd, offset, length):
    """Takes blocks out of a file; what was behind them moves up in the file, but not on the device."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, ctypes.c_int64(offset), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, f"fallocate: {os.strerror(number)}")


def write_back(file):
    """Brings the data of a file to the device, and nothing else of it."""
    fd = os.open(file, os.O_RDWR)
    try:
        if ctypes.CDLL(None).sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_ALL): raise OSError("sync_file_range")
    finally: os.close(fd)
