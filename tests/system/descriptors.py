"""Descriptors used up, and more domains than may stay open: the accept loop lives, and the number of open files is bounded."""
import http.client, os, socket, tempfile, threading, time
from common import TOKEN, Server, need, part, problem, setting, verify, wait_until


def run():
    need("prlimit")
    for limit in (128, 64): part(f"{limit} descriptors", starved, limit)
    many_domains()


def open_files(server): return len(os.listdir(f"/proc/{server.p.pid}/fd"))


def cpu_seconds(server):
    fields = open(f"/proc/{server.p.pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def starved(limit):
    with Server({"LEITSTAND_DISK_RESERVE": "0", "LOG_LEVEL": "ERROR"}, wrap=("prlimit", f"--nofile={limit}:{limit}")) as server:
        assert server.up, server.log_text()
        assert problem(server.port, "a", {"n": 0})[0] == 202
        old = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        stored = 1
        stored += post_on(old, "a") == 202
        slowest, cpu, most = 0.0, 0.0, 0
        for _ in range(setting("STARVATIONS", 1, 5)):
            crowd = []
            for _ in range(4 * limit):
                connection = socket.socket(); connection.setblocking(False)
                connection.connect_ex(("127.0.0.1", server.port)); crowd.append(connection)
            time.sleep(0.5)
            seconds, began, busy = setting("STARVED_SECONDS", 1.5, 5.0), time.monotonic(), cpu_seconds(server)
            while time.monotonic() - began < seconds:
                # Who is connected goes on being served; without a descriptor for its files an append may fail, and says so.
                status = post_on(old, "a"); stored += status == 202
                assert status in (202, 500), status
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
        log = server.log_text().count("accept failed")
    print(f"{limit} descriptors: {4 * limit} connections, at most {most} open files, {cpu:.1%} of a core, "
          f"{log} failed accepts, served again after {slowest:.2f} s")
    # The smaller limit is so small that accept itself fails, else nothing is proved about that.
    assert limit > 64 or most == limit, most


def post_on(conn, domain):
    conn.request("POST", f"/v1/ingest?domain={domain}", "{}", {"X-Auth": TOKEN, "Content-Type": "application/json"})
    answer = conn.getresponse(); answer.read()
    return answer.status


def served(server):
    try: return problem(server.port, "a", {"n": 1}, timeout=1)[0] == 202
    except OSError: return False


def many_domains():
    count = setting("DOMAINS", 2000, 100_000)
    outer = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None   # inodes are cheap there
    with tempfile.TemporaryDirectory(prefix="domains-", dir=outer) as directory:
        with Server({"LEITSTAND_DISK_RESERVE": "0"}, datadir=directory, wrap=("prlimit", "--nofile=128:128")) as server:
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
