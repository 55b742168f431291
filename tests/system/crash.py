"""kill -9 under load: 16 clients, 4 domains, mixed batches. Nothing acknowledged is lost, torn or doubled."""
import os, shutil, tempfile, time
from common import Load, Server, leitstand_verify, seed, setting, verify

LOOK_EVERY = 20   # rounds; each look reads everything
# The largest have about 180 KB: beside small ones they go to the disk in pieces.
BATCHES = (1, 1, 1, 2, 5, 20, 100, 400)


def run():
    rng, rounds = seed("crash"), setting("ROUNDS", 60, 500)
    directory = tempfile.mkdtemp(prefix="crash-")
    acked, sent, next_id = {}, {}, 0
    domains = ["a", "b.example", "c", "d-1"]
    env = {"LEITSTAND_DISK_RESERVE": "0"}
    try:
        for n in range(rounds):
            server = Server(env, datadir=directory)
            assert server.up, server.log_text()
            load = Load(server.port, rng, 16, domains, next_id, BATCHES)
            time.sleep(rng.uniform(0.03, 0.27))
            server.kill()
            load.stop()
            acked.update(load.acked); sent.update(load.sent); next_id = load.next_id
            shutil.rmtree(server.cwd, ignore_errors=True)
            if n % LOOK_EVERY == 0: look_after_a_kill(directory)
        # One event per domain repairs the last tails; then every file must be whole.
        with Server(env, datadir=directory) as server:
            from harness import post
            for d in domains: assert post(server.port, d, {"id": -1})[0] == 202
            assert server.stop() == 0
        problems = verify_without_marks(directory, acked, sent)
        code, report = leitstand_verify(directory)
        assert code == 0, report
        assert report["notes_total"] == 0 and report["lines"] >= len(acked), report
        print(f"crash: {rounds} rounds, {len(acked)} acknowledged, {len(sent) - len(acked)} not; {len(problems)} problems")
        assert len(acked) > rounds * 50, "too little load to prove anything"
        assert not problems, problems[:10]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def look_after_a_kill(directory):
    """The binary's own look: a kill may leave an unfinished last line in each file, and nothing else."""
    code, report = leitstand_verify(directory)
    assert code in (0, 1) and report["notes_total"] == 0, report
    assert {f["kind"] for f in report["findings"]} <= {"torn_tail", "missing_newline"}, report


def verify_without_marks(directory, acked, sent):
    """The closing events carry id -1, once per domain."""
    problems = verify(directory, acked, sent)
    return [p for p in problems if p != "id -1 is there twice"]
