"""kill -9 under load: 16 clients, 4 domains, mixed batches. Nothing acknowledged is lost, torn or doubled."""
import os, shutil, tempfile, time
from common import Load, Server, seed, verify


def run():
    rng, rounds = seed("crash"), int(os.environ.get("ROUNDS", "60"))
    directory = tempfile.mkdtemp(prefix="crash-")
    acked, sent, next_id = {}, {}, 0
    domains = ["a", "b.example", "c", "d-1"]
    env = {"LEITSTAND_DISK_RESERVE": "0"}
    try:
        for n in range(rounds):
            server = Server(env, datadir=directory)
            assert server.up, server.log_text()
            load = Load(server.port, rng, 16, domains, next_id)
            time.sleep(rng.uniform(0.05, 0.8))
            server.kill()
            load.stop()
            acked.update(load.acked); sent.update(load.sent); next_id = load.next_id
            shutil.rmtree(server.cwd, ignore_errors=True)
        # One event per domain repairs the last tails; then every file must be whole.
        with Server(env, datadir=directory) as server:
            from harness import post
            for d in domains: assert post(server.port, d, {"id": -1})[0] == 202
            assert server.stop() == 0
        problems = verify_without_marks(directory, acked, sent)
        print(f"crash: {rounds} rounds, {len(acked)} acknowledged, {len(sent) - len(acked)} not; {len(problems)} problems")
        assert len(acked) > rounds * 50, "too little load to prove anything"
        assert not problems, problems[:10]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def verify_without_marks(directory, acked, sent):
    """The closing events carry id -1, once per domain."""
    problems = verify(directory, acked, sent)
    return [p for p in problems if p != "id -1 is there twice"]
