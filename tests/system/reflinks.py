"""Snapshots and restores that share blocks with what they are made of, on btrfs and xfs: whole, and apart from it."""
import contextlib, hashlib, json, os, re, signal, subprocess, tempfile
from common import BIN, Load, Server, find, need, part, seed, verify, wait_until
from full_disk import Ballast, formatted
from harness import post
from snapshots import content, leitstand, manifest

# Two pieces, of which a restore hashes each by itself.
LINES, LINE_BYTES = 40, 1 << 20
BIG = "big.example.jsonl"
ENV = {"LEITSTAND_LOCK_TIMEOUT": "10", "LEITSTAND_DISK_RESERVE": "0"}
MKFS = {"btrfs": [], "xfs": ["-m", "reflink=1"]}


def run():
    for kind in MKFS:
        part(f"reflinks on {kind}", beside_a_service, kind)
        part(f"odd ends on {kind}", odd_ends, kind)
        part(f"a source that is cut on {kind}", cut_source, kind)
        part(f"little room on {kind}", little_room, kind)
    part("subvolumes of btrfs", subvolumes)


@contextlib.contextmanager
def place(kind):
    """A file system that can share blocks, with a data directory in it."""
    need("filefrag")
    with formatted(kind, 512, *MKFS[kind]) as mounted:
        data = os.path.join(mounted, "data"); os.mkdir(data)
        write_big(data)
        yield mounted, data


def write_big(data):
    with open(os.path.join(data, BIG), "wb") as f:
        for i in range(LINES):
            f.write(b'{"n":%d,"pad":"' % i); f.write(b"x" * LINE_BYTES); f.write(b'","domain":"big.example"}\n')


def beside_a_service(kind):
    rng = seed(f"reflinks on {kind}")
    with place(kind) as (mounted, data), tempfile.TemporaryDirectory(prefix="elsewhere-") as elsewhere:
        s0, s1, restored = (os.path.join(mounted, name) for name in ("s0", "s1", "restored"))
        with Server(ENV, datadir=data) as server, Load(server.port, rng, 4, ["a", "b.example"]) as load:
            assert server.up, server.log_text()
            wait_until(lambda: len(load.acked) > 200, 30, "200 events")
            acked = list(load.acked)
            said = leitstand("snapshot", "--data-dir", data, "--to", s0)
            load.rest()
            assert said["copied_bytes"] == 0 and said["bytes"] > LINES * LINE_BYTES, said
            assert_shared(os.path.join(s0, BIG)); assert_shared(os.path.join(data, BIG))
            assert ids(s0) >= set(acked), "an acknowledged event is not in the snapshot"
            before = hashes(s0)
            load.go(); wait_until(lambda: len(load.acked) > len(acked) + 200, 30, "200 more")
            assert post(server.port, "big.example", {"id": -1})[0] == 202
            assert_whole(s0, before)
            said = leitstand("snapshot", "--data-dir", data, "--to", s1, "--base", s0)
            load.stop()
            new = sum(s["bytes"] for entry in manifest(s1)["files"] for s in entry.get("segments", [])[1:])
            assert 0 < said["copied_bytes"] == new < LINES * LINE_BYTES, said
            assert_whole(s1, hashes(s1)); assert_whole(s0, before)
            assert server.stop() == 0
        # A clone of the clone, which a service then runs on.
        free = free_bytes(mounted)
        leitstand("restore", "--from", s0, "--to", restored)
        assert free - free_bytes(mounted) < LINES * LINE_BYTES // 2
        assert_shared(os.path.join(restored, BIG))
        for entry in manifest(s0)["files"]:
            assert sha256(os.path.join(restored, entry["name"])) == entry["sha256"], entry["name"]
        assert not verify(restored, {i: load.acked[i] for i in acked}, load.sent)
        with Server(ENV, datadir=restored) as server:
            for domain in ("big.example", "a", "b.example"):
                for n in range(20): assert post(server.port, domain, {"n": n})[0] == 202, server.log_text()
            assert server.stop() == 0
        flip(os.path.join(restored, BIG), 1000)
        assert_whole(s0, before)
        assert leitstand("verify", "--data-dir", data, "--manifest", os.path.join(s0, "manifest.json"))["clean"]
        # A file in two parts is put together from both.
        leitstand("restore", "--from", s1, "--to", os.path.join(mounted, "both"))
        for entry in manifest(s1)["files"]:
            assert sha256(os.path.join(mounted, "both", entry["name"])) == entry["sha256"], entry["name"]
        # One wrong byte, in the first piece and in the last one.
        for at in (5000, 36 << 20):
            source = sha256(os.path.join(data, BIG))
            flip(os.path.join(s0, BIG), at)
            assert found(s0) == [("wrong_hash", BIG)]
            names = sorted(os.listdir(mounted))
            refused(["restore", "--from", s0, "--to", os.path.join(mounted, "wrong")], 1, f"{BIG} is not what the manifest says")
            assert sorted(os.listdir(mounted)) == names, "something was left"
            assert sha256(os.path.join(data, BIG)) == source
            flip(os.path.join(s0, BIG), at)
        assert_whole(s0, before)
        # Another file system has no blocks to share, there and back.
        said = leitstand("snapshot", "--data-dir", data, "--to", os.path.join(elsewhere, "s"))
        assert said["copied_bytes"] == said["bytes"] > 0, said
        assert_whole(os.path.join(elsewhere, "s"), hashes(os.path.join(elsewhere, "s")))
        for where in (elsewhere, mounted):
            leitstand("restore", "--from", os.path.join(elsewhere, "s"), "--to", os.path.join(where, "back"))
            for name in os.listdir(data):
                if name.endswith(".jsonl"): assert sha256(os.path.join(where, "back", name)) == sha256(os.path.join(data, name))
        print(f"reflinks on {kind}: {len(load.acked)} events beside snapshots that copied nothing; restored as clones, "
              "apart from their source, and a wrong byte is found")


def odd_ends(kind):
    """Torn tails, an end at and beside the end of a block, nothing at all."""
    with place(kind) as (mounted, data):
        ends = {"torn": b'{"id":1,"domain":"torn"}\n{"id":2,"dom', "half": b'{"id"', "empty": b""}
        for bytes_ in (4095, 4096, 4097, 8192): ends[f"to{bytes_}"] = lines(bytes_)
        ends["torn-block"] = lines(4096) + b"y" * 5000
        for domain, text in ends.items():
            with open(os.path.join(data, domain + ".jsonl"), "wb") as f: f.write(text)
        copied = os.path.join(mounted, "copied")
        subprocess.run(["cp", "-r", "--reflink=always", data, copied], check=True)
        for source in (data, copied):
            name = source + "-s"
            said = leitstand("snapshot", "--data-dir", source, "--to", name)
            assert said["copied_bytes"] == 0, said
            assert sorted(t["file"] for t in said["torn_tails"]) == ["half.jsonl", "torn-block.jsonl", "torn.jsonl"], said
            before = hashes(name)
            for domain, text in ends.items():
                sound = text[:text.rfind(b"\n") + 1]
                with open(os.path.join(name, domain + ".jsonl"), "rb") as f: assert f.read() == sound, domain
                with open(os.path.join(source, domain + ".jsonl"), "rb") as f: assert f.read() == text, domain
            # The service cuts the tails off, in blocks that are shared.
            with Server(ENV, datadir=source) as server:
                for domain in ends: assert post(server.port, domain, {"id": 3})[0] == 202, server.log_text()
                assert server.stop() == 0
            assert hashes(name) == before
            assert not [kind for kind, _ in found(name) if kind.startswith(("wrong", "missing_part"))]
            leitstand("restore", "--from", name, "--to", name + "-r")
            for domain, text in ends.items():
                with open(os.path.join(name + "-r", domain + ".jsonl"), "rb") as f:
                    assert f.read() == text[:text.rfind(b"\n") + 1], domain
    print(f"odd ends on {kind}: {len(ends)} files, each cut where its last line ends, and left as it was")


def cut_source(kind):
    """Somebody cuts the file between the look at its end and the clone: no zeros in its place."""
    need("strace")
    with place(kind) as (mounted, data):
        trace = os.path.join(mounted, "trace")
        command = ["strace", "-f", "-o", trace, "-e", "trace=fdatasync", "-e", "inject=fdatasync:signal=SIGSTOP:when=1",
                   BIN, "snapshot", "--data-dir", data, "--to", os.path.join(mounted, "s")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENV})
        try:
            wait_until(lambda: os.path.exists(trace) and "stopped by SIGSTOP" in read(trace), 30, "it is stopped before the clone")
            os.truncate(os.path.join(data, BIG), LINES * LINE_BYTES // 2)
        finally:
            tracees = {int(line.split()[0]) for line in read(trace).splitlines() if line.strip()} if os.path.exists(trace) else set()
            for pid in tracees:
                with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGCONT)
            out, err = child.communicate(timeout=60)
        assert child.returncode == 2 and "became shorter" in err, (child.returncode, out, err)
        assert sorted(n for n in os.listdir(mounted) if n.startswith("s")) == []
    print(f"a source that is cut on {kind}: told, and nothing is left")


def little_room(kind):
    """A file system that has no room for a copy still has room for a clone."""
    with place(kind) as (mounted, data):
        name, restored = os.path.join(mounted, "s"), os.path.join(mounted, "r")
        leitstand("snapshot", "--data-dir", data, "--to", name)
        ballast = Ballast(mounted, spare_bytes=LINES * LINE_BYTES // 2)
        ballast.give_back_spare()
        assert free_bytes(mounted) < LINES * LINE_BYTES, free_bytes(mounted)
        leitstand("restore", "--from", name, "--to", restored)
        assert sha256(os.path.join(restored, BIG)) == sha256(os.path.join(data, BIG))
        leitstand("snapshot", "--data-dir", data, "--to", os.path.join(mounted, "s2"))
        assert_whole(os.path.join(mounted, "s2"), hashes(name))
        ballast.give_back()
    print(f"little room on {kind}: half of what a copy needs is enough for a clone, both ways")


def subvolumes():
    """They have device numbers of their own, and share blocks all the same."""
    need("btrfs")
    with place("btrfs") as (mounted, data):
        other = os.path.join(mounted, "backups")
        subprocess.run([find("btrfs"), "-q", "subvolume", "create", other], check=True)
        assert os.stat(other).st_dev != os.stat(data).st_dev
        said = leitstand("snapshot", "--data-dir", data, "--to", os.path.join(other, "s"))
        assert said["copied_bytes"] == 0, said
        assert_shared(os.path.join(other, "s", BIG))
        leitstand("restore", "--from", os.path.join(other, "s"), "--to", os.path.join(mounted, "r"))
        assert_shared(os.path.join(mounted, "r", BIG))
        assert_whole(os.path.join(other, "s"), hashes(os.path.join(other, "s")))
    print("subvolumes of btrfs: nothing copied, there and back")


def lines(bytes_):
    line = b'{"id":0,"pad":"' + b"p" * 70 + b'"}\n'
    return (line * (bytes_ // len(line) + 1))[:bytes_ - 1] + b"\n"


def read(path):
    with open(path, errors="replace") as f: return f.read()


def sha256(path):
    with open(path, "rb") as f: return hashlib.file_digest(f, "sha256").hexdigest()


def hashes(name):
    """Every data file of a snapshot, as it is on the disk and not in a page cache."""
    paths = {n: os.path.join(name, n) for n in sorted(os.listdir(name)) if not n.startswith("manifest")}
    for path in paths.values():
        with open(path, "rb") as f: os.fsync(f.fileno()); os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {n: sha256(path) for n, path in paths.items()}


def assert_whole(name, before):
    assert leitstand("verify", "--snapshot", name)["clean"], name
    assert hashes(name) == before, f"{name} has changed"


def ids(name):
    text = b"".join(content(name, entry) for entry in manifest(name)["files"] if entry["name"] != BIG)
    return set(map(int, re.findall(rb'"id": ?(\d+)', text)))


def free_bytes(mounted):
    os.sync()
    at = os.statvfs(mounted)
    return at.f_bavail * at.f_frsize


def assert_shared(path):
    """All blocks but a few at the end are shared with another file."""
    said = subprocess.run([find("filefrag"), "-s", "-v", path], capture_output=True, text=True, check=True).stdout
    extents = re.findall(r"^ *\d+: +\d+\.\. +\d+: +\d+\.\. +\d+: +(\d+):(.*)$", said, re.M)
    whole, shared = (sum(int(n) for n, flags in extents if word in flags) for word in ("", "shared"))
    assert whole >= os.stat(path).st_size // 4096 and whole - shared <= 32, f"{shared} of {whole} blocks are shared\n{said}"


def flip(path, at):
    with open(path, "r+b") as f:
        f.seek(at); byte = f.read(1)[0]
        f.seek(at); f.write(bytes([byte ^ 1]))


def found(name):
    done = subprocess.run([BIN, "verify", "--snapshot", name, "--json"], capture_output=True, text=True)
    return [(f["kind"], f["file"]) for f in json.loads(done.stdout)["findings"]]


def refused(args, code, word):
    done = subprocess.run([BIN, *args], capture_output=True, text=True, env={**os.environ, **ENV})
    assert done.returncode == code and word in done.stderr, done
