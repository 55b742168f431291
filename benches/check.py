"""The loss check: after every run, what is in the files against what was acknowledged."""
import collections, os

from load import file_of


class Lost(Exception):
    """The files are not what the answers said. Ends the whole benchmark."""


def check(directory, requests, sent, acked, offsets=None):
    """Raises `Lost`, or returns how many events the files hold.

    `sent[n]` is how often request n was sent at most, `acked` how many requests were answered with a
    2xx. So with one unfinished request for each connection: a request that was acknowledged is in its
    file whole, and none is there more often than it was sent. `offsets` says where to begin to read.
    """
    workload = requests.workload
    owner = {}
    by_domain = collections.defaultdict(list)
    for n, (domain, lines) in enumerate(requests.lines):
        by_domain[domain].append(n)
        for line in lines:
            if line in owner: raise AssertionError("two requests of a workload hold the same event")
            owner[line] = n
    complaints, stored = [], 0
    for domain, numbers in by_domain.items():
        name = file_of(domain)
        path, here = os.path.join(directory, name), set(numbers)
        seen = collections.Counter()
        try:
            with open(path, "rb") as f:
                f.seek((offsets or {}).get(name, 0))
                seen.update(f)
        except FileNotFoundError:
            pass
        for line in seen:
            if owner.get(line) not in here:
                what = "is torn" if not line.endswith(b"\n") else "is none that was sent to this domain"
                complaints.append(f"{name}: a line {what}: {line[:60]!r} … {line[-20:]!r}")
        for n in numbers:
            counts = {seen[line] for line in requests.lines[n][1]}
            if len(counts) > 1: complaints.append(f"{name}: request {n} is not there whole: its events are there {sorted(counts)} times")
            if max(counts) > sent[n]: complaints.append(f"{name}: request {n} is there {max(counts)} times and was sent {sent[n]} times: doubled")
            stored += min(counts)
    if stored < acked: complaints.append(f"{acked} requests were acknowledged and {stored} are in the files: {acked - stored} are missing")
    if stored > acked + workload.connections:
        complaints.append(f"{stored} requests are in the files, {acked} were acknowledged, and only {workload.connections} can be unfinished")
    if complaints:
        more = f"\n  and {len(complaints) - 10} more" if len(complaints) > 10 else ""
        raise Lost("the loss check failed:\n  " + "\n  ".join(complaints[:10]) + more)
    return stored * workload.per
