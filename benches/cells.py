"""A cell, and what the cells of the ordinary rows do: run a peer under a workload once, and say what it took."""
import functools, json, os, shutil, subprocess, time

import load, machine, peers
from check import check

TARGET = peers.TARGET
SECONDS = int(os.environ.get("BENCH_SECONDS", 3))
NO_DOCS = os.path.join(TARGET, "leitstand-no-docs")

requests_of = functools.cache(load.Requests)


class Cell:
    """One peer under one workload: what is measured again and again, in turn with others."""

    def __init__(self, name, peer, measure, seconds=SECONDS, over_s=0.8, rounds=None, x=None, series=None):
        self.name, self.peer, self.measure, self.seconds = name, peer, measure, seconds
        # What start, sync, stop and loss check take beside the load; for the estimate only.
        self.over_s, self.rounds, self.x, self.series = over_s, rounds, x, series


def figures(workload, answer, body_bytes, meter):
    seconds, events = answer["seconds"], answer["acked"] * workload.per
    return {"acked": answer["acked"], "errors": answer["errors"], "seconds": seconds,
            "req_s": round(answer["acked"] / seconds, 1), "events_s": round(events / seconds, 1),
            "mb_s": round(answer["acked"] * body_bytes / seconds / 1e6, 3),
            **{k: answer[k] for k in ("p50_us", "p99_us", "p999_us", "max_us", "late_p99_us") if k in answer},
            # Microseconds for an event are seconds for a million.
            "cpu_us_per_event": round(meter["server_cpu_s"] / events * 1e6, 3) if events else None, **meter}


def refuse_errors(peer, answer):
    """A refusal is quicker than an append: a run with refusals would measure something else."""
    if answer["errors"] and peer.name != "original": raise RuntimeError(f"{peer.name}: errors under load: {answer['errors']}")


def stop_and_check(server, work):
    """What each of `work`, pairs of requests and answer, must have left."""
    server.stop()
    if not server.peer.stores: return {}
    for requests, answer, offsets in work: check(server.data, requests, answer["sent"], answer["acked"], offsets)
    lines = {}
    if server.peer.env.get("LOG_LEVEL") == "INFO":
        with open(server.log, "rb") as f: lines["log_lines"] = sum(1 for _ in f)
    shutil.rmtree(server.data)
    return lines


def closed(workload, prepare=None, offsets=None):
    """As fast as the server answers, by wrk."""
    def measure(peer, seconds, scratch):
        requests = requests_of(workload)
        server = peers.Running(peer, scratch, prepare)
        try:
            meter = machine.Meter(server.p.pid)
            answer = load.Wrk(requests, server.port, seconds, scratch).result()
            spent = meter.stop()
            memory = {"rss_mib": round(server.memory("VmRSS"), 2), "rss_peak_mib": round(server.memory("VmHWM"), 2)}
            refuse_errors(peer, answer)
            more = stop_and_check(server, [(requests, answer, offsets)])
        finally:
            server.stop()
        return {**figures(workload, answer, requests.body_bytes, spent), **memory, **more}
    return measure


def fixed_rate(workload, beside=None):
    """A fixed number of requests a second; perhaps with another load beside it."""
    def measure(peer, seconds, scratch):
        requests = requests_of(workload)
        server = peers.Running(peer, scratch)
        try:
            meter, neighbour, work = machine.Meter(server.p.pid), None, []
            if beside:
                # The neighbour is there before the first request, and until after the last one.
                neighbour = load.Wrk(requests_of(beside), server.port, seconds + 2, scratch)
                time.sleep(0.7)
            try:
                answer = load.open_loop(requests, server.port, seconds)
            finally:
                if neighbour: work.append((requests_of(beside), neighbour.result(), None))
            spent = meter.stop()
            refuse_errors(peer, answer)
            for _, other, _ in work: refuse_errors(peer, other)
            stop_and_check(server, [(requests, answer, None), *work])
        finally:
            server.stop()
        found = figures(workload, answer, requests.body_bytes, spent)
        # With a neighbour the processor time is mostly for its events.
        return {**found, "cpu_us_per_event": None, "beside_mb_s": figures(beside, work[0][1], requests_of(beside).body_bytes, spent)["mb_s"]} if beside else found
    return measure


def disk(size, threads=1):
    def measure(_, seconds, scratch):
        meter = machine.Meter(None)
        p = subprocess.Popen(peers.diskbench(scratch, size, seconds, threads), stdout=subprocess.PIPE)
        said = json.loads(p.stdout.read())
        used = os.wait4(p.pid, 0)[2]
        return {**meter.stop(), "cpu_us_per_event": round((used.ru_utime + used.ru_stime) * 1e6 / said["turns"], 2), "req_s": round(said["turns"] / said["seconds"], 1), "mb_s": round(said["bytes"] / said["seconds"] / 1e6, 3),
                "p50_us": said["p50_us"], "p99_us": said["p99_us"], "max_us": said["max_us"]}
    return measure


def idle(peer, seconds, scratch):
    server = peers.Running(peer, scratch)
    try:
        time.sleep(seconds)
        return {"rss_mib": round(server.memory("VmRSS"), 2)}
    finally:
        server.stop()


def start(peer, _, scratch):
    meter = machine.Meter(None)
    server = peers.Running(peer, scratch)
    server.stop()
    # The server is among the children of this process by now, and so part of the load.
    return {"start_ms": round(server.start_ms, 2), **meter.stop()}


def size(_, __, ___):
    path = NO_DOCS if os.path.exists(NO_DOCS) else peers.LEITSTAND
    return {"size_mb": round(os.path.getsize(path) / 1e6, 3), "without_docs": path == NO_DOCS}
