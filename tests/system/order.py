"""strace: every 2xx comes after a successful sync that began when its write was over: fdatasync of its file, and of the
directory for a new one, or syncfs."""
import re, shutil, threading, http.client, os
from common import Server, Skip, TOKEN, setting, wait_until

CALL = re.compile(r"^(\d+)\s+(\w+)\((.*)$")


def run():
    if not shutil.which("strace"): raise Skip("strace is not installed")
    trace = "/tmp/leitstand-order.%d" % os.getpid()
    # -D: the signal to stop reaches the service, not strace.
    wrap = ("strace", "-D", "-f", "-y", "-s", "4096", "-o", trace, "-e", "trace=write,writev,sendto,sendmsg,fdatasync,fsync,syncfs")
    answers = setting("ANSWERS", 200, 10_000)
    with Server({"LEITSTAND_FSYNC": "always"}, wrap=wrap) as server:
        assert server.up, server.log_text()
        clients, bad = 8, []

        def client(n):
            conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            for i in range(answers // clients):
                key = f"mark-{n}-{i}-end"
                conn.request("POST", f"/v1/ingest?domain=d{(n + i) % 5}", '{"k":"%s"}' % key,
                             {"X-Auth": TOKEN, "Content-Type": "application/json", "X-Request-ID": key})
                answer = conn.getresponse(); answer.read()
                if answer.status != 202: bad.append(answer.status)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert not bad, bad
    # strace ends a little after the service.
    wait_until(lambda: "+++ exited with 0 +++" in open(trace, errors="replace").read().rsplit("\n", 2)[-2], 10, "the whole trace")
    checked, dirs, whole = check(open(trace, errors="replace").read().split("\n"))
    os.unlink(trace)
    print(f"order: {checked} answers, each after a sync that began after its write; {whole} syncs served several domains; {dirs} new files, each durable by name")
    assert checked == answers and dirs == 5, (checked, dirs)


def check(lines):
    written, synced, entered, checked, whole = {}, set(), set(), 0, 0  # id -> file; ids on disk; files with a durable name
    waiting = {}                                                       # pid -> (call, path, ids it is about)
    for line in lines:
        m = re.match(r"^(\d+)\s+(?:<\.\.\. (\w+) resumed>)?(.*)$", line)
        if not m: continue
        pid, resumed, rest = m.groups()
        begin = re.match(r"^(\w+)\((\d+)<([^>]*)>(.*)$", rest) if not resumed else None
        if begin:
            call, _, path, args = begin.groups()
            ids = re.findall(r"mark-\d+-\d+-end", args)
            if "HTTP/1.1 202" in args:
                for i in ids:
                    assert i in synced, f"{i} was acknowledged before its sync"
                    assert written[i] in entered, f"{i} was acknowledged before the directory was synced"
                    checked += 1
                continue
            if path.endswith(".jsonl") and call in ("write", "writev"): waiting[pid] = ("write", path, ids)
            # A sync is about what was written when it began.
            elif call in ("fdatasync", "fsync", "syncfs"):
                waiting[pid] = (call, path, [i for i, p in written.items() if p == path or not path.endswith(".jsonl")])
            else: continue
            if "unfinished" in args: continue
            rest = args
        if pid not in waiting: continue
        call, path, ids = waiting.pop(pid)
        if call == "write":
            assert re.search(r"= \d+$", rest), f"a write failed: {rest[-80:]}"
            written.update((i, path) for i in ids)
        elif rest.endswith("= 0"):
            if call == "syncfs" or path.endswith(".jsonl"): synced.update(ids)
            if not path.endswith(".jsonl"): entered.update(written[i] for i in ids)
            whole += call == "syncfs"
    return checked, len(entered), whole
