"""Descriptors used up, and more domains than may stay open: the accept loop lives, and the number of open files is bounded."""
import collections, http.client, os, resource, shutil, socket, subprocess, tempfile, threading, time
from common import Skip, TOKEN, Server, in_parallel, need, part, problem, setting, verify, wait_until


def run():
    need("prlimit")
    for limit in (128, 64): part(f"{limit} descriptors", starved, limit)
    for processors, limit in ((64, 1024), (64, 256), (2, 128)):
        for fsync in ("always", "never"): part(f"{processors} processors, {limit} descriptors, {fsync}", crowded, processors, limit, fsync)
    many_domains()


# Says that there are so many processors; the service has a worker for each.
PRETENDED = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <string.h>
#include <stdlib.h>
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    memset(set, 0, size);
    for (int n = 0; n < atoi(getenv("PRETENDED_PROCESSORS")); n++) CPU_SET_S(n, size, set);
    return 0;
}
"""


def crowded(processors, limit, fsync):
    """As many clients as are let in, each with a domain of its own, all at once: none is told that the disk is broken."""
    if not shutil.which("cc"): raise Skip("cc is not installed")
    with tempfile.TemporaryDirectory() as directory:
        library = os.path.join(directory, "pretend.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-xc", "-"], input=PRETENDED.encode(), check=True)
        env = {"LEITSTAND_DISK_RESERVE": "0", "LOG_LEVEL": "WARNING", "LEITSTAND_FSYNC": fsync, "LD_PRELOAD": library,
               "PRETENDED_PROCESSORS": str(processors), "LEITSTAND_NEW_DOMAINS_PER_HOUR": "1000000"}
        with Server(env, wrap=("prlimit", f"--nofile={limit}:{limit}")) as server:
            assert server.up, server.log_text()
            page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            page.request("GET", "/metrics"); text = page.getresponse().read().decode(); page.close()
            let_in = int(float(text.split("\nleitstand_connections_max ")[1].split()[0]))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft < let_in + 100: resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            clients = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(let_in - 1)]
            for client in clients: client.connect()
            request = {"X-Auth": TOKEN, "Content-Type": "application/json"}
            answers, most = collections.Counter(), 0
            for turn in range(3):
                for n, client in enumerate(clients): client.request("POST", f"/v1/ingest?domain=d{n}.t{turn}", "{}", request)
                most = max(most, open_files(server))
                for client in clients:
                    answer = client.getresponse(); answer.read(); answers[answer.status] += 1
            for client in clients: client.close()
            log = server.log_text()
        print(f"{processors} processors, {limit} descriptors, {fsync}: {let_in} connections let in, {dict(answers)}, {most} open files seen")
        assert let_in >= 8 and set(answers) == {202}, (answers, log[-600:])
        assert "Too many open files" not in log, log[-2000:]


def open_files(server): return len(os.listdir(f"/proc/{server.p.pid}/fd"))


def cpu_seconds(server):
    fields = open(f"/proc/{server.p.pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def starved(limit):
    connections = 4 * limit
    with Server({"LEITSTAND_DISK_RESERVE": "0", "LOG_LEVEL": "ERROR"}, wrap=("prlimit", f"--nofile={limit}:{limit}")) as server:
        assert server.up, server.log_text()
        assert problem(server.port, "a", {"n": 0})[0] == 202
        old = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        stored = 1
        stored += post_on(old, "a") == 202
        slowest, cpu, most = 0.0, 0.0, 0
        # The service lets in no more than its descriptors suffice for. So that accept itself fails, else nothing is proved
        # about that, somebody takes some away that it reckoned with.
        if limit == 64:
            limit = open_files(server) + 8
            resource.prlimit(server.p.pid, resource.RLIMIT_NOFILE, (limit, limit))
        starved_since = time.monotonic()
        for _ in range(setting("STARVATIONS", 1, 5)):
            crowd = []
            for _ in range(connections):
                connection = socket.socket(); connection.setblocking(False)
                connection.connect_ex(("127.0.0.1", server.port)); crowd.append(connection)
            time.sleep(0.5)
            seconds, began, busy = setting("STARVED_SECONDS", 1.5, 5.0), time.monotonic(), cpu_seconds(server)
            while time.monotonic() - began < seconds:
                # Who is connected goes on being served; without a descriptor for its files an append may fail, and says so.
                status = post_on(old, "a"); stored += status == 202
                assert status in (202, 503), status
                most = max(most, open_files(server))
                time.sleep(0.05)
            cpu = max(cpu, (cpu_seconds(server) - busy) / (time.monotonic() - began))
            for connection in crowd: connection.close()
            slowest = max(slowest, wait_until(lambda: served(server), 2, "served again after the crowd left"))
            stored += 1
        assert server.p.poll() is None and most <= limit
        assert cpu <= 0.2, f"{cpu:.0%} of a core while starved"
        wait_until(lambda: open_files(server) < limit // 2 + 24, 3, "descriptors given back")
        lines = open(os.path.join(server.dir, "a.jsonl"), "rb").read().count(b"\n")
        assert lines == stored, (lines, stored)
        old.close()
        log, lasted = server.log_text().count("accept failed"), time.monotonic() - starved_since
    # One line, and one more for each ten seconds that it lasts or comes back in.
    assert log <= 2 + lasted / 10, f"{log} lines in {lasted:.0f} s"
    print(f"{limit} descriptors: {connections} connections, at most {most} open files, {cpu:.1%} of a core, "
          f"{log} failed accepts, served again after {slowest:.2f} s")
    assert limit == 128 or most == limit and log > 0, (most, log)


def post_on(conn, domain):
    conn.request("POST", f"/v1/ingest?domain={domain}", "{}", {"X-Auth": TOKEN, "Content-Type": "application/json"})
    answer = conn.getresponse(); answer.read()
    return answer.status


def served(server):
    # Whoever comes beyond the cap may wait 1.5 s for a place; to give up before that would be to store without counting.
    try: return problem(server.port, "a", {"n": 1}, timeout=5)[0] == 202
    except OSError: return False


def many_domains():
    count = setting("DOMAINS", 2000, 100_000)
    outer = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None   # inodes are cheap there
    with tempfile.TemporaryDirectory(prefix="domains-", dir=outer) as directory:
        env = {"LEITSTAND_DISK_RESERVE": "0", "LEITSTAND_NEW_DOMAINS_PER_HOUR": "1000000"}
        with Server(env, datadir=directory, wrap=("prlimit", "--nofile=128:128")) as server:
            assert server.up, server.log_text()
            began, clients, bad, most = time.monotonic(), 8, [], [0]

            def client(n):
                conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                for i in range(n, count, clients):
                    status = post_on(conn, f"d{i}.example")
                    if status != 202: bad.append((i, status))
                    if i % 50 == 0: most[0] = max(most[0], open_files(server))
                conn.close()
            threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
            for t in threads: t.start()
            for t in threads: t.join()
            assert not bad, (len(bad), bad[:5])
            seconds = time.monotonic() - began
            memory = next(int(l.split()[1]) for l in open(f"/proc/{server.p.pid}/status") if l.startswith("VmRSS")) / 1024
            assert most[0] <= 128, most
            assert problem(server.port, "d0.example", {"n": 2})[0] == 202
        names = [n for n in os.listdir(directory) if n.endswith(".jsonl")]
        assert len(names) == count, len(names)
        assert not verify(directory, {}, {})
    print(f"domains: {count} in {seconds:.0f} s with 128 descriptors, at most {most[0]} open files, {memory:.0f} MiB resident")
