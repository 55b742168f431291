"""Some 300 requests that two readers could cut differently: sent directly, and behind nginx and HAProxy."""
import json, os, re, shutil, socket, subprocess, tempfile, time
from collections import Counter
from common import Server, Skip, TOKEN, in_parallel
from corpus import Request, variants
from harness import free_port, parse

CLIENTS = 16
PREFACE_S_MAX = 1


def run():
    """Broken, a client behind a shared proxy puts its own request in front of somebody else's."""
    found = variants()
    legs = [Direct()] + [leg() for leg in (Nginx, Haproxy) if shutil.which(leg.binary)]
    missing = [leg.binary for leg in (Nginx, Haproxy) if not shutil.which(leg.binary)]
    results = in_parallel(len(legs), lambda i: legs[i].hold(found))
    for leg, result in zip(legs, results): print(f"framing, {leg.name}: {len(found)} variants, {result}")
    preface()
    if missing: raise Skip(f"not installed: {', '.join(missing)}; the rest was checked")


class Direct:
    name = "direct"

    def hold(self, found):
        with Server({"LOG_LEVEL": "DEBUG", "LEITSTAND_LOG_FORMAT": "json"}) as server:
            assert server.up, server.log_text()
            self.problems, self.answered, self.server = [], {}, server
            with self.front(server) as port:
                in_parallel(CLIENTS, lambda k: [self.one(port, n, *found[n]) for n in range(k, len(found), CLIENTS)])
                forwarded = self.forwarded()
            assert server.stop() == 0, server.log_text()[-1000:]
            stored = marks(server)
            return self.judge(found, stored, forwarded, server.log_text())

    def front(self, server): return Nothing(server.port)

    def forwarded(self): return None

    def one(self, port, n, name, build, hidden):
        raw = build(Request(f"v{n}-a", TOKEN), Request(f"v{n}-b", TOKEN))
        self.answered[n] = exchange(port, raw)
        if self.name == "direct": return
        # Whoever comes next over the same connections of the proxy gets an answer, and his own.
        for k in range(2):
            ident = f"v{n}-next{k}"
            answers = exchange(port, Request(ident, TOKEN).whole(), patience=5)
            if [(a[0], a[1].get("x-request-id")) for a in answers] != [(202, ident)]:
                self.problems.append(f"{name}: the next client got {[(a[0], a[1].get('x-request-id')) for a in answers]}")

    def judge(self, found, stored, forwarded, log):
        assert len(stored) == len(set(stored)), "a marked event is stored twice"
        stored = set(stored)
        two, refused = 0, 0
        for n, (name, _, hidden) in enumerate(found):
            good = sum(a[0] == 202 for a in self.answered[n])
            here = {f"v{n}-a", f"v{n}-b"} & stored
            two += len(here) == 2; refused += not here
            if self.name == "direct" and good != len(here): self.problems.append(f"{name}: {good} times 202, stored {sorted(here)}")
            if self.name == "direct" and len(self.answered[n]) > (2 if hidden else 3): self.problems.append(f"{name}: {len(self.answered[n])} answers")
            if self.name == "direct" and hidden and f"v{n}-b" in stored: self.problems.append(f"{name}: the hidden request was carried out")
            if forwarded is not None and len(here) > forwarded[f"v{n}"]:
                self.problems.append(f"{name}: the service stored {len(here)} requests, the proxy sent {forwarded[f'v{n}']}")
        if forwarded is not None: self.compare(forwarded, log)
        assert not self.problems, f"{self.name}: {len(self.problems)} problems: " + "; ".join(self.problems[:40])
        return f"{refused} stored nothing, {two} were two requests to everybody, 0 were read in two ways"

    def compare(self, forwarded, log):
        """Every request that the service read is one that the proxy sent, and not more than those."""
        lines = [json.loads(line) for line in log.splitlines()]
        seen = Counter(variant_of(line["request_id"]) for line in lines if line.get("target") == "leitstand::access")
        # What hyper refuses by itself has no access line and an id of ours.
        seen["other"] += sum("connection ended" in str(line.get("message")) and "pars" in str(line.get("error")) for line in lines)
        more = {variant: n for variant, n in seen.items() if variant != "other" and n > forwarded[variant]}
        if more: self.problems.append(f"the service read more requests than the proxy sent: {more}")
        unread = sum(forwarded.values()) - sum(n for variant, n in seen.items() if variant != "other")
        if seen["other"] > unread: self.problems.append(f"{seen['other']} requests without a known id, {unread} sent")


def variant_of(ident):
    found = re.fullmatch(r"(v\d+)-\w+", ident)
    return found[1] if found else "other"


def marks(server):
    return [json.loads(line).get("mark") for data in server.files().values() for line in data.splitlines()]


def exchange(port, raw, patience=1.0):
    """All answers to these bytes, 100 left out; ends when nothing comes for a moment."""
    out, buf = [], b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
        try: s.sendall(raw)
        except OSError: pass
        s.settimeout(patience)
        while True:
            try: data = s.recv(65536)
            except OSError: break
            if not data: break
            buf += data
            while True:
                method = "HEAD" if raw.startswith(b"HEAD") and not out else "POST"
                answer = parse(buf, method)
                if not answer: break
                if answer[0] != 100: out.append(answer[:3])
                buf = answer[3]; s.settimeout(0.25)
    return out


class Nothing:
    def __init__(self, port): self.port = port
    def __enter__(self): return self.port
    def __exit__(self, *_): pass


class Proxy(Direct):
    """A proxy of Debian in front of the service, as lenient as it can be set, with few connections to it."""

    def front(self, server):
        self.dir, self.port = tempfile.mkdtemp(prefix="proxy-"), free_port()
        os.chmod(self.dir, 0o755)
        self.log = os.path.join(self.dir, "requests.log")
        with open(os.path.join(self.dir, "proxy.conf"), "w") as f: f.write(self.config(server.port))
        self.out = open(os.path.join(self.dir, "out.log"), "wb")
        return self

    def __enter__(self):
        self.p = subprocess.Popen(self.command(), cwd=self.dir, stdout=self.out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        for _ in range(200):
            try: socket.create_connection(("127.0.0.1", self.port), timeout=1).close(); return self.port
            except OSError:
                assert self.p.poll() is None, open(self.out.name).read()
                time.sleep(0.02)
        raise AssertionError(f"{self.name} does not start")

    def __exit__(self, *_):
        self.p.terminate(); self.p.wait(); self.out.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def forwarded(self):
        """How many requests of each variant the proxy has sent on."""
        time.sleep(0.2)
        fields = [line.rstrip("\n").split("|") for line in open(self.lines(), errors="replace")]
        # Two lines in one would be two requests too few.
        broken = [f for f in fields if len(f) not in (1, 3)]
        assert not broken, f"{self.name} has written broken lines: {broken[:5]}"
        sent = Counter(variant_of(f[1]) for f in fields if len(f) == 3 and self.sent(f))
        assert sum(sent.values()) > 500, f"{self.name} has sent {sum(sent.values())} requests, not what this is about"
        return sent


class Nginx(Proxy):
    name, binary = "behind nginx", "nginx"

    def config(self, port):
        return f"""daemon off; master_process off; pid {self.dir}/pid; error_log stderr crit;
            events {{ worker_connections 512; }}
            http {{
              log_format requests '$status|$http_x_request_id|$upstream_status';
              access_log {self.log} requests; underscores_in_headers on; ignore_invalid_headers off;
              client_body_temp_path {self.dir}/a; proxy_temp_path {self.dir}/b; fastcgi_temp_path {self.dir}/c; uwsgi_temp_path {self.dir}/d; scgi_temp_path {self.dir}/e;
              upstream service {{ server 127.0.0.1:{port} max_fails=0; keepalive 2; }}
              server {{
                listen 127.0.0.1:{self.port}; client_max_body_size 8m;
                location / {{
                  proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
                  proxy_request_buffering off; proxy_next_upstream off; proxy_read_timeout 10s;
                }}
              }}
            }}"""

    def command(self): return ["nginx", "-p", self.dir, "-c", os.path.join(self.dir, "proxy.conf"), "-e", "stderr"]
    def lines(self): return self.log
    def sent(self, fields): return fields[2] not in ("", "-")


class Haproxy(Proxy):
    name, binary = "behind HAProxy", "haproxy"

    def config(self, port):
        return f"""
global
    nbthread 1
    log stdout format raw daemon
defaults
    mode http
    retries 0
    log global
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    option accept-invalid-http-request
    http-reuse always
frontend front
    bind 127.0.0.1:{self.port}
    declare capture request len 64
    http-request capture req.hdr(X-Request-ID) id 0
    log-format "%ST|%[capture.req.hdr(0)]|%s"
    default_backend service
backend service
    server service 127.0.0.1:{port} pool-max-conn 2
"""

    def command(self): return ["haproxy", "-db", "-f", os.path.join(self.dir, "proxy.conf")]
    def lines(self): return self.out.name
    def sent(self, fields): return fields[2] == "service"


def preface():
    """HTTP/2 is refused, and an offer of it is passed over."""
    with Server({}) as server:
        settings = b"\0\0\0\x04\0\0\0\0\0"
        for raw in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings, b"PRI * HTTP/2.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings * 1000):
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as s:
                s.sendall(raw)
                got = b""
                try:
                    while data := s.recv(65536): got += data
                except ConnectionResetError: pass
            took = time.monotonic() - started
            assert took <= PREFACE_S_MAX and (not got or parse(got)[0] in (400, 505)), (took, got)
        a = Request("upgrade", TOKEN)
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        answers = exchange(server.port, a.head(offer + b"Content-Length: %d\r\n" % len(a.body)) + a.body + a.whole())
        assert [x[0] for x in answers] == [202, 202] and not any("upgrade" in x[1] for x in answers), answers
    print(f"framing: the HTTP/2 preface closed within {PREFACE_S_MAX} s, an offer of h2c passed over")
