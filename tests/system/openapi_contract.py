"""docs/openapi.yaml against the running service: requests generated from it, good and bad ones, by schemathesis."""
import os, random, re, subprocess, sys, tempfile
from common import ROOT, Server, Skip, TOKEN, setting, verify

HERE = os.path.dirname(os.path.abspath(__file__))


def run():
    tool = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    if not os.path.exists(tool): raise Skip("schemathesis is not installed: make venv")
    # Examples for each operation.
    examples = setting("CONTRACT_EXAMPLES", 25, 1000)
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"openapi_contract: seed {seed} (SEED={seed} repeats it), {examples} examples an operation")
    with Server({"LEITSTAND_DISK_RESERVE": "0", "LEITSTAND_AUTH_RATE_LIMIT": "off", "LOG_LEVEL": "ERROR"}) as server:
        assert server.up, server.log_text()
        with tempfile.TemporaryDirectory(prefix="contract-") as scratch:
            done = subprocess.run(
                [tool, "run", os.path.join(ROOT, "docs", "openapi.yaml"), "--url", f"http://127.0.0.1:{server.port}",
                 "--header", f"X-Auth: {TOKEN}", "--checks", "all", "--max-examples", str(examples), "--seed", str(seed),
                 "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--no-color"],
                cwd=scratch, env={**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": HERE},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode: print(done.stdout)
        assert done.returncode == 0, f"schemathesis ended with {done.returncode}"
        assert "ERROR" not in server.log_text(), server.log_text()
        problems = verify(server.dir, {}, {})
        assert not problems, problems[:5]
    operations = re.search(r"Tested: (\d+)", done.stdout).group(1)
    cases = re.search(r"(\d+) generated", done.stdout).group(1)
    print(f"openapi_contract: {operations} operations, {cases} requests, 0 failures")
