#!/usr/bin/env python3
"""Counts the instructions that the release binary spends on an event, with valgrind's callgrind.

Without an argument the figures are held against benches/instructions.json: one that grew by more than 3 %
fails, one that fell by more asks for a new file. `--write` writes the file (`make instructions`).

Counted is from the end of a warm-up to the last answer, so that start and stop, which differ from run to run,
do not count. One client on one connection waits for each answer, the service may use one processor (so it has one worker),
address randomisation is off, and nothing is synced. Clocks, disks and other load do not count then: only what
the program does in user space.
"""
import json, os, platform, re, socket, subprocess, sys, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "system"))
import common  # noqa: E402
import harness  # noqa: E402

FILE = os.path.join(ROOT, "benches", "instructions.json")
TOLERANCE = 0.03
WARM_UP = 50
PAUSE = 0.001

# One processor and no address randomisation (ADDR_NO_RANDOMIZE), for the service alone.
ALIKE = (sys.executable, "-c", "import ctypes, os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
         "ctypes.CDLL(None).personality(0x0040000); os.execvp(sys.argv[1], sys.argv[1:])")


def event(n):
    """About 200 bytes, as producers send them: ten members, compact; always the same for the same n."""
    mixed = n * 2654435761 % (1 << 32)
    return (f'{{"event":"{("link", "node.status", "build.finished", "note")[mixed % 4]}","ts":"2026-01-{1 + n % 28:02}T{n % 24:02}:'
            f'{n % 60:02}:{mixed % 60:02}.{n % 1000:03}Z","id":"{mixed:012x}","source":"sensor-{n % 1000:03}","status":"ok",'
            f'"n":{mixed % 1000000},"ms":{mixed % 1000}.{n % 10},"summary":"{"build deploy checkout queue retry "[:20 + mixed % 15]}"}}')


# Name, content type, events of a request, requests that are counted.
WORKLOADS = [("json", "application/json", 1, 2000), ("ndjson_100", "application/x-ndjson", 100, 100)]


def send(connection, content_type, events, requests):
    for request in range(requests):
        # Whether the next request is there before the service looks for it again must not be chance.
        time.sleep(PAUSE)
        body = "\n".join(event(request * events + n) for n in range(events))
        # In one piece, so that it is read in one.
        connection.sendall((f"POST /v1/ingest?domain=example.com HTTP/1.1\r\nHost: localhost\r\nX-Auth: {harness.TOKEN}\r\n"
                            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode())
        buffer, answer = b"", None
        while not answer:
            received = connection.recv(65536)
            assert received, "the service closed the connection"
            buffer += received
            answer = harness.parse(buffer)
        assert answer[0] == 202, f"status {answer[0]}"


def measure():
    tool = ("valgrind", "--tool=callgrind", "--callgrind-out-file=counts", "--log-file=valgrind.log")
    figures, dumps = {}, 0
    with harness.Server({"LEITSTAND_FSYNC": "never"}, wrap=(*ALIKE, *tool)) as server:
        assert server.up, server.log_text()

        def counted():
            """Instructions since the last call."""
            nonlocal dumps
            dumps += 1
            subprocess.run(["vgdb", f"--pid={server.p.pid}", "dump"], check=True, capture_output=True, timeout=60)
            with open(os.path.join(server.cwd, f"counts.{dumps}")) as counts: return int(re.search(r"^totals: (\d+)", counts.read(), re.M)[1])

        for name, content_type, events, requests in WORKLOADS:
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                send(connection, content_type, events, WARM_UP)
                counted()
                send(connection, content_type, events, requests)
                figures[name] = round(counted() / (requests * events), 1)
    return figures


def tools():
    """What the figures depend on beside the code."""
    def first_line(*command):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[0].strip()
    return {"rustc": first_line("rustc", "--version"), "valgrind": first_line("valgrind", "--version"),
            "libc": " ".join(platform.libc_ver()), "machine": platform.machine()}


def skip(reason):
    print(f"instructions ... SKIPPED: {reason}\ninstructions: 0 passed, 0 failed, {len(WORKLOADS)} skipped")
    sys.exit(0)


def main():
    if not os.path.exists(common.BIN): sys.exit(f"{common.BIN} is missing: cargo build --release")
    if not common.find("valgrind"): skip("valgrind is not installed (apt-get install valgrind)")
    here, began = tools(), time.monotonic()
    if sys.argv[1:] == ["--write"]:
        with open(FILE, "w") as file:
            json.dump({"made_with": here, "instructions_per_event": measure()}, file, indent=2)
            file.write("\n")
        return print(f"instructions: written to {os.path.relpath(FILE)}; commit it with the reason")
    with open(FILE) as file: committed = json.load(file)
    other = [f"{name} is {here[name]}, the file was made with {was}" for name, was in committed["made_with"].items()
             if here.get(name) != was]
    if other: skip("; ".join(other) + " ('make instructions' makes it anew)")
    failed = 0
    for name, now in measure().items():
        was = committed["instructions_per_event"][name]
        change = now / was - 1
        word = "ok"
        if change > TOLERANCE:
            failed += 1
            word = "FAILED: find out why, or run 'make instructions' and say in the commit what it buys"
        elif change < -TOLERANCE:
            word = "ok, and less than before: run 'make instructions' and commit the file, so that it stays so"
        print(f"instructions/{name} ... {word} ({now} an event, committed {was}, {change:+.2%}, limit {TOLERANCE:+.0%})")
    print(f"instructions: {len(WORKLOADS) - failed} passed, {failed} failed, 0 skipped ({time.monotonic() - began:.0f} s)")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
