"""What the machine is, and who used its processors meanwhile."""
import os, re, subprocess, time

HZ = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
CORES = os.cpu_count()


def tree(pid):
    """A process and all its descendants."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as f: todo += map(int, f.read().split())
        except OSError:
            pass
    return found


def cpu_s(pids):
    """User and system time of processes, without children that they have waited for."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as f: fields = f.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / HZ


def memory_mib(pid, field):
    """VmRSS (now) or VmHWM (the peak), over the tree of a process."""
    total = 0
    for pid in tree(pid):
        try:
            with open(f"/proc/{pid}/status") as f: found = re.search(field + r":\s+(\d+)", f.read())
            total += int(found.group(1)) if found else 0
        except OSError:
            pass
    return total / 1024


def kernel_threads():
    """Everything that kthreadd, process 2, has started."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit(): continue
        try:
            with open(f"/proc/{name}/stat") as f:
                if f.read().rsplit(")", 1)[1].split()[1] == "2": found.append(int(name))
        except OSError:
            pass
    return found


class Meter:
    """Processor seconds from `start` to `stop`: of the server, of the load, and of everybody else."""

    def __init__(self, server_pid):
        self.pid = server_pid
        self.before = self.read()

    def read(self):
        with open("/proc/stat") as f: v = [int(x) for x in f.readline().split()[1:9]]
        mine = os.times()
        return {"at": time.perf_counter(), "busy": (v[0] + v[1] + v[2]) / HZ, "interrupts": (v[5] + v[6]) / HZ, "steal": v[7] / HZ,
                "load": mine.user + mine.system + mine.children_user + mine.children_system,
                "server": cpu_s(tree(self.pid)) if self.pid else 0.0, "kernel": cpu_s(kernel_threads())}

    def stop(self):
        """Neither server nor load: other processes, and what the host took away (steal). Kernel threads
        and interrupts are told apart: what they do here is mostly to carry the requests, to write back
        and to sync.
        """
        after = self.read()
        spent = {k: after[k] - self.before[k] for k in after}
        other = max(0.0, spent["busy"] + spent["steal"] - spent["load"] - spent["server"] - spent["kernel"])
        return {"wall_s": round(spent["at"], 3), "server_cpu_s": round(spent["server"], 3), "load_cpu_s": round(spent["load"], 3),
                "kernel_cpu_s": round(spent["kernel"], 3), "interrupts_cpu_s": round(spent["interrupts"], 3), "steal_s": round(spent["steal"], 3), "other_cpu_s": round(other, 3),
                "other_share": round(other / (spent["at"] * CORES), 4)}


def said(*command):
    """The first line a command prints, or nothing."""
    try:
        lines = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30).stdout.splitlines()
        return lines[0].strip() if lines and not lines[0].startswith("fatal:") else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""


def facts(directory):
    """What a reader has to know about the machine. No names of users, hosts or directories."""
    with open("/proc/cpuinfo") as f: models = re.findall(r"model name\s*: (.*)", f.read())
    with open("/proc/meminfo") as f: memory = int(re.search(r"MemTotal:\s+(\d+)", f.read()).group(1))
    best = ("", "", "")
    with open("/proc/self/mounts") as f:
        for line in f:
            device, point, kind, options = line.split()[:4]
            inside = os.path.realpath(directory).startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]): best = (point, kind, options)
    system = ""
    try:
        with open("/etc/os-release") as f: system = re.search(r'PRETTY_NAME="?([^"\n]*)', f.read()).group(1)
    except (OSError, AttributeError):
        pass
    return {"cpu": models[0] if models else "unknown", "cores": CORES, "memory_gib": round(memory / 2**20, 1),
            "kernel": os.uname().release, "system": system, "filesystem": best[1],
            # Those that change what a sync costs.
            "mount_options": [o for o in best[2].split(",") if re.match(r"(no)?barrier|data=|commit=|sync|discard|compress|lazytime", o)]}
