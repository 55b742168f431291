"""SIGTERM under load with rude clients and a held lock: in time, with code 0, everybody who was heard is answered."""
import fcntl, json, os, random, signal, socket, threading, time
from common import LONG, Load, Server, TOKEN, in_parallel, seed, verify
from harness import parse

ROUNDS = 30 if LONG else 5
AT_ONCE = 5
EXIT_S_MAX = 10


def run():
    """Broken, a deployment is killed in the middle of a write, or drops requests that it had taken."""
    rng = seed("stop")
    seeds = [rng.random() for _ in range(ROUNDS)]
    results = []
    for first in range(0, ROUNDS, AT_ONCE):
        batch = seeds[first:first + AT_ONCE]
        results += in_parallel(len(batch), lambda i: one_stop(random.Random(batch[i])))
    longest, heard, acked = max(r[0] for r in results), sum(r[1] for r in results), sum(r[2] for r in results)
    waiting = sum(r[3] for r in results)
    print(f"stop: {ROUNDS} stops, longest {longest:.1f} s, all with code 0; {heard} requests sent before the signal "
          f"and unanswered then ({waiting} at a held lock), all answered; {acked} acknowledged, 0 lost")
    assert heard >= 10 * ROUNDS and acked > 50 * ROUNDS, "too little load to prove anything"


def one_stop(rng):
    with Server({"LEITSTAND_LOCK_TIMEOUT": "60", "LEITSTAND_DISK_RESERVE": "0"}) as server:
        assert server.up, server.log_text()
        held = open(os.path.join(server.dir, "held.example.jsonl.lock"), "w")
        fcntl.flock(held, fcntl.LOCK_EX)
        rude = [rude_client(server.port, kind, rng) for kind in RUDE for _ in range(3)]
        load = Load(server.port, rng, 4, ["a", "b.example"])
        clients = [Client(server.port, rng, ["c", "d-1"]) for _ in range(12)]
        clients += [Client(server.port, rng, ["held.example"]) for _ in range(6)]
        dripping = threading.Event()
        dripper = threading.Thread(target=drip, args=(rude, dripping)); dripper.start()
        time.sleep(rng.uniform(0.3, 1.2))
        signalled = time.monotonic()
        server.p.send_signal(signal.SIGTERM)
        code = server.p.wait(EXIT_S_MAX + 5)
        took = time.monotonic() - signalled
        load.stop()
        for client in clients: client.stop()
        dripping.set(); dripper.join()
        for s in rude: s.close()
        fcntl.flock(held, fcntl.LOCK_UN)
        assert code == 0 and took <= EXIT_S_MAX, f"code {code} after {took:.1f} s\n{server.log_text()[-2000:]}"
        assert "0 writes pending" in server.log_text(), server.log_text()[-500:]
        pending = [(c, p) for c in clients for p in [c.pending_at(signalled)] if p]
        unanswered = [p for c, p in pending if not p["answered"]]
        assert not unanswered, f"sent before the signal and never answered: {unanswered[:3]}"
        acked = [mark for c in clients for mark in c.acked]
        check_files(server, load, acked, {mark for c in clients for mark in c.sent})
        return took, len(pending), len(load.acked) + len(acked), sum(c.domains == ["held.example"] for c, _ in pending)


def check_files(server, load, acked, sent):
    problems = verify(server.dir, load.acked, load.sent)
    assert not problems, problems[:5]
    found = [json.loads(line).get("mark") for data in server.files().values() for line in data.splitlines()]
    found = [mark for mark in found if mark]
    assert len(found) == len(set(found)), "a marked event is there twice"
    assert set(acked) <= set(found) <= sent, "a marked event is lost, or nobody sent it"


class Client:
    """Sends one small request after the other, on old and new connections, and knows when each was out."""

    def __init__(self, port, rng, domains):
        self.port, self.rng, self.domains = port, random.Random(rng.random()), domains
        self.requests, self.acked, self.sent = [], [], set()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.loop); self.thread.start()

    def loop(self):
        s = None
        while not self.stopping.is_set():
            mark = f"{id(self)}-{len(self.requests)}"
            body = json.dumps({"mark": mark, "pad": "x" * self.rng.choice([0, 100, 8000])}).encode()
            raw = (f"POST /v1/ingest?domain={self.rng.choice(self.domains)} HTTP/1.1\r\nHost: h\r\nX-Auth: {TOKEN}\r\n"
                   f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body
            self.sent.add(mark)
            record = {"out": None, "answered": None, "at": None, "new": s is None}
            try:
                if s is None: s = socket.create_connection(("127.0.0.1", self.port), timeout=15)
                s.sendall(raw)
                # On the loopback these few bytes are in the server's buffer now.
                record["out"] = time.monotonic()
                self.requests.append(record)
                answer = read_answer(s)
                record["at"], record["answered"] = time.monotonic(), answer[0]
                if answer[0] == 202: self.acked.append(mark)
                if answer[1].get("connection") == "close" or self.rng.random() < 0.3: s.close(); s = None
            except OSError as error:
                record["error"] = str(error)
                if s: s.close()
                s = None
                if isinstance(error, ConnectionRefusedError): return

    def pending_at(self, moment):
        """The request that was out by then and had no answer."""
        return next((r for r in self.requests if r["out"] < moment and (r["at"] is None or r["at"] > moment)), None)

    def stop(self):
        self.stopping.set(); self.thread.join()


def read_answer(s):
    buf = b""
    while True:
        answer = parse(buf)
        if answer: return answer[0], answer[1]
        data = s.recv(65536)
        if not data: raise ConnectionError(f"closed without an answer after {len(buf)} bytes")
        buf += data


# Silent, half a head, half a body by length, half a chunked body, idle after a request.
RUDE = ("silent", "head", "body", "chunks", "idle")
HEAD = f"POST /v1/ingest?domain=rude HTTP/1.1\r\nHost: h\r\nX-Auth: {TOKEN}\r\nContent-Type: application/json\r\n"


def rude_client(port, kind, rng):
    s = socket.create_connection(("127.0.0.1", port), timeout=15)
    if kind == "head": s.sendall(HEAD[:rng.randrange(10, len(HEAD))].encode())
    if kind == "body": s.sendall(f"{HEAD}Content-Length: 100000\r\n\r\n{{".encode())
    if kind == "chunks": s.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n".encode())
    if kind == "idle":
        s.sendall(f"GET /version HTTP/1.1\r\nHost: h\r\nX-Auth: {TOKEN}\r\n\r\n".encode())
        assert read_answer(s)[0] == 200
    return s


def drip(sockets, done):
    """Keeps the slow ones going, a byte now and then."""
    while not done.wait(0.5):
        for n, s in enumerate(sockets):
            kind = RUDE[n // 3]
            try:
                if kind == "body": s.send(b" ")
                if kind == "chunks": s.send(b"1\r\n \r\n")
            except OSError: pass
