"""The service opens nothing outside its data directory: in a replay of the recorded cases, and while somebody swaps links in."""
import json, os, re, shutil, subprocess, sys, tempfile, threading, time
import common
from common import BIN, ROOT, Server, need, part, problem, ready, seed, setting, wait_until

# What a process reads of the machine: libraries, its own share of it, names of hosts, its .env.
MAY_READ = re.compile(r"^(/etc/ld\.so\.(cache|preload)|(/usr)?/lib(64)?/.*\.so[.0-9]*|/proc/(self|\d+)/(cgroup|mountinfo|maps|stat|status|limits|fd)"
                      r"|/sys/fs/ext4/[^/]+/journal_task|/proc/fs/ext4/[^/]+/fc_info|/proc/(stat|meminfo|vmstat|sys/vm/overcommit_memory)|/sys/fs/cgroup/.*|/sys/devices/system/cpu/.*|/sys/kernel/mm/transparent_hugepage/enabled"
                      r"|/etc/(hosts|nsswitch\.conf|resolv\.conf|host\.conf|gai\.conf|localtime|passwd)|/dev/(null|u?random))$")
CALL = re.compile(r"^\d+\s+(\w+)\((.*)\) += (-?\d+|\?)(?:<(.*?)>)?(.*)$")
HARMLESS = {"execve", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "stat", "lstat", "newfstatat", "statfs", "statx", "chdir", "getcwd", "inotify_add_watch"}
MAKES_DIRECTORIES = ("mkdir", "mkdirat")


def run():
    part("replay under strace", replay)
    races()


def replay():
    """The recorded cases, with every call that names a file looked at."""
    need("strace")
    outer = tempfile.mkdtemp(prefix="confined-")
    try:
        # -D: the process that is signalled is the service itself. `.env` stands in the working directory.
        cases = [line for line in open("tests/golden/recorded.jsonl", encoding="utf-8")]
        if not common.LONG:   # those with a data directory of their own kind, and every eighth other
            usual = [json.loads(line)["profile"] == "default" and not json.loads(line).get("setup") for line in cases]
            cases = [line for n, line in enumerate(cases) if not usual[n] or n % 8 == 0]
            cases = [line for line in cases if not re.search(r"RATE_LIMIT|tmpfs|unprivileged", json.loads(line)["profile"])]
        chosen = os.path.join(outer, "cases.jsonl")
        with open(chosen, "w", encoding="utf-8") as f: f.writelines(cases)
        command = f'exec strace -D -f -y -s 4096 -o {outer}/trace.$$ -e trace=%file,fchmod,fchown,ftruncate {BIN} serve'
        env = {**os.environ, "LEITSTAND_REPLAY_CMD": command}
        done = subprocess.run([sys.executable, "tests/golden/replay.py", chosen], cwd=ROOT, env=env,
                              capture_output=True, text=True)
        time.sleep(0.3)
        traces = [os.path.join(outer, n) for n in os.listdir(outer) if n.startswith("trace.")]
        # Under strace a timing case may differ; that is not what is judged here, but an empty run proves nothing.
        figure = re.search(r"(\d+) of (\d+) recorded cases", done.stdout)
        assert figure and int(figure[1]) > 0.9 * len(cases), done.stdout[-500:] + done.stderr[-500:]
        opened, outside = 0, []
        for trace in traces:
            n, strange = judge(open(trace, errors="replace"))
            opened += n; outside += strange
        print(f"confined: {figure[0]} under strace, {len(traces)} processes, {opened} opens in data directories, {len(outside)} outside")
        for call in outside[:10]: print("confined: outside: " + call)
        assert not outside and opened > len(cases)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def judge(lines):
    """Opens in the data directory, and calls that reach outside of it."""
    inside, outside = 0, []
    for text in unite(lines):
        call = CALL.match(text)
        if not call: continue
        name, args, result, opened, _ = call.groups()
        if name in HARMLESS: continue
        # Every path in the arguments, relative ones to the directory before them.
        base = re.match(r"^(?:AT_FDCWD|\d+)<([^>]*)>", args)
        paths = [os.path.join(base[1] if base else "", p) for p in re.findall(r'"((?:[^"\\]|\\.)*)"', args)[:2]]
        if opened: paths.append(opened.removesuffix("(deleted)"))
        reads = name in ("open", "openat") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND", args)
        if name == "ftruncate" or name.startswith("fch"): paths = [base[1]] if base else []
        for path in map(os.path.normpath, paths):
            if re.match(r"^(/tmp|/var/tmp|/dev/shm)/bar-[^/]+(\.gone)?(/|$)", path):
                inside += name == "openat" and result != "-1"
            elif reads and (MAY_READ.match(path) or path.endswith("/.env") and "/barcwd-" in path): pass
            # The named tokens of a data directory that a recorded case names; they are looked for before it is made.
            elif reads and re.match(r"^(/proc/nope|.*/barcwd-[^/]+)/\.leitstand/tokens\.json$", path): pass
            # One recorded case has an empty name for it: the working directory itself.
            elif reads and re.match(r"^.*/barcwd-[^/]+(/\.leitstand)?$", path): pass
            elif path == "/proc/nope" and name in MAKES_DIRECTORIES: pass   # the data directory of one recorded case
            elif name in MAKES_DIRECTORIES or reads and "O_DIRECTORY" in args:
                # A data directory that a recorded case names, and its parents.
                if "barcwd-" not in path: outside.append(text)
            elif "/barcwd-" in path and re.search(r"/barcwd-[^/]+/(data|.*\.jsonl(\.lock)?)", path): inside += 1
            else: outside.append(text)
    return inside, outside


def unite(lines):
    """Calls that strace shows in two parts, as one line."""
    begun = {}
    for line in lines:
        line = line.rstrip("\n")
        pid = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"): begun[pid] = line[:-len("<unfinished ...>")].rstrip(); continue
        resumed = re.match(r"^\d+\s+<\.\.\. \w+ resumed>(.*)$", line)
        yield begun.pop(pid, "") + resumed[1] if resumed else line


def races():
    """Somebody with the rights to the directory swaps target, lock and the directory itself for links to a place outside."""
    swaps = setting("SWAPS", 500, 10_000)
    rng = seed("confined")
    outer = tempfile.mkdtemp(prefix="races-")
    data, outside = os.path.join(outer, "data"), os.path.join(outer, "outside")
    os.mkdir(data); os.mkdir(outside)
    for name in ("a.jsonl", "a.jsonl.lock", "b.jsonl", "b.jsonl.lock", "secret"):
        with open(os.path.join(outside, name), "w") as f: f.write('{"not":"yours"}')   # torn, too: a repair would show
    known = picture(outside)
    done, answers, over = {"target": 0, "lock": 0, "directory": 0}, {}, threading.Event()
    try:
        with Server({"LEITSTAND_DISK_RESERVE": "0", "LOG_LEVEL": "CRITICAL"}, datadir=data) as server:
            assert server.up, server.log_text()
            for d in "ab": assert problem(server.port, d, {"n": 0})[0] == 202

            def client(domain):
                while not over.is_set():
                    status, answer, _ = problem(server.port, domain, {"n": 1})
                    key = (status, answer["detail"]); answers[key] = answers.get(key, 0) + 1
            clients = [threading.Thread(target=client, args=(d,)) for d in "aabb"]
            for t in clients: t.start()
            try:
                for n in range(swaps):
                    kind = rng.choice(["target", "target", "lock", "directory"])
                    swap(kind, data, outside, rng.choice("ab"), outer, rng.choice([True, False]), rng.uniform(0, 0.002))
                    done[kind] += 1
                    time.sleep(rng.uniform(0, 0.002))
            finally:
                over.set()
                for t in clients: t.join()
            assert picture(outside) == known, f"outside: {known} became {picture(outside)}"
            # Whoever was poisoned by the swaps gets a fresh file, as the runbook has it.
            for d in "ab":
                path = os.path.join(data, d + ".jsonl")
                shutil.copyfile(path, path + ".new"); os.replace(path + ".new", path)
            wait_until(lambda: ready(server.port) == 200, 2, "ready after the swaps")
            for d in "ab": assert problem(server.port, d, {"n": 2})[0] == 202
        assert picture(outside) == known
        print(f"confined: {swaps} swaps {done}, answers {dict(sorted(answers.items()))}, 0 bytes outside")
        strange = {k: n for k, n in answers.items() if k not in {(202, "ok"), (400, "invalid domain"), (500, "storage error"), (503, "lock timeout")}}
        assert not strange, strange
        assert answers.get((202, "ok"), 0) > swaps / 10 and len(answers) > 1, "the swaps hit nothing"
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def swap(kind, data, outside, domain, outer, dangling, pause):
    """Puts a link in the place of something, and after a pause the thing back. Who follows a dangling link makes a file."""
    name = domain + (".jsonl.lock" if kind == "lock" else ".jsonl")
    place, aside, link = os.path.join(data, name), os.path.join(data, ".aside"), os.path.join(data, ".link")
    leads_to = os.path.join(outside, "made" if dangling else name)
    if kind == "directory": place, aside, link, leads_to = data, os.path.join(outer, "aside"), os.path.join(outer, "link"), outside
    os.symlink(leads_to, link)
    if not os.path.lexists(place):   # the service makes lock files and, after a swap, data files again
        with open(place, "xb"): pass
    try:
        if kind == "directory":
            os.rename(place, aside); os.rename(link, place)
            time.sleep(pause)
            os.unlink(place); os.rename(aside, place)
        else:
            os.rename(place, aside)
            os.rename(link, place)   # over what the service may have made in between
            time.sleep(pause)
            os.rename(aside, place)
    finally:
        if os.path.lexists(link): os.unlink(link)


def picture(directory):
    """Everything that a write or an open for writing would change."""
    return {n: (open(os.path.join(directory, n), "rb").read(), os.stat(os.path.join(directory, n)).st_mtime_ns) for n in sorted(os.listdir(directory))}
