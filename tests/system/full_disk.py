"""A full disk and foreign permissions on the real binary: the recorded cases that need root."""
import base64, json, os, shutil, subprocess, tempfile
from common import ROOT, Server, Skip, verify
from harness import post, request, TOKEN


def run():
    if os.geteuid() != 0: raise Skip("needs root (tmpfs, another user)")
    full_disk(); file_size_limit(); foreign_permissions()


def full_disk():
    directory = tempfile.mkdtemp(prefix="full-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory]).returncode:
        raise Skip("cannot mount a tmpfs")
    try:
        path = os.path.join(directory, "example.com.jsonl")
        with Server({"LEITSTAND_DISK_RESERVE": "0"}, datadir=directory) as server:
            assert post(server.port, "example.com", {"old": 1})[0] == 202
            ballast = os.path.join(directory, "ballast")
            with open(ballast, "wb", buffering=0) as f:
                try:
                    while f.write(b"z" * 4096): pass
                except OSError: pass
            before = open(path, "rb").read()
            for _ in range(20):
                answer = post(server.port, "example.com", {"a": "y" * 6000})
                assert answer[0] == 507 and json.loads(answer[2]) == {"detail": "insufficient storage"}, answer
                assert open(path, "rb").read() == before, "a refused event changed the file"
            batch = [{"i": i, "p": "z" * 500} for i in range(20)]
            assert post(server.port, "example.com", batch)[0] == 507
            assert post(server.port, "brand.new", {"a": "y" * 6000})[0] == 507
            assert open(path, "rb").read() == before
            ready = request(server.port, "GET", "/health/ready")
            os.unlink(ballast)
            assert post(server.port, "example.com", {"new": 1})[0] == 202, "the first good request after space is back"
            assert request(server.port, "GET", "/health/ready")[0] == 200, ready
        with Server({}, datadir=directory) as server:   # the default reserve: 1 % of 256 KiB
            assert post(server.port, "example.com", {"new": 2})[0] == 202
        with Server({"LEITSTAND_DISK_RESERVE": "1MiB"}, datadir=directory) as server:
            assert post(server.port, "example.com", {"new": 3})[0] == 507
            assert request(server.port, "GET", "/health/ready")[0] == 503
        assert not verify(directory, {}, {})
        print("full disk: 507 each time, the old bytes untouched, the first request after space is back succeeds")
    finally:
        subprocess.run(["umount", directory]); os.rmdir(directory)


def file_size_limit():
    wrap = ("prlimit", "--fsize=4096")
    if not shutil.which("prlimit"): raise Skip("prlimit is not installed")
    with Server({"LEITSTAND_DISK_RESERVE": "0", "LOG_LEVEL": "ERROR"}, wrap=wrap) as server:
        assert post(server.port, "a", {"n": 1})[0] == 202
        assert post(server.port, "a", {"p": "x" * 5000})[0] == 507, "RLIMIT_FSIZE is EFBIG, not the end of the process"
        assert post(server.port, "a", {"n": 2})[0] == 202
        assert not verify(server.dir, {}, {})
    print("file size limit: 507, and the service goes on")


def foreign_permissions():
    nobody = 65534
    outer = tempfile.mkdtemp(prefix="perm-")
    os.chmod(outer, 0o755)
    directory, cwd = os.path.join(outer, "data"), os.path.join(outer, "cwd")
    os.mkdir(directory); os.mkdir(cwd); os.chown(directory, nobody, nobody); os.chown(cwd, nobody, nobody)
    binary = os.path.join(outer, "leitstand")
    import harness
    shutil.copy(harness.BIN, binary); os.chmod(binary, 0o755)
    kept, harness.BIN = harness.BIN, binary
    try:
        with Server({}, datadir=directory, cwd=cwd, user=nobody) as server:
            assert server.up, server.log_text()
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
        harness.BIN = kept
        shutil.rmtree(outer, ignore_errors=True)
