"""docs/openapi.yaml against the running service: requests generated from it, good and bad ones, by schemathesis."""
import json, os, random, re, subprocess, sys, tempfile
from collections import Counter
from common import ROOT, Server, Skip, TOKEN, setting, verify

HERE = os.path.dirname(os.path.abspath(__file__))
ADMIN = "contract-admin"
# What holds of an answer whatever it is.
SHAPES = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance"


def run():
    tool = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    if not os.path.exists(tool): raise Skip("schemathesis is not installed: make venv")
    # Examples for each operation.
    examples = setting("CONTRACT_EXAMPLES", 25, 150)
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"openapi_contract: seed {seed} (SEED={seed} repeats it), {examples} examples an operation")
    env = {"LEITSTAND_DISK_RESERVE": "0", "LEITSTAND_AUTH_RATE_LIMIT": "off", "LOG_LEVEL": "ERROR"}
    with Server(env) as server:
        assert server.up, server.log_text()
        said = generate(tool, server, TOKEN, examples, seed, "--exclude-path", "/config")
        assert "ERROR" not in server.log_text(), server.log_text()
        problems = verify(server.dir, {}, {})
        assert not problems, problems[:5]
    # Alone, because what it changes would change the answers of the others.
    with tempfile.TemporaryDirectory(prefix="contract-") as cwd:
        with open(os.path.join(cwd, "leitstand.toml"), "w") as f: f.write("body_timeout = 20\n")
        rate = {"LEITSTAND_AUTH_RATE_LIMIT": None, "LEITSTAND_RATE_LIMIT": None, "LEITSTAND_ADMIN_TOKEN": ADMIN}
        with Server({**env, **rate, "LOG_LEVEL": None}, cwd=cwd, args=("--config", "leitstand.toml")) as server:
            assert server.up, server.log_text()
            said += generate(tool, server, ADMIN, examples, seed, "--include-path", "/config", "--exclude-checks", "ignored_auth")
            assert "panic" not in server.log_text(), server.log_text()
    # Whoever has a wrong token, or none, and runs into the default limits, is answered as described too.
    limits = {"LEITSTAND_RATE_LIMIT": None, "LEITSTAND_AUTH_RATE_LIMIT": None, "LOG_LEVEL": None, "LEITSTAND_LOG_FORMAT": "json"}
    for name, token, wanted in (("missing", None, {401}), ("wrong", "not-the-token", {401, 429}), ("right", TOKEN, {202, 429})):
        with Server({**env, **limits}) as server:
            assert server.up, server.log_text()
            said += generate(tool, server, token, max(8, examples // 3), seed, "--exclude-path", "/config", checks=SHAPES)
            seen = answers(server)
            assert wanted <= set(seen), f"{name} token: {dict(seen)}"
    operations = sum(int(n) for n in re.findall(r"Tested: (\d+)", said))
    cases = sum(int(n) for n in re.findall(r"(\d+) generated", said))
    print(f"openapi_contract: {operations} operations, {cases} requests, 0 failures")


def answers(server):
    """How many requests were answered with each status, by the access log so far."""
    lines = (json.loads(line) for line in server.log_text().splitlines() if '"leitstand::access"' in line)
    return Counter(line["status"] for line in lines)


def generate(tool, server, token, examples, seed, *options, checks="all"):
    with tempfile.TemporaryDirectory(prefix="contract-") as scratch:
        done = subprocess.run(
            [tool, "run", os.path.join(ROOT, "docs", "openapi.yaml"), "--url", f"http://127.0.0.1:{server.port}",
             *(["--header", f"X-Auth: {token}"] if token else []), "--checks", checks, "--max-examples", str(examples), "--seed", str(seed),
             "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--no-color", *options],
            cwd=scratch, env={**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": HERE},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode: print(done.stdout)
    assert done.returncode == 0, f"schemathesis ended with {done.returncode}"
    return done.stdout
