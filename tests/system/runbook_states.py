"""For runbook.py: the states of a service, and the commands that are run in each, section by section."""
import fcntl, json, os, socket
from collections import namedtuple
from common import LONG, ROOT, TOKEN, need, problem, wait_until
import common, harness, repair

State = namedtuple("State", "steps env args before prepare", defaults=({}, (), None, None))
# The next command of the section that begins with `begins` must end with `code` and print what `prints` matches, within
# so many seconds of trying again. `first` is called before; `instead` is a replacement in the command.
Step = namedtuple("Step", "begins prints code first within instead", defaults=("", 0, None, 0, ("", "")))

NOT_RUN = {
    "Invoke-RestMethod": "needs PowerShell",
    "(Invoke-RestMethod": "needs PowerShell",
    "git clone": "needs the address of the repository",
    "umount": "would take a volume away from this machine",
    "journalctl": "needs a service of systemd",
    "make dev": "builds, and stays in the foreground",
    "make test": "would run this check again",
    "make check": "is no part of a running service",
}


def event(place, domain="health.test"): return problem(place.server.port, domain, {"a": 1})


def write(place, name, text):
    with open(os.path.join(place.work, name), "w") as file: file.write(text)


def stop(place):
    """The service, whoever started it: the check or a command before."""
    place.server.stop()
    place.do("kill $(jobs -p) 2>/dev/null; wait")


def with_file(place):
    with open(os.path.join(ROOT, "RUNBOOK.md")) as file: shown = file.read().split("```toml\n")[1].split("```")[0]
    write(place, "leitstand.toml", place.here(shown))
    write(place, "secret", TOKEN)


def several(place):
    for domain in ("a", "b", "c", "a", "b", "c"): event(place, domain)


def unfinished(place): write(place, "data/x.jsonl", '{"domain":"x","n":1}\n{"domain":"x","n"')


def appended(place): event(place, "x")


def damaged(place):
    """Line 12 begins at 3456, has 80 bytes and is no JSON."""
    lines = [json.dumps({"domain": "x", "pad": ""})] * 11
    lines[0] = json.dumps({"domain": "x", "pad": "x" * (3456 - 11 * (len(lines[0]) + 1))})
    write(place, "data/x.jsonl", "\n".join(lines) + "\n" + '{"domain":"x"' + "?" * 67 + "\n" + '{"domain":"x"}\n')


def poisoned(place):
    need("strace")
    event(place, "x")
    repair.poison(place.server, os.path.join(place.data, "x.jsonl"))


def refused_as_full(place):
    write(place, "data/x.jsonl", '{"domain":"x"}\n')
    assert event(place)[0] == 507


def stop_without_old(place):
    stop(place)
    place.do("rm -r $D.old")


def limited(place):
    assert [event(place)[0] for _ in range(4)] == [202, 202, 429, 429]
    assert [harness.post(place.server.port, "x", {}, token="wrong")[0] for _ in range(3)] == [401, 401, 429]


def connect(place, count, sent=b""):
    """So many clients that send this and no more."""
    connections = [socket.create_connection(("127.0.0.1", place.server.port)) for _ in range(count)]
    place.later += [connection.close for connection in connections]
    for connection in connections: connection.sendall(sent)
    return connections


def all_but_one(length):
    """A request that lacks the last byte of its body."""
    head = ["POST /v1/ingest?domain=x HTTP/1.1", "Host: x", f"X-Auth: {TOKEN}", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*head, "", " " * (length - 1)]).encode()


def slow(place):
    assert connect(place, 1, all_but_one(100))[0].recv(100).startswith(b"HTTP/1.1 408 ")
    connect(place, 3)


def replaced(place):
    file = os.path.join(place.data, "x.jsonl")
    with open(file, "rb") as old, open(file + ".new", "wb") as new: new.write(old.read())
    os.replace(file + ".new", file)


def displaced(place):
    """Another directory for one request, then the old one again."""
    os.rename(place.data, place.data + ".away"); os.mkdir(place.data)
    assert event(place)[0] == 500
    os.rmdir(place.data); os.rename(place.data + ".away", place.data)
    wait_until(lambda: event(place)[0] == 202, 2, "the old directory is taken again")


def full_of_bodies(place):
    connect(place, 4, all_but_one(1 << 18))
    def figures(): return harness.request(place.server.port, "GET", "/metrics", wait=0.0)[2]
    wait_until(lambda: b"leitstand_in_flight_bytes 1048572\n" in figures(), 10, "all of them is there")
    told = event(place)
    assert told[0] == 503, told


def full_of_connections(place):
    # With a token, or they would make way for others; and the health pages are answered all the same.
    asked = f"GET /version HTTP/1.1\r\nHost: x\r\nX-Auth: {TOKEN}\r\n\r\n".encode()

    def busy(): return harness.request(place.server.port, "GET", "/version", [("X-Auth", TOKEN)], wait=0.0)[0] == 503
    wait_until(lambda: connect(place, 1, asked) and busy(), 10, "busy")
    assert common.ready(place.server.port) == 200


def locked(place):
    event(place, "x")
    held = open(os.path.join(place.data, "x.jsonl.lock"))
    fcntl.flock(held, fcntl.LOCK_EX)
    place.later.append(held.close)
    status, answer, _ = event(place, "x")
    assert status == 503, answer


OK, NOTHING = '"status":"ok"', r"\A\s*\Z"
# Where this runs, the file system may have no journal; that is told once, at the start.
NOTHING_OF_THE_SERVICE = r"\A(\S+ +WARN \S+ the data directory is .*\n)?\s*\Z"
BY_CLIENT = r"^ +[1-9]\d* client=127\.0\.0\.1$"
VERIFIED = "^[1-9].* files?, .*: 0 findings, 0 notes, 0 not checked$"
DRILLED = ("drills", "drills" if LONG else "drills --seconds 4 --snapshot-every 1s")

STATES = {
    "well": State(env={"LEITSTAND_HEARTBEAT_FILE": "/run/leitstand/heartbeat"}, prepare=event, steps={
        "RUNBOOK.md#First minute": [
            Step("curl -s $U/health/live", OK), Step("curl -s $U/health/ready", r'"status":"ok"(?!.*false)'),
            Step("curl -s $U/metrics", "^leitstand_poisoned_domains 0$"), Step("grep", NOTHING_OF_THE_SERVICE)],
        "RUNBOOK.md#Sixty-second check": [
            Step("leitstand doctor", "^[1-9][0-9]* ok, .*, 0 failed$"), Step("leitstand doctor --url", ", 0 failed$"),
            Step("curl -fsS $U/health/ready", OK), Step("curl -fsS", r'"version":"\d'), Step("curl -fsS $U/metrics", "^# TYPE "),
            Step("curl -fsS $U/api", '^  "disk_free_bytes": '), Step("curl -fsS", '^      "name": "health.test"')],
        "RUNBOOK.md#Incident": [
            Step("leitstand support-bundle", r"\A[1-9]\d* files in "), Step("ls", "^running-config.json$")],
        "RUNBOOK.md#Read-only": [
            Step("curl", '"on":true.*"drained":true'), Step("curl", r'^\{"on":false\}$'),
            Step("curl", r'^\{"on":false\}$')],
        "RUNBOOK.md#Throttle": [
            Step("curl", '"rate":"10/second".*"ends"'), Step("curl", '"rate":"10/second".*"ends"'),
            Step("curl", r'^\{"rate":null\}$')],
        "RUNBOOK.md#Stats": [
            Step("curl", '"name": "health.test"'), Step("curl", '"lines": 1,'), Step("after=", "^31 1 health.test$"),
            Step("curl", '^  "last_success_at": "?[0-9]')],
        "RUNBOOK.md#Too many open files": [Step("P=", NOTHING), Step("grep", r"^Max open files +\d"), Step("ls", r"^[1-9]\d*$")],
        "RUNBOOK.md#Logs dropped": [Step("curl", "^leitstand_log_lines_dropped_total 0$")],
        "README.md#First event": [Step("curl", "^ok$"), Step("cat"), Step("printf", NOTHING), Step("curl", "^ok$")],
        "RUNBOOK.md#Heartbeat": [
            Step("leitstand healthcheck", "last append", within=10), Step("leitstand healthcheck", "last append", within=10)],
    }),
    "started anew": State(prepare=stop, steps={
        "RUNBOOK.md#Start": [
            Step("leitstand config check", "^# configuration ok"), Step("leitstand serve", NOTHING), Step("curl", OK), Step("curl", "^ok$"),
            Step("tail")],
        "RUNBOOK.md#Stop": [Step("kill", NOTHING), Step("tail", "stopped, 0 writes pending", within=10)],
    }),
    "below the reserve": State(env={"LEITSTAND_DISK_RESERVE": str(1 << 62)}, prepare=refused_as_full, steps={
        "RUNBOOK.md#Sixty-second check": [
            Step("leitstand doctor", "^FAIL +ready +disk_reserve", code=1),
            Step("leitstand doctor --url", "^FAIL +ready +disk_reserve", code=1)],
        "RUNBOOK.md#Not ready": [Step("curl", '"status":"unavailable".*"disk_reserve":false')],
        "RUNBOOK.md#Full disk": [
            Step("df", r"(?s)Use%.*IUse%"), Step("du", r"\bdata/x.jsonl$"), Step("grep", "disk reserve: no storage space")],
    }),
    "with a TOML file": State(args=("--config", "leitstand.toml"), before=with_file, env={
        "LEITSTAND_TOKEN": None, "LEITSTAND_DATA_DIR": None, "LEITSTAND_RATE_LIMIT": None, "LEITSTAND_LOG_FORMAT": "text"}, steps={
        "RUNBOOK.md#Change the configuration": [
            Step("leitstand config check", "leitstand.toml"), Step("curl", '"rate_limit": "600/minute"'),
            Step("curl", r'(?s)\A\{\}\n.*"successful": true'), Step("sed", NOTHING), Step("kill", NOTHING),
            Step("grep", "configuration read anew", within=10), Step("curl", '"level": "DEBUG"'), Step("curl", '"level": "DEBUG"'),
            Step("curl", '"value": "900/minute"')],
    }),
    "with named tokens": State(steps={
        "RUNBOOK.md#Tokens: give, rotate, revoke": [
            Step("leitstand token add"), Step("leitstand token list", r"^sensor-7 .*app\.\*"), Step("leitstand token rotate"),
            Step("curl", OK), Step("grep", NOTHING), Step("leitstand token revoke", "sensor-7"), Step("grep", 'token_revoked')],
    }),
    "with a backup": State(env={"LEITSTAND_SNAPSHOT_DIR": "/var/backups/leitstand"}, prepare=several, steps={
        "RUNBOOK.md#Take a snapshot": [
            Step("S=", NOTHING), Step("mkdir", NOTHING), Step("leitstand snapshot", "^snapshot "),
            Step("leitstand snapshot", "; 0 bytes copied"), Step("curl", '"id":')],
        "RUNBOOK.md#Check a snapshot": [
            Step("leitstand verify --snapshot", "0 findings"), Step("leitstand verify --data-dir", "0 findings")],
        "RUNBOOK.md#Keep it elsewhere": [
            Step("leitstand snapshot", NOTHING), Step("tar", NOTHING), Step("leitstand verify --snapshot", "0 findings")],
        "RUNBOOK.md#With your own backup": [Step("leitstand drill", "^recovery drill passed: ")],
        "RUNBOOK.md#Restore": [
            Step("mv", NOTHING, first=stop), Step("leitstand restore", "^restored "), Step("leitstand verify", VERIFIED),
            Step("leitstand serve", NOTHING), Step("curl", OK)],
        "RUNBOOK.md#Backup by copy": [
            Step("B=", NOTHING, first=unfinished), Step("cp", NOTHING), Step("for", NOTHING), Step("for", r"\A2\n2\n2\n1\n\Z"),
            Step("mv", NOTHING, first=stop_without_old), Step("mkdir", NOTHING), Step("cp", NOTHING), Step("sync", NOTHING),
            Step("leitstand serve", NOTHING), Step("curl", OK)],
    }),
    "lost": State(steps={"RUNBOOK.md#With a load of its own": [Step("leitstand drill", "^recovery drill passed: ", instead=DRILLED)]}),
    "with damage": State(prepare=damaged, steps={
        "RUNBOOK.md#Check the data": [Step("leitstand verify", "line 12, offset 3456, 80 bytes", code=1)],
        "RUNBOOK.md#Damaged lines": [
            Step("tail", r'\A\{"domain":"x"\?+\n\Z'), Step("sed", NOTHING, first=stop), Step("leitstand verify", " 0 findings")],
    }),
    "sound": State(prepare=several, steps={
        "RUNBOOK.md#Check the data": [Step("leitstand verify", VERIFIED)],
        "RUNBOOK.md#Another data directory": [Step("findmnt", r"^TARGET(.*\n)+ *\d+ drwx", first=displaced)],
    }),
    "after a failed sync": State(prepare=poisoned, steps={
        "RUNBOOK.md#Failed sync": [
            Step("dmesg"), Step("findmnt", "^TARGET .*FSTYPE"), Step("df", "^Filesystem"), Step("grep", "reason"),
            Step("curl", OK, first=replaced, within=2)],
    }),
    "poisoned": State(prepare=poisoned, steps={
        "RUNBOOK.md#Poisoned domain": [
            Step("grep", "reason"), Step("dmesg"), Step("leitstand verify", "poisoned", code=1),
            Step("leitstand repair", "x.jsonl: write the file anew", code=1),
            Step("leitstand repair", "done: x.jsonl: write the file anew"), Step("sleep", NOTHING), Step("curl", OK),
            Step("cd $D", NOTHING, first=poisoned), Step("cp", NOTHING), Step("jq", "^2$"), Step("wc", "^2$"), Step("mv", NOTHING),
            Step("cd -"), Step("sleep", NOTHING), Step("curl", OK)],
    }),
    "locked": State(prepare=locked, steps={
        "RUNBOOK.md#Lock timeout": [Step("fuser", r"/x\.jsonl\.lock:"), Step("lslocks", rf" {os.getpid()} .*WRITE.*/x\.jsonl\.lock$")],
    }),
    "with a torn tail": State(before=unfinished, prepare=appended, steps={
        "RUNBOOK.md#Torn tails": [Step("ls", r" x\.jsonl\.21\.\d+$")],
    }),
    "refusing": State(env={"LEITSTAND_RATE_LIMIT": "2/day", "LEITSTAND_AUTH_RATE_LIMIT": "2/day"}, prepare=limited, steps={
        "RUNBOOK.md#Rate limits and 429": [
            Step("curl", r'^leitstand_refused_total\{reason="rate_limited"\} 2$'), Step("grep", BY_CLIENT)],
        "RUNBOOK.md#Tokens: give, rotate, revoke": [Step("grep -E 'status=401'", BY_CLIENT)],
        "RUNBOOK.md#Wrong tokens and 429": [Step("grep", BY_CLIENT)],
    }),
    "with slow clients": State(env={"LEITSTAND_BODY_TIMEOUT": "1"}, prepare=slow, steps={
        "RUNBOOK.md#Slow clients": [Step("ss", "^3$", within=5), Step("curl", r'^leitstand_refused_total\{reason="body_timeout"\} 1$')],
    }),
    "full of bodies": State(env={"LEITSTAND_MAX_BODY": "256KiB", "LEITSTAND_MAX_IN_FLIGHT": "1MiB"}, prepare=full_of_bodies, steps={
        "RUNBOOK.md#Busy": [Step("curl", "^leitstand_in_flight_bytes 1048572$")],
    }),
    "full of connections": State(env={"LEITSTAND_MAX_CONNECTIONS": "8"}, prepare=full_of_connections, steps={
        "RUNBOOK.md#Busy": [Step("curl", NOTHING, code=1)],
    }),
}
