"""Refused uploads behind nginx and HAProxy: the client gets the refusal, and no 502."""
import os, random, shutil, socket, subprocess, tempfile, threading, time
from collections import Counter
from common import LONG, Server, TOKEN, find, need, setting, wait_until

UPLOADS = setting("UPLOADS", 24, 1_000)
MIB_MIN, MIB_MAX = 2, 40
CLIENTS = 6
ANSWER_S_MAX = 120

NGINX = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log error;
events {{}}
http {{
  access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  client_max_body_size 0;
  upstream kept {{ server 127.0.0.1:{service}; keepalive 8; }}
  server {{ listen 127.0.0.1:{ports[0]}; location / {{ proxy_pass http://127.0.0.1:{service}; }} }}
  server {{ listen 127.0.0.1:{ports[1]}; location / {{
    proxy_pass http://kept; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off; }} }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen one
  bind 127.0.0.1:{ports[0]}
  server service 127.0.0.1:{service}
listen two
  bind 127.0.0.1:{ports[1]}
  http-reuse always
  option http-buffer-request
  server service 127.0.0.1:{service}
"""


def free_ports(n):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets: s.close()
    return ports


class Proxy:
    """A proxy of Debian with two listeners in front of the service."""

    def __init__(self, name, service):
        self.name, self.dir, self.ports = name, tempfile.mkdtemp(prefix=f"leitstand-{name}-"), free_ports(2)
        path = os.path.join(self.dir, "proxy.conf")
        text = {"nginx": NGINX, "haproxy": HAPROXY}[name].format(dir=self.dir, service=service, ports=self.ports)
        with open(path, "w") as f: f.write(text)
        os.chmod(self.dir, 0o755)
        args = [find(name), "-c", path, "-p", self.dir] if name == "nginx" else [find(name), "-db", "-f", path]
        self.log = open(os.path.join(self.dir, "output"), "w")
        self.p = subprocess.Popen(args, stdout=self.log, stderr=self.log)
        wait_until(lambda: all(map(listens, self.ports)), 20, f"{name} listens")

    def __enter__(self): return self

    def __exit__(self, *_):
        self.p.terminate(); self.p.wait(); self.log.close()
        shutil.rmtree(self.dir)


def listens(port):
    try: socket.create_connection(("127.0.0.1", port), timeout=1).close(); return True
    except OSError: return False


def upload(port, kind, size):
    """Sends a body that is refused; the status of the answer, or what happened instead."""
    token = "wrong" if kind == 401 else TOKEN
    path = "/nowhere" if kind == 404 else "/v1/ingest?domain=large"
    head = (f"POST {path} HTTP/1.1\r\nHost: h\r\nX-Auth: {token}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {size}\r\n\r\n").encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S_MAX)
    try:
        try:
            client.sendall(head)
            chunk = b" " * (256 << 10)
            for at in range(0, size, len(chunk)): client.sendall(chunk[:size - at])
        except OSError: pass   # An answer may be there all the same.
        answer = b""
        while b"\r\n" not in answer:
            more = client.recv(4096)
            if not more: return "no answer"
            answer += more
        return int(answer.split()[1])
    except OSError as error: return type(error).__name__
    finally: client.close()


def uploads(name, port, count, rng):
    """Many of them, some at once: how often what was answered that is not the refusal."""
    todo = [(rng.choice((401, 413, 413, 404)), rng.randint(MIB_MIN << 20, MIB_MAX << 20)) for _ in range(count)]
    wrong, lock, began = Counter(), threading.Lock(), time.time()

    def work():
        while True:
            with lock:
                if not todo: return
                kind, size = todo.pop()
            got = upload(port, kind, size)
            if got != kind:
                with lock: wrong[kind, got] += 1
    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for t in threads: t.start()
    for t in threads: t.join()
    print(f"proxies: {name}: {count} refused uploads of {MIB_MIN} to {MIB_MAX} MiB in {time.time() - began:.0f} s; "
          f"not the refusal: {dict(wrong) or 0}", flush=True)
    return sum(wrong.values())


def run():
    """Broken, the client of a proxy is told 502 where it should be told that its body is too large or its token wrong."""
    need("nginx", "haproxy")
    rng, failures = random.Random(7), 0
    env = {"LEITSTAND_MAX_BODY": "1MiB", "LEITSTAND_RATE_LIMIT": "off", "LEITSTAND_AUTH_RATE_LIMIT": "off", "LOG_LEVEL": "ERROR"}
    with Server(env) as server:
        for name in ("nginx", "haproxy"):
            with Proxy(name, server.port) as proxy:
                for n, port in enumerate(proxy.ports):
                    failures += uploads(f"{name} {n + 1}", port, UPLOADS // 4, rng)
    assert failures == 0, failures
