"""Huge heads and bodies and compressed bombs: refused as promised, at a bounded price in memory."""
import gzip, zlib
from common import LONG, Server, TOKEN, in_parallel, memory_kib, peak_from_here
from harness import request, talk

CLIENTS = 16
ROUNDS = 40 if LONG else 8
LIMIT = 1 << 20
GROWTH_KIB_MAX = 8 << 10
HEAD = "POST /v1/ingest?domain=bomb.example HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nX-Auth: " + TOKEN + "\r\n"


def run():
    """Broken, a client with a token, or one without, takes the memory of the whole machine."""
    with Server({"LEITSTAND_MAX_BODY": str(LIMIT)}) as server:
        assert server.up, server.log_text()
        announced(server)
        warm(server)
        figures = {name: growth(server, send) for name, send in attacks(server.port).items()}
        # Nothing says how long these are, so up to the limit, 1 MiB, is held for each client.
        figures["chunked, 2 clients"] = growth(server, lambda: chunked(server.port), clients=2)
        assert request(server.port, "GET", "/health/live")[0] == 200
        assert server.files() == {"warm.jsonl": server.files()["warm.jsonl"]}, "a bomb left something"
    print(f"bombs: {CLIENTS} clients, {ROUNDS} rounds each; growth of the peak RSS in KiB: {figures}")
    # These two are no bombs: what comes out is 35 times as much, or as much, as what was sent. A part of
    # it is held, as of any body, so they may cost twice as much. And with the first that is decoded come the threads
    # that decode, up to 12 a worker: 16, 19 and 25 threads and 6.0, 8.8 and 10.7 MiB after 8, 40 and 200 rounds. They come
    # once.
    times = {"gzip of small members": 2, "chunked, 2 clients": 2, "gzip": 1.5}
    big = {name: kib for name, kib in figures.items() if kib > GROWTH_KIB_MAX * times.get(name, 1)}
    assert not big, f"over {GROWTH_KIB_MAX} KiB: {big}"


def announced(server):
    """An announced length is refused by the head alone: the body is never sent here."""
    for length in (LIMIT + 1, 1 << 31, 1 << 40, (1 << 64) - 1):
        for extra in ("", "Expect: 100-continue\r\n", "Content-Encoding: gzip\r\n", "Content-Encoding: zstd\r\n"):
            answers, closed = talk(server.port, f"{HEAD}{extra}Content-Length: {length}\r\n\r\n".encode(), timeout=5)
            # hyper cannot hold the largest number and refuses the head.
            wanted = (413,) if length < (1 << 64) - 1 else (413, 431)
            assert len(answers) == 1 and answers[0][0] in wanted and closed, (length, extra, answers, closed)
    answer = talk(server.port, f"{HEAD}Content-Encoding: br\r\nContent-Length: 9\r\n\r\n".encode() + b"\x8b\x03\x80{}\x03\x00\x00\x00")[0][0]
    assert answer[0] == 415 and answer[2] == b'{"detail":"unsupported content-encoding"}', answer


def warm(server):
    """Threads, buffers and decoders are there before anything is measured."""
    body = gzip.compress(b'{"a":1}')
    def one(_):
        for coding, data in (("gzip", body), ("zstd", zstd_frame(b'{"a":1}')), ("identity", b'{"a":1}')):
            answer = request(server.port, "POST", "/v1/ingest?domain=warm",
                             [("X-Auth", TOKEN), ("Content-Type", "application/json"), ("Content-Encoding", coding)], data, wait=0)
            assert answer[0] == 202, (coding, answer)
    in_parallel(CLIENTS, one)


def attacks(port):
    """What each client does over and over; each asserts its answer."""
    def body(coding, data, want):
        raw = f"{HEAD}Content-Encoding: {coding}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        def send():
            answers, _ = talk(port, raw, wait=0)
            assert answers and answers[0][0] == want, (coding, answers)
        return send

    def head(raw):
        def send():
            answers, closed = talk(port, raw, wait=0)
            # What still comes in after the refusal may reset the connection and the answer with it.
            assert closed and (not answers or answers[0][0] in (400, 414, 431)), (raw[:60], answers, closed)
        return send

    request_line = b"POST /v1/ingest HTTP/1.1\r\nHost: h\r\n"
    return {
        "one header field": head(request_line + b"X-Big: " + b"x" * (4 << 20) + b"\r\n\r\n"),
        "many header fields": head(request_line + b"X-Many: y\r\n" * 400_000 + b"\r\n"),
        "request line": head(b"POST /" + b"x" * (4 << 20) + b" HTTP/1.1\r\n\r\n"),
        "gzip": body("gzip", gzip_bomb(300_000), 413),
        "gzip of small members": body("gzip", gzip_members(300_000), 413),
        "zstd": body("zstd", zstd_bomb(300_000, 23), 413),
        "zstd in a small window": body("zstd", zstd_bomb(300_000, 17), 413),
        "zstd with a window over the limit": body("zstd", zstd_bomb(300_000, 30), 400),
    }


def chunked(port):
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answers, _ = talk(port, (HEAD + "Transfer-Encoding: chunked\r\n\r\n").encode() + piece * 40, wait=0)
    assert answers and answers[0][0] == 413, answers


def growth(server, send, clients=CLIENTS):
    """How far the peak RSS rises while all clients send at once, in KiB."""
    before = memory_kib(server.p.pid, "VmRSS")
    peak_from_here(server.p.pid)
    def client(_):
        for _ in range(ROUNDS): send()
    in_parallel(clients, client)
    return memory_kib(server.p.pid, "VmHWM") - before


def gzip_bomb(length):
    """A member of about `length` bytes whose content is a thousand times that."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + block * (length // len(block))


def gzip_members(length):
    """Members of 1 KiB content each, one after the other."""
    member = gzip.compress(bytes(1 << 10))
    return member * (length // len(member))


def zstd_bomb(length, window_log):
    """One frame of blocks of 128 KiB of the same byte, 4 bytes each (RFC 8878, section 3.1.1)."""
    head = b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3])
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b" "
    return head + block * (length // len(block))


def zstd_frame(content):
    """One frame with one raw block."""
    return (b"\x28\xb5\x2f\xfd\x00" + bytes([7 << 3]) + (len(content) << 3 | 1).to_bytes(3, "little") + content)
