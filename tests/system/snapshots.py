"""Snapshots under load, beside the service and a Python writer: each is whole and holds all that was acknowledged before."""
import contextlib, hashlib, json, os, re, shutil, subprocess, sys, tempfile, time
import confined, filelock_beside
from common import BIN, Load, Server, find, need, part, seed, setting, verify

ID = re.compile(rb'"id": ?(\d+)')
CALLS = "openat,write,pwrite64,fsync,fdatasync,syncfs,renameat,renameat2,rename"
FULL_EVERY = 10   # snapshots; those between are built on the one before


def run():
    under_load()
    part("snapshots/order", order)


def under_load():
    rng, count = seed("snapshots"), setting("SNAPSHOTS", 10, 20)
    backups = tempfile.mkdtemp(prefix="snapshots-")
    writers = []
    try:
        with Server({"LEITSTAND_LOCK_TIMEOUT": "10", "LEITSTAND_DISK_RESERVE": "0"}) as server, contextlib.ExitStack() as stopped:
            assert server.up, server.log_text()
            part("snapshots/filelock", lambda: writers.append(python_writer(server.dir)))
            load = stopped.enter_context(Load(server.port, rng, 4, ["a", "b.example", "c", "d-1"]))
            time.sleep(0.5)
            took, linked, before, checked, found = [], 0, None, 0, {}
            for n in range(count):
                load.go(); time.sleep(0.1)
                acked = list(load.acked)
                name, base = os.path.join(backups, f"s{n}"), [] if n % FULL_EVERY == 0 else ["--base", before]
                began = time.monotonic()
                said = leitstand("snapshot", "--data-dir", server.dir, "--to", name, "--lock-timeout", "10", *base)
                took.append(time.monotonic() - began)
                load.rest()   # or what is to be looked through grows with the time that looking takes
                linked += said["bytes"] - said["copied_bytes"]
                assert not said["torn_tails"] and not said["skipped"], said
                looked = leitstand("verify", "--snapshot", name)
                assert looked["clean"] and not looked["notes_total"], looked
                # What an earlier one held is there as it was; so only what is new is looked through.
                found = grown(name, found)
                missing = [i for i in acked[checked:] if i not in found[""]]
                assert not missing, f"snapshot {n}: {len(missing)} of {len(acked)} acknowledged events are not in it"
                checked = len(acked)
                if before: shutil.rmtree(before)
                before = name
            for writer in writers: writer.terminate()
            load.stop()
            assert leitstand("verify", "--data-dir", server.dir, "--manifest", os.path.join(before, "manifest.json"))["clean"]
            # The last one as a directory that a service runs on.
            restored = os.path.join(backups, "restored")
            said = leitstand("restore", "--from", before, "--to", restored)
            problems = verify(restored, {i: load.acked[i] for i in acked}, load.sent)
            assert not problems, problems[:10]
            assert server.stop() == 0
        with Server({"LEITSTAND_DISK_RESERVE": "0"}, datadir=restored) as server:
            from harness import post
            assert server.up and post(server.port, "a", {"id": -1})[0] == 202, server.log_text()
            assert server.stop() == 0
        assert len(acked) > 20 * count, f"too little load to prove anything: {len(acked)}"
        took.sort()
        print(f"snapshots: {count} under load, all whole, with {len(acked)} events acknowledged before the last; "
              f"median {took[len(took) // 2]:.2f} s, longest {took[-1]:.2f} s, {linked >> 20} MiB linked, "
              f"{'beside' if writers else 'without'} a Python writer")
    finally:
        for writer in writers: writer.kill(); writer.wait()
        shutil.rmtree(backups, ignore_errors=True)


def order():
    """Every byte and every name is on the disk before the last name is given, which a power cut may come after."""
    need("strace")
    with tempfile.TemporaryDirectory(prefix="order-") as outer:
        outer = os.path.realpath(outer)
        data, side = os.path.join(outer, "data"), os.path.join(outer, "data", ".torn")
        os.makedirs(side)
        for name, size in ("a", 10), ("large", 3 << 20), ("b", 100_000):
            with open(os.path.join(data, name + ".jsonl"), "w") as f: f.write('{"p":"%s","domain":"%s"}\n' % ("x" * size, name))
        with open(os.path.join(side, "b.jsonl.poisoned"), "w") as f: f.write("reason=sync\n")
        together, names = 0, ["a.jsonl", "b.jsonl", "large.jsonl", ".torn/b.jsonl.poisoned", ".torn", "."]
        beside = ["manifest.json", "manifest.json.sha256"]
        for args, to, want in (
            (["snapshot", "--data-dir", data], "s1", names + beside),
            (["snapshot", "--data-dir", data, "--base", os.path.join(outer, "s1")], "s2", ["large.jsonl.000001", *names[3:], *beside]),
            (["restore", "--from", os.path.join(outer, "s2")], "r", names),
        ):
            trace = os.path.join(outer, "trace")
            done = subprocess.run([find("strace"), "-f", "-y", "-s", "1000", "-o", trace, "-e", f"trace={CALLS}", BIN, *args,
                                   "--to", os.path.join(outer, to)], capture_output=True, text=True, env={**os.environ, "LEITSTAND_DISK_RESERVE": "0"})
            assert done.returncode == 0, done
            with open(trace) as f: lines = list(confined.unite(f))
            renames = [n for n, line in enumerate(lines) if " rename" in line and f'"{to}"' in line]
            assert len(renames) == 1, lines
            partial = re.compile(re.escape(os.path.join(outer, to)) + r"\.(?:partial|restoring)-[0-9a-f]+/?")
            before = {partial.sub("", path) or "." for path in on_the_disk(lines[:renames[0]])}
            missing = [name for name in want if name not in before]
            if args[0] == "snapshot": missing += [n for n in ("a", "b", "large") if os.path.join(data, n + ".jsonl") not in before]
            assert not missing, f"{args[0]}: not synced before the name is given: {missing}"
            assert outer in on_the_disk(lines[renames[0]:]), f"{args[0]}: its name is not synced"
            together += any(" syncfs(" in line for line in lines)
            with open(os.path.join(data, "large.jsonl"), "a") as f: f.write('{"domain":"large"}\n')
    print("snapshots/order: two snapshots and a restore, every file and name synced before the last name, and that one after; "
          f"{together} with a sync of the whole file system")


def on_the_disk(lines):
    """Files and directories that were synced after the last write to them; one sync of the file system is one of all that were opened."""
    opened, synced = set(), set()
    for line in lines:
        call = re.search(r" (\w+)\((?:\w+)<([^>]*)>.*\)\s+= \d+(?:<([^>]*)>)?", line)
        if not call: continue
        name, path, result = call.groups()
        if name == "openat": opened.add(result)
        elif name in ("fsync", "fdatasync"): synced.add(path)
        elif name == "syncfs": synced |= opened
        elif name in ("write", "pwrite64"): synced.discard(path)
    return synced


def python_writer(directory):
    """Writes half a line, then the rest, under its lock, until it is stopped."""
    library = filelock_beside.install(filelock_beside.VERSIONS[0])
    data = os.path.join(directory, "side.example.jsonl")
    return subprocess.Popen([sys.executable, "-c", filelock_beside.WRITER, library, data, "0", "3600"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def leitstand(*args):
    done = subprocess.run([BIN, *args, "--json"], capture_output=True, text=True, env={**os.environ, "LEITSTAND_DISK_RESERVE": "0"})
    assert done.returncode == 0 and not done.stderr, (args, done)
    return json.loads(done.stdout)


def manifest(name):
    with open(os.path.join(name, "manifest.json")) as f: return json.load(f)


def content(name, entry):
    return b"".join(open(os.path.join(name, segment["name"]), "rb").read() for segment in entry.get("segments") or [entry])


def grown(name, before):
    """Hash and length of each file, and under "" the ids in all of them; each must begin with what it was before."""
    now = {"": before.get("", set())}
    for entry in manifest(name)["files"]:
        data = content(name, entry)
        sha, length = before.pop(entry["name"], (hashlib.sha256().hexdigest(), 0))
        assert hashlib.sha256(data[:length]).hexdigest() == sha, f"{entry['name']} does not begin with what it was"
        now[""].update(map(int, ID.findall(data, length)))
        now[entry["name"]] = hashlib.sha256(data).hexdigest(), len(data)
    assert set(before) <= {""}, f"gone: {set(before)}"
    return now
