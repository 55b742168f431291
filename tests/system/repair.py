"""A real service, poisoned by a sync that fails, comes back by `leitstand repair` and without a restart."""
import json, os, shutil, subprocess, time
from common import BIN, Server, Skip, leitstand_verify
from harness import post, request


def run():
    if not shutil.which("strace"): raise Skip("strace is not installed")
    with Server({"LEITSTAND_DISK_RESERVE": "0"}) as server:
        assert server.up, server.log_text()
        path = os.path.join(server.dir, "x.jsonl")
        for i in range(100): assert post(server.port, "x", {"id": i})[0] == 202
        poison(server, path)
        assert post(server.port, "x", {"id": 101})[0] == 500 and not ready(server), "poisoned"
        assert post(server.port, "other", {})[0] == 202, "other domains go on"
        code, report = leitstand_verify(server.dir)
        assert code == 1 and [f["kind"] for f in report["findings"]] == ["poisoned"], report

        # The disk fails the copy as well: then nothing has changed, and the next attempt does it.
        inode = os.stat(path).st_ino
        copy = ("-P", os.path.join(server.dir, ".torn", "x.jsonl.rewrite"))
        for calls, where in (("write,writev", copy), ("fsync", copy), ("rename,renameat,renameat2", ())):
            trace = ["strace", "-f", "-o", "/dev/null", *where, "-e", f"inject={calls}:error=EIO"]
            done = subprocess.run([*trace, *repair(server)], capture_output=True, text=True)
            assert done.returncode == 1 and "failed: x.jsonl: write the file anew" in done.stdout, (calls, done)
            assert os.stat(path).st_ino == inode and not ready(server), calls
            assert os.listdir(os.path.join(server.dir, ".torn")) == ["x.jsonl.poisoned"], calls

        done = subprocess.run(repair(server), capture_output=True, text=True)
        assert done.returncode == 0, done
        deadline = time.time() + 5
        while not ready(server): assert time.time() < deadline, server.log_text(); time.sleep(0.05)
        assert post(server.port, "x", {"id": 102})[0] == 202
        assert os.listdir(os.path.join(server.dir, ".torn")) == []
        code, report = leitstand_verify(server.dir)
        assert code == 0 and report["lines"] == 102, report
        ids = [json.loads(line)["id"] for line in open(path)]
        assert ids == [*range(100), 102], "what was refused is not there"
        assert server.stop() == 0
    print("repair: poisoned by a failed sync, a copy that fails changes nothing, lifted without a restart")


def repair(server):
    return [BIN, "repair", "--apply", "--data-dir", server.dir]


def poison(server, path):
    """Lets every fdatasync of this one file fail, until one has."""
    tracer = subprocess.Popen(["strace", "-f", "-o", "/dev/null", "-P", path, "-e", "inject=fdatasync:error=EIO",
                               "-p", str(server.p.pid)], stderr=subprocess.PIPE, text=True)
    try:
        if "attached" not in (line := tracer.stderr.readline()): raise Skip(f"strace cannot attach: {line.strip()}")
        answer = post(server.port, "x", {"id": 100})
        assert answer[0] == 500, answer
    finally:
        tracer.terminate(); tracer.wait()


def ready(server):
    return request(server.port, "GET", "/health/ready")[0] == 200
