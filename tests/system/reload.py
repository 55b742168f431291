"""Reloads under load: 16 clients at full speed while the configuration changes by SIGHUP, file and request."""
import json, os, signal, tempfile
from common import Load, Server, seed, setting, verify, wait_until
import harness

ADMIN = "reload-admin"
# A client that the machine keeps waiting in the middle of a body is no fault of a reload.
PATIENCE_S = 1000


def run():
    rng = seed("reload")
    rounds = setting("RELOADS", 20, 40)
    with tempfile.TemporaryDirectory(prefix="reload-") as cwd:
        path = os.path.join(cwd, "leitstand.toml")

        def write(text):
            with open(path + ".new", "w") as f: f.write(text)
            os.replace(path + ".new", path)

        write(f"rate_limit = '1000000/second'\nbody_timeout = {PATIENCE_S}\n")
        env = {"LEITSTAND_RATE_LIMIT": None, "LEITSTAND_DISK_RESERVE": "0", "LEITSTAND_ADMIN_TOKEN": ADMIN}
        with Server(env, cwd=cwd, args=("--config", "leitstand.toml")) as server:
            assert server.up, server.log_text()
            load = Load(server.port, rng, 16, ["a", "b", "c", "d"])
            failed = 0
            for n in range(rounds):
                before = attempts(server.port)
                kind = n % 4
                if kind == 0: server.p.send_signal(signal.SIGHUP)
                elif kind == 1: write(f"rate_limit = '{1000000 + n}/second'\nbody_timeout = {PATIENCE_S + n}\n")
                elif kind == 2:
                    body = json.dumps({"request_timeout_ms": 200000 + n, "deny_domains": [f"x{n}.*"], "logging": {"level": "ERROR"}})
                    head = [("X-Auth", ADMIN), ("Content-Type", "application/merge-patch+json")]
                    status, _, text = harness.request(server.port, "POST", "/config", head, body.encode(), wait=0.0, timeout=20)
                    assert status == 200, (status, text)
                else:   # Broken, then whole again: nothing may change.
                    write("rate_limit = \n"); failed += 1
                    wait_until(lambda: attempts(server.port) > before, 20, "the broken file is seen")
                    before = attempts(server.port)
                    write(f"rate_limit = '1000000/second'\nbody_timeout = {PATIENCE_S}\n")
                if kind != 2: wait_until(lambda: attempts(server.port) > before, 20, "the change is seen")
            load.stop()
            refused = len(load.sent) - len(load.acked)
            assert server.p.poll() is None, server.log_text()
            assert refused == 0, f"{refused} of {len(load.sent)} events were not acknowledged\n{answers(server.port)}\n{server.log_text()[-4000:]}"
            assert load.acked, "nothing was sent"
            assert counter(server.port, "failed") == failed, (counter(server.port, "failed"), failed)
            assert "panic" not in server.log_text(), server.log_text()
            problems = verify(server.dir, load.acked, load.sent)
            assert not problems, problems[:5]
    print(f"reload: {rounds} changes, {failed} of them broken files, {len(load.acked)} events of 16 clients, 0 refused, 0 lost")


def answers(port):
    text = harness.request(port, "GET", "/metrics", wait=0.0, timeout=20)[2].decode()
    return "\n".join(line for line in text.split("\n") if line.startswith(("http_requests_total", "leitstand_refused", "leitstand_rejected")))


def counter(port, result):
    text = harness.request(port, "GET", "/metrics", wait=0.0, timeout=20)[2].decode()
    name = f'leitstand_config_reloads_total{{result="{result}"}} '
    return sum(int(float(line[len(name):])) for line in text.split("\n") if line.startswith(name))


def attempts(port): return counter(port, "ok") + counter(port, "failed")
