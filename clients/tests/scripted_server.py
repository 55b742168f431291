#!/usr/bin/env python3
"""A server that answers as a case of cases.json says, for the tests of the client libraries.

    scripted_server.py CASE

Prints its port, serves one request a connection, also while an earlier one waits for its answer, and when
its standard input ends prints one line of JSON with what it saw:
{"attempts": 3, "lines": [["{…}"], …], "tokens": […]}.
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
        if not more:
            return None
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


def answer(conn, step):
    if "garbage" in step:
        conn.sendall(step["garbage"].encode())
        return
    text = step.get("text", "").encode()
    head = f"HTTP/1.1 {step['status']} X\r\nContent-Length: {len(text)}\r\nConnection: close\r\n"
    for name, value in step.get("headers", {}).items():
        head += f"{name}: {value}\r\n"
    conn.sendall(head.encode() + b"\r\n" + text[:step.get("cut_text_at", len(text))])


def serve(conn, step, seen):
    with conn:
        if step.get("cut") == "before_body":
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        request = read_request(conn, None)
        if request is None:
            return
        _, headers, body = request
        seen["tokens"].append(headers.get("x-auth"))
        seen["lines"].append([line for line in body.decode().split("\n") if line])
        if step.get("cut") == "after_body":
            return
        time.sleep(step.get("wait_s", 0))
        try:
            answer(conn, step)
        except OSError:
            pass  # The client did not wait.


def main():
    with open(CASES, encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    case = next(case for case in cases if case["name"] == sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    seen = {"attempts": 0, "lines": [], "tokens": [], "at": []}
    steps = list(case["answers"])
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            break
        conn, _ = listener.accept()
        # The last answer is given to whoever comes after it, too.
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        seen["attempts"] += 1
        seen["at"].append(time.time())
        # A client that gives up must be seen to come back before its old answer is ready.
        threading.Thread(target=serve, args=(conn, step, seen), daemon=True).start()
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
