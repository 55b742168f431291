#!/usr/bin/env python3
"""`make bench`: measures the release binary, and writes target/bench/result.json. See docs/performance.md.

Exit code 1 if a loss check failed, 2 if the machine lacks something.
"""
import datetime, hashlib, json, os, resource, shutil, signal, subprocess, sys, tempfile, time

import growth, load, machine, peers, stats
from cells import NO_DOCS, SECONDS, Cell, closed, disk, fixed_rate, idle, size, start
from check import Lost

ROOT, TARGET = peers.ROOT, peers.TARGET
RESULT = os.environ.get("BENCH_RESULT", os.path.join(TARGET, "result.json"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
MEMORY_SECONDS = int(os.environ.get("BENCH_MEMORY_SECONDS", 60))
STARTS = 11
# W6 sends 500 a second; its p99 needs some thousands.
FIXED_SECONDS = int(os.environ.get("BENCH_FIXED_SECONDS", max(4, 2 * SECONDS)))

# -- The rows --------------------------------------------------------------------------------------

def modes(*names):
    return {name: peers.leitstand(name, name) for name in names}


def grown_file(gigabytes):
    """A data file that is large already. It is a hole with one newline at its end: the service looks at
    the end of a file only, and the file system at a length, so the bytes before it need not be there.
    """
    length = int(gigabytes * 10**9)

    def prepare(directory):
        if not length: return
        with open(os.path.join(directory, "bench.jsonl"), "wb") as f:
            f.truncate(length - 1)
            f.seek(length - 1)
            f.write(b"\n")
    return prepare, {"bench.jsonl": length}


def files_there(workload):
    """Data and lock file of every domain, empty: what is measured is the append, not the first event ever."""
    def prepare(directory):
        for n in range(workload.domains):
            for name in (f"{workload.domain_of(n)}.jsonl", f"{workload.domain_of(n)}.jsonl.lock"):
                os.close(os.open(os.path.join(directory, name), os.O_CREAT | os.O_WRONLY, 0o600))
    return prepare


def rows(original, baseline):
    """Name → (what it is, its cells)."""
    never, always, everysec = modes("never", "always", "everysec").values()
    log = peers.leitstand("never, log", "never", log_level="INFO")
    ceiling = peers.CEILING

    def load_row(workload, measured, over_s=0.8):
        cells = []
        for peer in measured:
            cells.append(Cell(f"{workload.name} {peer.name}", peer, closed(workload), over_s=over_s))
            # Right beside the mode that it is compared with.
            if baseline and peer.name in ("never", "always"):
                other = peers.leitstand(f"{peer.name}, baseline", peer.name, binary=baseline)
                cells.append(Cell(f"{workload.name} {other.name}", other, closed(workload), over_s=over_s))
        if original: cells.append(Cell(f"{workload.name} original", original, closed(workload), over_s=1.6))
        return cells

    def curve(name, points, measured, over_s=0.8):
        """`points`: (x, workload, prepare, offsets)."""
        return [Cell(f"{name} {x} {peer.name}", peer, closed(workload, prepare, offsets), over_s=over_s, x=x, series=peer.name)
                for x, workload, prepare, offsets in points for peer in measured]

    def plain(points): return [(x, workload, None, None) for x, workload in points]

    w6 = [Cell("disk 200 B", None, disk(200), seconds=SECONDS, over_s=0.1)]
    for peer in [always, *([peers.leitstand("always, baseline", "always", binary=baseline)] if baseline else [])]:
        w6.append(Cell(f"W6 {peer.name}", peer, fixed_rate(load.W6), seconds=FIXED_SECONDS))
        w6.append(Cell(f"W6 {peer.name}, W4 beside", peer, fixed_rate(load.W6, beside=load.BULK), seconds=FIXED_SECONDS, over_s=6))
    if original: w6.append(Cell("W6 original", original, fixed_rate(load.W6), seconds=FIXED_SECONDS, over_s=1.6))

    memory = []
    for peer in [never, always, *([original] if original else [])]:
        memory.append(Cell(f"idle {peer.name}", peer, idle, seconds=1, rounds=min(ROUNDS, 3)))
        memory.append(Cell(f"W1 {peer.name}", peer, closed(load.W1), seconds=MEMORY_SECONDS, rounds=1, over_s=8))
        memory.append(Cell(f"W4 {peer.name}", peer, closed(load.W4), rounds=min(ROUNDS, 3), over_s=3))

    both = [never, always]
    spread = [(n, load.Workload(f"W1, {n} domains", domains=n)) for n in (1, 10, 100, 1000, 10_000)]
    sizes = [(100, 1000), (1000, 1000), (10_000, 256), (100_000, 32), (2**20, 4)]
    return {
        "w1": ("one event in a request, 64 connections", load_row(load.W1, [ceiling, never, log, always, everysec])),
        "w2": ("the same over 64 domains",
               [*load_row(load.W2, [ceiling, never, always]), Cell("disk 200 B, 64 files", None, disk(200, threads=64), over_s=0.3), Cell("W1 never", never, closed(load.W1))]),
        "w3": ("100 events in a request, 16 connections", load_row(load.W3, [ceiling, never, always, everysec], over_s=2.5)),
        "w4": ("bodies of 1 MiB, 4 connections", [Cell("disk 1 MiB", None, disk(2**20), over_s=0.3), *load_row(load.W4, [never, always], over_s=3)]),
        "w6": ("500 requests a second, 16 connections", w6),
        "memory": ("resident memory", memory),
        "start": ("start of the process to the first accepted event",
                  [Cell(f"start {peer.name}", peer, start, seconds=0, over_s=0.3, rounds=STARTS) for peer in [*both, *([original] if original else [])]]),
        "size": ("size of the binary", [Cell("binary", None, size, seconds=0, over_s=0, rounds=1)]),
        "domains": ("W1 over more and more domains", curve("domains", [
            (n, workload, files_there(workload), None) for n, workload in spread], both, over_s=1.6)),
        "connections": ("W1 over more and more connections", curve("connections", plain(
            [(n, load.Workload(f"W1, {n} connections", connections=n)) for n in (1, 4, 16, 64, 256, 1000)]), [ceiling, *both])),
        "events": ("larger and larger events, 16 connections", curve("event of", plain(
            [(n, load.Workload(f"events of {n} bytes", connections=16, distinct=distinct, size=n)) for n, distinct in sizes]), both, over_s=1.2)),
        "files": ("W1 to a data file that is large already", curve("file of", [
            (n, load.W1, *grown_file(n)) for n in (0, 1, 10)], both)),
        **growth.rows(),
    }


# -- One row after the other -----------------------------------------------------------------------

def expected_s(cells):
    return sum((cell.seconds + cell.over_s) * (cell.rounds or ROUNDS) for cell in cells)


def measure_row(name, cells, scratch):
    """A B C C B A …; a run that is not clean is repeated at once, as long as the row's bound allows."""
    found = {cell.name: {"peer": cell.peer.name if cell.peer else None, "rounds": cell.rounds or ROUNDS, "runs": [],
                         **({"x": cell.x, "series": cell.series} if cell.series else {})} for cell in cells}
    spare = sum(cell.rounds or ROUNDS for cell in cells) // 2
    for number in range(max(cell.rounds or ROUNDS for cell in cells)):
        for cell in cells if number % 2 == 0 else reversed(cells):
            if number >= (cell.rounds or ROUNDS): continue
            for attempt in range(3):
                run = {"round": number, **cell.measure(cell.peer, cell.seconds, scratch)}
                found[cell.name]["runs"].append(run)
                if stats.is_clean(run): break
                if spare == 0 or attempt == 2: break
                spare -= 1
        print(f"  {name}: round {number + 1} done", flush=True)
    return {"cells": found}


# -- What is measured, and on what -----------------------------------------------------------------

def build(sizes):
    """The product and the measuring sticks; for `sizes` also the product without the pages of the documentation."""
    def cargo(*arguments): subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", *arguments], cwd=ROOT, check=True)
    import tomllib
    with open(os.path.join(ROOT, "Cargo.toml"), "rb") as f: features = tomllib.load(f).get("features", {})
    default = features.get("default", [])
    if os.path.exists(NO_DOCS): os.unlink(NO_DOCS)
    if sizes and "docs" in default:
        # Cargo keeps both builds apart, but puts each in the same place at last.
        cargo("--bin", "leitstand", "--no-default-features", "--features", ",".join(f for f in default if f != "docs"))
        os.makedirs(TARGET, exist_ok=True)
        shutil.copy2(peers.LEITSTAND, NO_DOCS)
    cargo("--bin", "leitstand")
    cargo("--manifest-path", os.path.join("benches", "limits", "Cargo.toml"), "--target-dir", os.path.join("target", "bench", "limits"))


def sha256(path):
    with open(path, "rb") as f: return hashlib.sha256(f.read()).hexdigest()


def about(baseline, original):
    said = machine.said
    command = " ".join([f"{k}={v!r}" if " " in v else f"{k}={v}" for k, v in sorted(os.environ.items())
                        if k in ("BENCH_ROWS", "BENCH_ROUNDS", "BENCH_SECONDS", "BENCH_FIXED_SECONDS", "BENCH_MEMORY_SECONDS")]
                       + [f"{k}=…" for k in ("BASELINE", "ORIGINAL") if os.environ.get(k)] + ["make bench"])
    facts = {**machine.facts(TARGET), "command": command, "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
             "commit": said("git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12"),
             "leitstand": said(peers.LEITSTAND, "--version"), "leitstand_sha256": sha256(peers.LEITSTAND),
             "rustc": said("rustc", "--version"), "wrk": " ".join(said("wrk", "-v").split()[:2]), "python": sys.version.split()[0]}
    if baseline: facts |= {"baseline": said(baseline, "--version"), "baseline_sha256": sha256(baseline)}
    if original: facts["original"] = said("git", "-C", original.cwd, "describe", "--always", "--abbrev=12")
    return facts


def lacking():
    """What to do before a benchmark can run, or nothing."""
    if sys.version_info < (3, 11): return f"python3 is {sys.version.split()[0]}; the benchmark needs 3.11"
    if not shutil.which("wrk"): return "wrk is not installed: apt-get install wrk (Debian, Ubuntu), or the package of your distribution"
    baseline = os.environ.get("BASELINE")
    if baseline and not os.access(baseline, os.X_OK): return f"BASELINE is no program: {baseline}"
    return None


def main():
    if why := lacking():
        print(f"bench: {why}", file=sys.stderr)
        return 2
    baseline = os.path.abspath(os.environ["BASELINE"]) if os.environ.get("BASELINE") else None
    original, no_original = peers.find_original()
    all_rows = rows(original, baseline)
    wanted = os.environ.get("BENCH_ROWS", "").split() or list(all_rows)
    if unknown := [name for name in wanted if name not in all_rows]:
        print(f"bench: BENCH_ROWS names {' '.join(unknown)}; there are: {' '.join(all_rows)}", file=sys.stderr)
        return 2
    # As Ctrl-C: the server and the scratch files must not stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # A thousand connections are more than the usual soft limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("bench: build", flush=True)
    build(sizes="size" in wanted)
    skipped = []
    if no_original: skipped.append(f"original: {no_original}")
    if not baseline: skipped.append("baseline: BASELINE is not set (another leitstand binary)")
    if "size" in wanted and not os.path.exists(NO_DOCS):
        skipped.append("size without the pages of the documentation: there is no feature `docs` to leave out; the ordinary binary is measured")
    for reason in skipped: print(f"bench: SKIPPED: {reason}", flush=True)
    minutes = sum(expected_s(all_rows[name][1]) for name in wanted) / 60
    print(f"bench: {' '.join(wanted)}; about {minutes:.0f} minutes on a quiet machine, at most {minutes * 1.5:.0f} on a busy one", flush=True)

    scratch_root = os.environ.get("BENCH_DIR", TARGET)
    os.makedirs(scratch_root, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="scratch-", dir=scratch_root)
    result = {"format": 1, "about": about(baseline, original), "rounds": ROUNDS, "seconds": SECONDS, "skipped": skipped, "rows": {}}
    began, keep = time.monotonic(), False
    try:
        for name in wanted:
            title, cells = all_rows[name]
            print(f"bench: {name}: {title}, {len(cells)} cells, about {expected_s(cells):.0f} s", flush=True)
            result["rows"][name] = {"title": title, **measure_row(name, cells, scratch)}
    except Lost as lost:
        keep = True
        print(f"bench: {name}: {lost}\nbench: FAILED; the files are in {scratch}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"bench: {name}: {error}", file=sys.stderr)
        return 1
    finally:
        if not keep: shutil.rmtree(scratch, ignore_errors=True)
    result["took_s"] = round(time.monotonic() - began)
    os.makedirs(os.path.dirname(os.path.abspath(RESULT)), exist_ok=True)
    with open(RESULT, "w") as f: json.dump(result, f, indent=1)
    runs = [run for row in result["rows"].values() for cell in row["cells"].values() for run in cell["runs"]]
    print(f"bench: took {result['took_s'] / 60:.1f} minutes; {sum(map(stats.is_clean, runs))} of {len(runs)} runs were clean; "
          f"all loss checks passed; {os.path.relpath(RESULT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
