"""Every recorded request with a canary as token and in its content, at the most talkative level: neither is told to anybody."""
import base64, json, os, random, subprocess
from common import ROOT, Server, in_parallel, seed
from harness import TOKEN, request, talk
from replay import raw_of

# The last lets everything through, what libraries trace as well.
LEVELS = [("DEBUG", "json"), ("DEBUG", "text"), ("NOTSET", "json"), ("NOTSET", "text")]


def run():
    """Broken, whoever reads the log or the metrics learns a secret or what an event says."""
    rng = seed("canaries")
    with open(os.path.join(ROOT, "tests", "golden", "recorded.jsonl"), encoding="utf-8") as f: cases = [json.loads(line) for line in f]
    requests = [r for case in cases for r in ([s["request"] for s in case["sequence"]] if "sequence" in case else [case["request"]] if "request" in case else [])]
    results = in_parallel(len(LEVELS), lambda i: hold(requests, *LEVELS[i], random.Random(rng.random())))
    sent, stored, length = (sum(column) for column in zip(*results))
    start_up(rng)
    named_tokens()
    print(f"canaries: {sent} requests over {len(LEVELS)} levels and formats, {stored} canaries stored, {length >> 10} KiB of log; 0 hits in log, metrics, pages and answers")


def hold(requests, level, form, rng):
    token, payload = f"canary-token-{rng.getrandbits(64):016x}", f"canary-payload-{rng.getrandbits(64):016x}"
    wrong = f"canary-wrong-{rng.getrandbits(64):016x}"
    env = {"LOG_LEVEL": level, "LEITSTAND_LOG_FORMAT": form, "LEITSTAND_TOKEN": token, "LEITSTAND_AUTH_RATE_LIMIT": "off"}
    answers, sent = [], 0
    with Server(env) as server:
        assert server.up, server.log_text()
        # What a panic or a failing disk would quote: files that cannot be written, and a torn one.
        os.mkdir(os.path.join(server.dir, "directory.example.jsonl"))
        with open(os.path.join(server.dir, "torn.example.jsonl"), "w") as f: f.write('{"torn":"' + payload)
        for req in requests:
            raw = with_canaries(raw_of(req), token, payload)
            for variant in (raw, raw.replace(token.encode(), wrong.encode())):
                method = raw.split(b" ", 1)[0].decode("latin-1")
                got, _ = talk(server.port, variant, method, wait=0.0, timeout=1.5)
                sent += 1
                answers += [str(headers).encode() + body for _, headers, body in got]
        for domain in ("directory.example", "torn.example"):
            for accept in ("*/*", "application/problem+json"):
                got = request(server.port, "POST", f"/v1/ingest?domain={domain}", [("X-Auth", token), ("Content-Type", "application/json"), ("Accept", accept)],
                              json.dumps({"x": payload}).encode())
                answers.append(str(got[1]).encode() + got[2])
        for path in ("/metrics", "/health/ready", "/openapi.json", "/docs"): answers.append(request(server.port, "GET", path)[2])
        for path in ("/version", "/health"): answers.append(request(server.port, "GET", path, [("X-Auth", token)])[2])
        assert server.stop() == 0
        log = server.log_text().encode()
        stored = sum(data.count(payload.encode()) for data in server.files().values())
    assert stored > 200 and len(answers) > len(requests) and log.count(b"leitstand::access") > len(requests), (stored, len(answers), len(log))
    for canary in (token, payload, wrong):
        for shape in shapes(canary):
            assert shape not in log, f"{level} {form}: {shape!r} is in the log: {excerpt(log, shape)}"
            hit = next((a for a in answers if shape in a), None)
            assert hit is None, f"{level} {form}: {shape!r} is in an answer: {hit[:300]!r}"
    return sent, stored, len(log)


def shapes(canary):
    """As it is, any case, and what a dump of bytes would show."""
    raw = canary.encode()
    plain = canary.split("-")[2].encode()
    return [raw, raw.upper(), plain, base64.b64encode(raw)[:-4], raw.hex().encode(), b", ".join(b"%d" % b for b in raw[:16])]


def excerpt(log, shape):
    at = log.find(shape)
    return log[max(0, at - 200):at + 100]


def with_canaries(raw, token, payload):
    """The canary as token; the other in the body, as a member where it is JSON, else as bytes, and in a header."""
    raw = raw.replace(TOKEN.encode(), token.encode())
    head, found, body = raw.partition(b"\r\n\r\n")
    if not found: return raw
    line, _, fields = head.partition(b"\r\n")
    lower = fields.lower()
    if body and b"transfer-encoding" not in lower and lower.count(b"content-length") == 1 and b"content-encoding" not in lower:
        new = marked(body, payload)
        announced = b"Content-Length: %d" % len(body)
        if announced.lower() in lower:
            at = lower.index(announced.lower())
            fields = fields[:at] + b"Content-Length: %d" % len(new) + fields[at + len(announced):]
            body = new
    if fields and not fields.startswith((b" ", b"\t")): fields += b"\r\nX-Note: " + payload.encode() + b"\r\nCookie: session=" + payload.encode()
    return line + b"\r\n" + fields + b"\r\n\r\n" + body if fields else raw


def marked(body, payload):
    member = b'"canary":"%s"' % payload.encode()
    for opening in (b"{", b"[{"):
        if body.startswith(opening) and b"}" in body:
            rest = body[len(opening):]
            return opening + member + (b"" if rest.lstrip().startswith(b"}") else b",") + rest
    # Not an object: the canary stands where a parser may quote it.
    return body + b' "' + payload.encode() + b'"'


def start_up(rng):
    """Settings that stop the start are told without the secret, and so is the effective configuration."""
    secret = f"canary-secret-{rng.getrandbits(64):016x}"
    for env in ({"LEITSTAND_TOKEN": f"{secret}\tx\x01"}, {"LEITSTAND_TOKEN": secret, "LEITSTAND_MAX_BODY": "many"},
                {"LEITSTAND_TOKEN": secret, "LEITSTAND_TOKEN_FILE": secret}, {"LEITSTAND_TOKEN": None, "LEITSTAND_TOKEN_FILE": f"/nowhere/{secret}"}):
        with Server({**env, "LOG_LEVEL": "NOTSET"}) as server:
            server.p.wait(5) if not server.up else None
            assert not server.up and secret not in server.log_text(), server.log_text()
    with Server({"LEITSTAND_TOKEN": secret}) as server:
        shown = subprocess.run([server.cmd[0], "config", "check"], cwd=server.cwd, env=server.env, capture_output=True, text=True)
        assert secret not in shown.stdout + shown.stderr and "LEITSTAND_TOKEN" in shown.stdout, shown


def named_tokens():
    """The secret of a named token is on stdout of the command that makes it, once, and nowhere else."""
    for form in ("text", "json"):
        with Server({"LOG_LEVEL": "NOTSET", "LEITSTAND_LOG_FORMAT": form, "LEITSTAND_AUTH_RATE_LIMIT": "off"}) as server:
            assert server.up, server.log_text()
            told = b""

            def token(*args):
                nonlocal told
                ended = subprocess.run([server.cmd[0], "token", *args, "--data-dir", server.dir], cwd=server.cwd, env=server.env, capture_output=True)
                assert ended.returncode == 0, ended.stderr
                told += ended.stderr
                return ended.stdout.strip()

            secrets = [token("add", "canary", "--domain", "example.com", "--expires", "3d"), token("rotate", "canary")]
            for secret in secrets:
                for header in (("X-Auth", secret.decode()), ("Authorization", f"Bearer {secret.decode()}")):
                    for path, body in (("/v1/ingest?domain=example.com", b"{}"), ("/v1/ingest?domain=other", b"{}"), ("/v1/ingest", b"nonsense")):
                        got = request(server.port, "POST", path, [header, ("Content-Type", "application/json"), ("Accept", "application/problem+json")], body)
                        assert got[0] in (202, 403, 400), got
                        told += str(got[1]).encode() + got[2]
            told += token("list") + token("list", "--json") + token("revoke", "canary")
            for path in ("/metrics", "/health/ready"): told += request(server.port, "GET", path)[2]
            for secret in secrets: assert request(server.port, "GET", "/health", [("X-Auth", secret.decode())])[0] == 401
            assert server.stop() == 0
            log = server.log_text().encode()
            assert log.count(b"leitstand::audit") == 3, excerpt(log, b"leitstand::audit")
            with open(os.path.join(server.dir, ".leitstand", "tokens.json"), "rb") as f: told += log + f.read()
            for secret in secrets:
                assert len(secret) == 47 and secret not in told and secret[4:] not in told, f"{form}: {excerpt(told, secret[4:])}"
