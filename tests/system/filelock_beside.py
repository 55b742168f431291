"""Python writers with the real filelock beside the server on one directory: nothing interleaves or is lost."""
import json, os, subprocess, sys, tempfile, time
from common import Load, Server, Skip, in_parallel, leitstand_verify, seed, setting

# The newest, one that unlinks the lock file on release, and an old one; in a long run the neighbours too.
VERSIONS = setting("FILELOCK_VERSIONS", "4.2.0,3.20.4,3.13.4", "3.13.4,3.20.3,3.20.4,3.29.4,3.29.5,4.2.0").split(",")
SECONDS = setting("BESIDE_SECONDS", 6.0, 30.0)

WRITER = r"""
import json, sys, time, os
sys.path.insert(0, sys.argv[1])
import filelock
data, ident, until = sys.argv[2], sys.argv[3], time.time() + float(sys.argv[4])
n, longest = 0, 0.0
while time.time() < until:
    t = time.time()
    with filelock.FileLock(data + ".lock", timeout=5):
        longest = max(longest, time.time() - t)
        with open(data, "a", encoding="utf-8") as f:
            line = json.dumps({"py": ident, "n": n, "domain": "side.example"}, separators=(",", ":")) + "\n"
            f.write(line[:10]); f.flush(); f.write(line[10:])   # half a line is visible under the lock
    n += 1
    time.sleep(0.003)
print(json.dumps({"n": n, "longest": longest, "version": filelock.__version__}))
"""


def run():
    rng = seed("filelock")
    for version in VERSIONS: install(version)
    for pair in zip(VERSIONS[::2], VERSIONS[1::2] + [None]):   # two at a time, each with a service of its own
        in_parallel(sum(version is not None for version in pair), lambda n: beside(pair[n], rng))


def install(version):
    target = os.path.join(tempfile.gettempdir(), f"leitstand-filelock-{version}")
    if not os.path.isdir(os.path.join(target, "filelock")):
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                               "--target", target, f"filelock=={version}"], capture_output=True, text=True)
        if done.returncode: raise Skip(f"filelock {version} cannot be installed: {done.stderr.strip()[-200:]}")
    return target


def beside(version, rng):
    library = install(version)
    with Server({"LEITSTAND_LOCK_TIMEOUT": "10", "LEITSTAND_DISK_RESERVE": "0"}) as server:
        assert server.up, server.log_text()
        data = os.path.join(server.dir, "side.example.jsonl")
        load = Load(server.port, rng, 8, ["side.example"])
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, library, data, str(k), str(SECONDS)],
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for k in range(2)]
        looks = 0
        while any(w.poll() is None for w in writers):   # half lines are in the file, but never for a look
            code, report = leitstand_verify(server.dir)
            assert code == 0, report
            looks += 1
        results = [w.communicate() for w in writers]
        load.stop()
        assert all(w.returncode == 0 for w in writers), results
        reports = [json.loads(out) for out, _ in results]
        assert server.stop() == 0
        lines = open(data, "rb").read().split(b"\n")
        assert lines.pop() == b"", "torn last line"
        events = [json.loads(line) for line in lines]
        for k, report in enumerate(reports):
            mine = [e["n"] for e in events if e.get("py") == str(k)]
            assert mine == list(range(report["n"])), f"filelock {version}: lines of writer {k} lost or doubled"
        ours = [e["id"] for e in events if "id" in e]
        assert len(ours) == len(set(ours)) and set(load.acked) <= set(ours) <= set(load.sent)
        longest = max(r["longest"] for r in reports)
        print(f"filelock {version}: {sum(r['n'] for r in reports)} Python lines, {len(load.acked)} of ours, longest Python wait {longest:.2f} s, {looks} clean looks")
        assert longest <= 3, longest
        assert looks > 3, "too few looks to prove anything"
        assert len(load.acked) > 200 and sum(r["n"] for r in reports) > 50, "too little load to prove anything"
