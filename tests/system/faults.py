"""Every system call of an append fails in every way: the answer, the old bytes, and life afterwards."""
import collections, json, os
from common import TRACEABLE, Server, Skip, Tracer, need, part, paths_of, problem, ready, setting, verify, wait_until
import common

ERRORS = ["EIO", "ENOSPC", "EDQUOT", "EFBIG", "EINTR", "EACCES", "EMFILE", "ENFILE", "EROFS"]
NO_ROOM = {"ENOSPC", "EDQUOT", "EFBIG"}
# Too much is open, here or in the whole system: the disk is not broken, and later it may go well.
USED_UP = {"EMFILE", "ENFILE"}
OLD = b'{"old":1}\n{"old":2}\n'
TORN = b'{"torn":"ye'

# REFUSED: nothing was written, the next append may go well. SYNC and CUT: nobody knows what is on
# the disk, so the domain is refused until its file is replaced. HARMLESS: after the fact.
# COPY: the sync of a torn tail's copy failed; refused as well, but never tried again.
REFUSED, SYNC, CUT, COPY, HARMLESS = "refused", "sync", "cut", "copy", "harmless"
# In a short run, of the calls that poison: half a second each.
FEW_ERRORS = ["EIO", "ENOSPC", "EINTR"]

Call = collections.namedtuple("Call", "name syscall file nth fault torn")
CALLS = [
    Call("open lock", "openat", "lock", 1, REFUSED, False),
    Call("fstat lock", "fstat", "lock", 1, REFUSED, False),
    Call("flock", "flock", "lock", 1, REFUSED, False),
    Call("stat lock", "newfstatat", "lock", 1, REFUSED, False),
    Call("stat data", "newfstatat", "data", 1, REFUSED, False),
    Call("open data", "openat", "data", 1, REFUSED, False),
    Call("fstat data", "fstat", "data", 1, REFUSED, False),
    Call("pread", "pread64", "data", 1, REFUSED, True),
    Call("pread, second", "pread64", "data", 2, REFUSED, True),
    Call("pread, third", "pread64", "data", 3, REFUSED, True),
    Call("pread of copy", "pread64", "data", 4, REFUSED, True),
    Call("fsync .torn", "fsync", "torn", 1, COPY, True),
    Call("ftruncate", "ftruncate", "data", 1, REFUSED, True),
    Call("writev", "writev", "data", 1, REFUSED, False),
    Call("fdatasync", "fdatasync", "data", 1, SYNC, False),
    Call("fsync directory", "fsync", "root", 1, SYNC, False),
    Call("unlock", "flock", "lock", 2, HARMLESS, False),
    Call("close lock", "close", "lock", 1, HARMLESS, False),
    Call("close data", "close", "data", 1, HARMLESS, False),
]
# A real short write at the file size limit, and then the cut fails.
ROLLBACKS = [
    Call("fstat after short write", "fstat", "data", 2, CUT, False),
    Call("ftruncate after short write", "ftruncate", "data", 1, CUT, False),
    Call("fdatasync after short write", "fdatasync", "data", 1, SYNC, False),
]
# More than the probe after a failed sync writes (16 KiB).
LIMIT = 32768


def run():
    need("strace")
    # 1 to 3: so many appends, each of which makes the call again; "new": the file is not there.
    turns = setting("TURNS", "1,new", "1,2,3,new").split(",")
    table, failures = {}, []
    for call in CALLS: matrix(call, turns, table, failures)
    part("faults after a short write", rollbacks, table, failures)
    width = max(map(len, table))
    print("faults: " + " " * width + " ".join(f"{e:>7}" for e in ERRORS))
    for name, row in table.items():
        print(f"        {name:{width}}" + " ".join(f"{row[e][0]:>3}/{sum(row[e]):<3}" for e in ERRORS))
    for failure in failures[:40]: print("faults: " + failure)
    cells = sum(sum(cell) for row in table.values() for cell in row.values())
    print(f"faults: {cells} cells, {cells - len(failures)} as they must be, {len(failures)} not")
    assert not failures, f"{len(failures)} cells"


def rollbacks(table, failures):
    need("prlimit")
    for call in ROLLBACKS: matrix(call, ["1"], table, failures, wrap=("prlimit", f"--fsize={LIMIT}"))


def matrix(call, turns, table, failures, wrap=()):
    row = table.setdefault(call.name, {error: [0, 0] for error in ERRORS})
    with Server({"LEITSTAND_DISK_RESERVE": "0"}, wrap=(*wrap, *TRACEABLE)) as server:
        assert server.up, server.log_text()
        for turn in turns:
            # In a new file there is nothing to read, to cut or to close.
            if turn == "new" and call.name not in ("open lock", "fstat lock", "flock", "stat lock", "stat data", "open data",
                                                   "fstat data", "writev", "fdatasync", "fsync directory", "unlock"): continue
            for error in ERRORS if common.LONG or call.fault not in (SYNC, CUT) else FEW_ERRORS:
                try:
                    cell(server, call, turn, error, short=bool(wrap))
                    row[error][0] += 1
                except Skip: raise
                except (AssertionError, OSError, ValueError) as why:
                    row[error][1] += 1
                    failures.append(f"{call.name}, {error}, turn {turn}: {type(why).__name__} {why}")
                    unpoison(server)
        if server.p.poll() is not None: failures.append(f"{call.name}: the service died: {server.log_text()[-400:]}")
        failures += [f"{call.name}: {p}" for p in verify(server.dir, {}, {}) if "domain" not in p]


def cell(server, call, turn, error, short):
    domain = f"t{turn}.{error.lower()}"
    file = os.path.join(server.dir, domain + ".jsonl")
    sound, event = b"", {"n": 1}
    if short:
        sound = b'{"old":"' + b"x" * (LIMIT - 111) + b'"}\n'
        event = {"long": "y" * 200}
        with open(file, "wb") as f: f.write(sound)
    elif turn != "new":
        sound = OLD
        with open(file, "wb") as f: f.write(sound)
        # Closing needs something open.
        for n in range(int(turn) - 1 + call.name.startswith("close")):
            assert problem(server.port, domain, {"before": n})[0] == 202
            sound += line(domain, {"before": n})
            stand_in(file, sound)
    before = sound + (TORN if call.torn else b"")
    if call.torn:
        with open(file, "ab") as f: f.write(TORN)
    # The lock file was replaced: it is locked twice before it is unlocked.
    nth = call.nth + (call.name == "unlock" and turn in ("2", "3"))
    names = {"lock": domain + ".jsonl.lock", "data": domain + ".jsonl", "torn": ".torn", "root": ""}
    paths = [server.dir] if call.file == "root" else paths_of(server, names[call.file])
    # strace counts for each thread, and on one of them somebody may look before whether the domain is new. That look may
    # fail; so all of them do. A call that was interrupted is made again, until it is not.
    when = f"{nth}+" if call.name == "stat data" and error != "EINTR" else nth
    with Tracer(server, paths, f"trace={call.syscall}", f"inject={call.syscall}:error={error}:when={when}") as tracer:
        status, answer, seconds = problem(server.port, domain, event)
        # The directory belongs to all domains.
        if call.file != "root": alive(server)
    hit = tracer.injected()
    assert hit, f"the fault was not reached: {tracer.lines}"
    if call.name == "unlock": assert "LOCK_UN" in hit[0], hit
    want, written, poisoned = expected(call, error)
    if short and want == 202: want, written = 507, "no"
    told = (status, answer.get("written"))
    assert told == (want, written), f"{told} instead of {(want, written)}: {answer} {hit}"
    assert seconds < 2, f"the answer took {seconds:.1f} s"
    if want == 507: assert answer["detail"] == "insufficient storage", answer
    if want == 500: assert answer["detail"] == "storage error", answer
    # A probe that syncs the directory too, on another thread, fails as well; until the next one nothing is written.
    if call.file == "root": wait_until(lambda: problem(server.port, "other", {"n": 0})[0] == 202, 3, "the next probe succeeds")
    if want == 503: assert answer["detail"] == "busy" and int(answer["headers"]["retry-after"]) >= 1, answer
    data = open(file, "rb").read() if os.path.exists(file) else b""
    if want == 202: sound += line(domain, event); assert data == sound, f"{data[-200:]!r}"
    elif call.fault == CUT and poisoned: assert data.startswith(before), "the old bytes changed"
    else: assert data == before, f"{data[-200:]!r} instead of {before[-200:]!r}"
    alive(server)
    event = {"n": 2}
    if poisoned:
        again, answer, _ = problem(server.port, domain, event)
        assert (again, answer.get("written")) == (500, "no"), f"poisoned, and then {again} {answer}"
        assert ready(server.port) == 503, "poisoned, and yet ready"
        stand_in(file, sound)
        # By itself, or with the next append.
        if error == "EIO": wait_until(lambda: ready(server.port) == 200, 2, "ready after the file was replaced")
    again, answer, _ = problem(server.port, domain, event)
    assert again == 202, f"the fault is gone, and yet {again} {answer}"
    assert ready(server.port) == 200
    data = open(file, "rb").read()
    assert data == sound + line(domain, event), f"afterwards {data[-200:]!r}"
    if call.torn:
        kept = [n for n in os.listdir(os.path.join(server.dir, ".torn")) if n.startswith(f"{domain}.jsonl.")]
        # An append that failed between copy and cut leaves its copy, and the next one finds it.
        assert len(kept) == 1, kept
        assert all(open(os.path.join(server.dir, ".torn", n), "rb").read() == TORN for n in kept)


def expected(call, error):
    """Status, `written`, poisoned: docs/durability.md."""
    if call.fault == HARMLESS: return 202, None, False
    if call.fault == SYNC: return 500, "maybe", True   # also EINTR: a failed sync is never tried again
    if error == "EINTR" and call.fault != COPY: return 202, None, False
    if call.fault == CUT: return 500, "maybe", True
    return (507 if error in NO_ROOM else 503 if error in USED_UP else 500), "no", False


def line(domain, event): return json.dumps({**event, "domain": domain}, separators=(",", ":")).encode() + b"\n"


def stand_in(file, data):
    """Another file under the same name, as after a repair, and a lock file that was unlinked: everything is opened anew."""
    with open(file + ".new", "wb") as f: f.write(data)
    os.replace(file + ".new", file)
    if os.path.exists(file + ".lock"): os.unlink(file + ".lock")


def unpoison(server):
    """So that a failed cell does not make the next ones fail."""
    for name in os.listdir(server.dir):
        if name.endswith(".jsonl"):
            with open(os.path.join(server.dir, name), "rb") as f: stand_in(f.name, f.read())


def alive(server):
    status, answer, seconds = problem(server.port, "other", {"n": 0})
    assert status == 202 and seconds < 1, f"another domain: {status} after {seconds:.2f} s, {answer}"
