"""The container image: it builds from its Dockerfile, and runs read-only as nobody with a true HEALTHCHECK.

No container engine is needed: buildah builds with chroot isolation. The two base images come from registries that a
test must not need, so stand-ins take their names: for the toolchain this machine's own, for distroless the Debian
packages that it consists of. Short: what `.dockerignore` lets in is checked by the compiler, and the release binary
that `make test` has built goes into the image. Long: the Dockerfile as it is, with the whole build.
"""
import glob, json, os, shutil, subprocess, tempfile
import harness
from common import BIN, LONG, ROOT, Skip, need, need_root, wait_until
from harness import TOKEN

TOOLCHAIN, RUNTIME, IMAGE = "localhost/stand-in/rust", "localhost/stand-in/distroless", "localhost/leitstand-test"
BASES = {"rust:1.95-slim-bookworm": TOOLCHAIN, "gcr.io/distroless/cc-debian12:nonroot": RUNTIME}
# What gcr.io/distroless/cc-debian12 consists of, see its BUILD files.
PACKAGES = ["base-files", "netbase", "tzdata", "libc6", "libgcc-s1", "gcc-12-base", "libstdc++6", "libgomp1", "libssl3"]
NOBODY = 65532
CONTENT_MIB_MAX = 40


def run():
    need_root("for chroot isolation and mounts")
    need("buildah", "dpkg-deb", "apt-get", "setpriv", "unshare")
    with tempfile.TemporaryDirectory(prefix="image-") as dir:
        try:
            toolchain(dir); runtime(dir)
            build(dir)
            with Mounted(f"{IMAGE}:latest") as root:
                mib = content_bytes(root) / 2**20
                mode = os.stat(f"{root}/data")
                assert (mode.st_mode & 0o7777, mode.st_uid, mode.st_gid) == (0o700, NOBODY, NOBODY), f"/data: {oct(mode.st_mode)} {mode.st_uid}:{mode.st_gid}"
                serve(dir, root, configuration())
        finally:
            for name in (IMAGE, TOOLCHAIN, RUNTIME):
                subprocess.run(["buildah", "rmi", "--force", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert mib <= CONTENT_MIB_MAX, f"{mib:.1f} MiB in the image, more than {CONTENT_MIB_MAX}"
    print(f"image: {mib:.1f} MiB, built {'whole' if LONG else 'with the binary of this build'}, ran read-only as {NOBODY}")


def buildah(*args):
    done = subprocess.run(["buildah", *args], capture_output=True, text=True)
    assert done.returncode == 0, f"buildah {args}: {(done.stdout + done.stderr)[-2000:]}"
    return done.stdout.strip()


class Container:
    """A working container of buildah; gone after `with`."""

    def __init__(self, image): self.id = buildah("from", "--pull-never", image)

    def __enter__(self):
        self.root = buildah("mount", self.id)
        return self

    def __exit__(self, *_): buildah("rm", self.id)

    def commit(self, name, *config):
        buildah("config", *config, self.id)
        buildah("umount", self.id)
        buildah("commit", "--quiet", self.id, name)


class Mounted:
    """The files of an image, as a directory."""

    def __init__(self, image): self.container = Container(image)

    def __enter__(self): return self.container.__enter__().root

    def __exit__(self, *_): self.container.__exit__()


def toolchain_dirs():
    """Where this machine has cargo, rustup and the packages; mounted, not copied."""
    cargo = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    rustup = os.environ.get("RUSTUP_HOME", os.path.expanduser("~/.rustup"))
    return cargo, rustup


def toolchain(dir):
    cargo, rustup = toolchain_dirs()
    if not os.path.exists(f"{cargo}/bin/cargo"): raise Skip("cargo is not below CARGO_HOME, so it cannot be lent to the image")
    with Container("scratch") as container:
        for name in ("usr", "etc", "tmp", "root", "proc", "dev", "sys"): os.mkdir(f"{container.root}/{name}")
        # As on this machine, whose /usr is mounted there.
        for name in ("bin", "sbin", "lib", "lib64"): os.symlink(f"usr/{name}", f"{container.root}/{name}")
        settings = {"PATH": f"{cargo}/bin:/usr/local/bin:/usr/bin:/bin", "CARGO_HOME": cargo, "RUSTUP_HOME": rustup, "HOME": "/root",
                    "CARGO_NET_OFFLINE": "true"}
        container.commit(TOOLCHAIN, *[word for name, value in settings.items() for word in ("--env", f"{name}={value}")])


def runtime(dir):
    packages = os.path.join(dir, "packages"); os.mkdir(packages)
    # apt drops root to fetch.
    shutil.chown(packages, "_apt"); os.chmod(dir, 0o755)
    got = subprocess.run(["apt-get", "download", *PACKAGES], cwd=packages, capture_output=True, text=True)
    if got.returncode: raise Skip(f"apt-get download: {got.stderr.strip().splitlines()[-1] if got.stderr.strip() else got.returncode}")
    with Container("scratch") as container:
        for package in glob.glob(f"{packages}/*.deb"): subprocess.run(["dpkg-deb", "--extract", package, container.root], check=True)
        shutil.rmtree(f"{container.root}/usr/share/doc", ignore_errors=True)
        with open(f"{container.root}/etc/passwd", "w") as f: f.write(f"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{NOBODY}:{NOBODY}:nonroot:/home/nonroot:/sbin/nologin\n")
        container.commit(RUNTIME)


def build(dir):
    """The Dockerfile of the project, with the stand-ins in place of what it is built on."""
    text = open(os.path.join(ROOT, "Dockerfile")).read()
    for base, stand_in in BASES.items():
        assert f"FROM {base}" in text, f"the Dockerfile no longer builds on {base}: give it a stand-in"
        text = text.replace(f"FROM {base}", f"FROM {stand_in}")
    cargo, rustup = toolchain_dirs()
    volumes = ["/usr:/usr:ro", "/etc/ld.so.cache:/etc/ld.so.cache:ro", f"{rustup}:{rustup}:ro", f"{cargo}:{cargo}"]
    if os.path.isdir("/etc/alternatives"): volumes.append("/etc/alternatives:/etc/alternatives:ro")
    if not LONG:
        whole = "RUN cargo build --release --locked --bin leitstand\n"
        assert whole in text, "the Dockerfile builds in another way than this check knows"
        text = text.replace(whole, "RUN CARGO_TARGET_DIR=/target cargo check --locked --bin leitstand && install -D /built target/release/leitstand\n")
        volumes += [f"{BIN}:/built:ro", f"{target_dir()}:/target"]
    dockerfile = os.path.join(dir, "Dockerfile")
    with open(dockerfile, "w") as f: f.write(text)
    mounts = [word for volume in volumes for word in ("--volume", volume)]
    # HEALTHCHECK is known to the format of docker only.
    buildah("bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "--tag", IMAGE, "--file", dockerfile, *mounts, ROOT)


def target_dir():
    dir = os.path.join(ROOT, "target", "image"); os.makedirs(dir, exist_ok=True)
    return dir


def configuration():
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
    assert config["User"] == f"{NOBODY}:{NOBODY}" and config["WorkingDir"] == "/data" and "/data" in config["Volumes"], config
    assert config["StopSignal"] == "SIGTERM" and list(config["ExposedPorts"]) == ["8788/tcp"], config
    assert config["Healthcheck"]["Test"][0] == "CMD", config["Healthcheck"]
    return config


def content_bytes(root):
    """As the layers have it: each file once, links not followed."""
    seen, total = set(), 0
    for where, _, names in os.walk(root):
        for name in names:
            stat = os.lstat(os.path.join(where, name))
            if (stat.st_dev, stat.st_ino) not in seen: total += stat.st_size
            seen.add((stat.st_dev, stat.st_ino))
    return total


def serve(dir, root, config):
    """Runs the image as an engine does: its entry point and variables, a read-only root, an own user, no rights."""
    data, secrets = os.path.join(dir, "volume"), os.path.join(dir, "secrets")
    for path in (data, secrets): os.mkdir(path, 0o700); os.chown(path, NOBODY, NOBODY)
    with open(f"{secrets}/token", "w") as f: f.write(TOKEN + "\n")
    os.chown(f"{secrets}/token", NOBODY, NOBODY)
    port = harness.free_port()
    script = ('set -e; mount --make-rprivate /; mount --bind "$1" "$1"; mount --bind "$2" "$1/data"; mount -t tmpfs -o size=64k none "$1/tmp"; '
              'mkdir "$1/tmp/secrets"; mount --bind "$3" "$1/tmp/secrets"; mount -o remount,bind,ro "$1"; shift 3; exec "$@"')
    variables = [*config["Env"], f"LEITSTAND_PORT={port}", "LEITSTAND_HOST=127.0.0.1", "LEITSTAND_TOKEN_FILE=/tmp/secrets/token"]
    os.makedirs(f"{root}/tmp", exist_ok=True)
    health = config["Healthcheck"]["Test"][1:]

    def start(*command, **how):
        return subprocess.Popen(["unshare", "--mount", "sh", "-c", script, "sh", root, data, secrets, "env", "-i", *variables, "setpriv", "--no-new-privs",
                                 "chroot", f"--userspec={NOBODY}:{NOBODY}", "--groups=", root, *command], **how)

    service = start(*config["Entrypoint"], *config["Cmd"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: service.poll() is not None or answers(port), 10, "the image serves")
        assert service.poll() is None, service.stdout.read()
        ids = open(f"/proc/{service.pid}/status").read()
        assert f"Uid:\t{NOBODY}\t{NOBODY}" in ids, ids
        head = [("X-Auth", TOKEN), ("Content-Type", "application/json")]
        status, _, text = harness.request(port, "POST", "/v1/ingest?domain=image", head, b'{"event":"demo"}', wait=0.0)
        assert (status, text) == (202, b"ok"), (status, text)
        assert open(f"{data}/image.jsonl").read() == '{"event":"demo","domain":"image"}\n'
        assert start(*health, stdout=subprocess.DEVNULL).wait(10) == 0, "HEALTHCHECK says no beside a good service"
    finally:
        service.terminate()
        try: code = service.wait(15)
        finally: service.kill(); service.wait()
    assert code == 0, (code, service.stdout.read())
    assert start(*health, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(10) == 1, "HEALTHCHECK says yes without a service"


def answers(port):
    try: return harness.request(port, "GET", "/health/live", wait=0.0)[0] == 200
    except OSError: return False
