"""The Python service that this one replaces, beside it on one directory: nothing of either is lost, mixed or refused."""
import os, shutil, signal, subprocess, sys, tempfile, time
from common import ROOT, TOKEN, Load, Server, Skip, leitstand_verify, percentile, problem, seed, setting, verify, wait_until
from harness import free_port, request

sys.path.append(os.path.join(ROOT, "benches"))
import peers  # noqa: E402

SECONDS = setting("BESIDE_SECONDS", 6.0, 30.0)
DOMAINS = ["side.example", "other.example"]


def original():
    """How the benchmark starts it."""
    peer, why_not = peers.find_original()
    if not peer: raise Skip(why_not)
    return peer


class Original:
    """One worker of it on a data directory that is there."""

    def __init__(self, directory):
        peer, self.port, self.home = original(), free_port(), tempfile.mkdtemp(prefix="leitstand-original-")

        def fill(text): return text.replace("@PORT@", str(self.port)).replace("@DATA@", directory)
        env = {"PATH": os.environ["PATH"], "HOME": self.home, **{name: fill(value) for name, value in peer.env.items()},
               "LEITSTAND_TOKEN": TOKEN, "LEITSTAND_LOCK_TIMEOUT": "10"}
        self.p = subprocess.Popen([fill(word) for word in peer.command], cwd=peer.cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        wait_until(self.answers, 30, "the original answers")
        return self

    def answers(self):
        assert self.p.poll() is None, f"the original has ended with {self.p.returncode}"
        try: return request(self.port, "GET", "/health", [("X-Auth", TOKEN)], wait=0.0)[0] == 200
        except OSError: return False

    def __exit__(self, *_):
        self.p.send_signal(signal.SIGTERM)
        try: self.p.wait(10)
        except subprocess.TimeoutExpired: self.p.kill(); self.p.wait()
        shutil.rmtree(self.home)


def run():
    rng = seed("original_beside")
    original()   # before anything is started
    with Server({"LEITSTAND_LOCK_TIMEOUT": "10", "LEITSTAND_DISK_RESERVE": "0"}) as server:
        assert server.up, server.log_text()
        with Original(server.dir) as other:
            ours, theirs = Load(server.port, rng, 4, DOMAINS), Load(other.port, rng, 4, DOMAINS, start_id=1 << 40)
            began, looks, waits = time.monotonic(), 0, []
            while time.monotonic() - began < SECONDS:
                code, report = leitstand_verify(server.dir)   # what only the other one writes is good to us as well
                assert code == 0, report
                for port in (server.port, other.port):
                    status, answer, seconds = problem(port, DOMAINS[0], {"probe": looks})
                    assert status == 202, (port, status, answer)
                    waits.append(seconds)
                looks += 1
            theirs.stop(); ours.stop()
            assert server.stop() == 0
        problems = verify(server.dir, {**ours.acked, **theirs.acked}, {**ours.sent, **theirs.sent})
        assert not problems, problems
        assert len(ours.acked) > 200 and len(theirs.acked) > 200 and looks > 3, "too little load to prove anything"
        print(f"original_beside: {len(ours.acked)} events by us, {len(theirs.acked)} by the original, 0 lost, torn or doubled; "
              f"{looks} clean looks; a probe waits {percentile(waits, 0.5) * 1e3:.0f} ms, at most {max(waits) * 1e3:.0f}")
