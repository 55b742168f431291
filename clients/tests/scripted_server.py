#!/usr/bin/env python3
"""A server that answers as a case of cases.json says, for the tests of the client libraries.

    scripted_server.py CASE

Prints its port, serves one request a connection (more where an answer says "keep"), also while an earlier one waits
for its answer, and when its standard input ends prints one line of JSON with what it saw:
{"attempts": 3, "connections": 3, "lines": [["{…}"], …], "stored": ["{…}", …], "tokens": […]}.
"""
import json
import os
import select
import socket
import sys
import threading
import time

CASES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases.json")


def read_request(conn, body_wanted):
    """The head and the body of one request; the body only up to `body_wanted` bytes if that is set."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = conn.recv(65536)
        if not more or more[0] == 0x16:
            return None  # The end, or a client that wants to speak TLS.
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    headers = {}
    for line in head.split(b"\r\n")[1:]:
        name, value = line.split(b":", 1)
        headers[name.strip().lower().decode()] = value.strip().decode()
    if body_wanted is not None:
        return head, headers, body[:body_wanted]
    if headers.get("transfer-encoding", "").lower() == "chunked":
        raw, body = body, b""
        while True:
            while b"\r\n" not in raw:
                raw += conn.recv(65536)
            size, raw = raw.split(b"\r\n", 1)
            size = int(size, 16)
            while len(raw) < size + 2:
                raw += conn.recv(65536)
            body, raw = body + raw[:size], raw[size + 2:]
            if size == 0:
                break
    else:
        length = int(headers.get("content-length", "0"))
        while len(body) < length:
            more = conn.recv(65536)
            if not more:
                return None
            body += more
    return head, headers, body


def answer(conn, step, request):
    if "garbage" in step:
        conn.sendall(step["garbage"].encode())
        return
    text = step.get("text", "").encode() + b" " * step.get("pad_bytes", 0)
    head = step.get("interim", "")
    head += f"HTTP/1.1 {step['status']} X\r\nContent-Length: {len(text)}\r\n"
    if not step.get("keep"):
        head += "Connection: close\r\n"
    headers = step.get("headers", {})
    if "x-request-id" in request and "X-Request-ID" not in headers:
        headers = {**headers, "X-Request-ID": request["x-request-id"]}  # As the service does.
    for name, value in headers.items():
        head += f"{name}: {value}\r\n"
    surplus = step.get("surplus", "").encode()
    late = step.get("surplus_after_s", 0)
    conn.sendall(head.encode() + b"\r\n" + text[:step.get("cut_text_at", len(text))] + (b"" if late else surplus))
    if late:
        time.sleep(late)
        conn.sendall(surplus)


class Server:
    def __init__(self, steps):
        self.steps = list(steps)
        self.lock = threading.Lock()
        self.seen = {"attempts": 0, "connections": 0, "lines": [], "tokens": [], "stored": [], "at": [], "requests": []}

    def next_step(self):
        with self.lock:
            # The last answer is given to whoever comes after it, too.
            step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
            self.seen["attempts"] += 1
            self.seen["at"].append(time.time())
            return step

    def serve(self, conn, step):
        with conn:
            while True:
                if step.get("cut") == "before_body":
                    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    return
                request = read_request(conn, None)
                if request is None:
                    return
                head, headers, body = request
                lines = [line for line in body.decode(errors="replace").split("\n") if line]
                if body.startswith(b"["):
                    # What a server takes that knows no NDJSON.
                    lines = [json.dumps(event, separators=(",", ":"), ensure_ascii=False) for event in json.loads(body)]
                with self.lock:
                    self.seen["tokens"].append(headers.get("x-auth"))
                    self.seen["lines"].append(lines)
                    target = head.split(b" ")[1].decode().split("?")[0]
                    self.seen["requests"].append([target, headers.get("content-type")])
                    if step.get("status") in (200, 202) and step.get("text", "").strip() == "ok":
                        self.seen["stored"] += lines
                if step.get("cut") == "after_body":
                    return
                time.sleep(step.get("wait_s", 0))
                try:
                    answer(conn, step, headers)
                except OSError:
                    return  # The client did not wait.
                if not step.get("keep"):
                    return
                # Whoever sends nothing more is no attempt.
                if not select.select([conn], [], [], 60)[0] or not conn.recv(1, socket.MSG_PEEK):
                    return
                if "surplus" in step:
                    read_request(conn, None)
                    # A client that takes the surplus for an answer has lost this event.
                    return
                step = self.next_step()


def main():
    with open(CASES, encoding="utf-8") as file:
        table = json.load(file)
    every = table["cases"] + table["environment"] + table["scripts"]
    case = next(case for case in every if case["name"] == sys.argv[1])
    server = Server(case.get("answers") or [{"status": 202, "text": "ok"}])
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            break
        conn, _ = listener.accept()
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.seen["connections"] += 1
        # A client that gives up must be seen to come back before its old answer is ready.
        threading.Thread(target=server.serve, args=(conn, server.next_step()), daemon=True).start()
    with server.lock:
        print(json.dumps(server.seen), flush=True)


if __name__ == "__main__":
    main()
