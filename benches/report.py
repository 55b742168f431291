#!/usr/bin/env python3
"""`make bench-report`: from target/bench/result.json to the tables and plots of docs/performance.md.

`report.py [--print] [RESULT…]`: with --print nothing is written, and the tables go to stdout.
Several results are put together; they must be of the same binary.
"""
import json, os, sys

import stats, svg

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "docs", "performance.md")
IMAGES = os.path.join(ROOT, "docs", "img")
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

TITLES = {
    "w1": "W1: one event in a request, 64 connections, one domain",
    "w2": "W2: one event in a request, 64 connections, 64 domains",
    "w3": "W3: 100 events in a request, 16 connections",
    "w4": "W4: bodies of 1 MiB, 4 connections",
    "w6": "W6: 500 requests a second, 16 connections",
    "memory": "Resident memory",
    "start": "Start of the process to the first accepted event",
}
BARS = {  # row: [(metric, unit, factor)]
    "w1": [("req_s", "requests a second; more is better", 1), ("cpu_us_per_event", "µs of processor time for an event; less is better", 1)],
    "w2": [("req_s", "requests a second; more is better", 1)],
    "w3": [("events_s", "thousand events a second; more is better", 1e-3)],
    "w4": [("mb_s", "MB/s; more is better", 1)],
    "w6": [("p50_us", "p50, ms; less is better", 1e-3), ("p99_us", "p99, ms; less is better", 1e-3)],
    "memory": [("rss_peak_mib", "peak under load, MiB; less is better", 1), ("rss_mib", "idle, MiB; less is better", 1)],
    "start": [("start_ms", "ms; less is better", 1)],
}
CURVES = {  # row: (title, x axis, [(metric, unit, factor)])
    "domains": ("More and more domains (W1, 64 connections)", "domains", [("req_s", "thousand requests a second", 1e-3), ("p99_us", "p99, ms", 1e-3)]),
    "connections": ("More and more connections (W1, one domain)", "connections", [("req_s", "thousand requests a second", 1e-3), ("p99_us", "p99, ms", 1e-3)]),
    "events": ("Larger and larger events (one in a request, 16 connections)", "bytes of an event",
               [("req_s", "thousand requests a second", 1e-3), ("mb_s", "MB/s", 1)]),
    "files": ("A data file that is large already (W1, 64 connections)", "GB in the file at the start",
              [("req_s", "thousand requests a second", 1e-3), ("p99_us", "p99, ms", 1e-3)]),
}
GROWTH = {  # row: (title, what grows, [(metric, label, factor)])
    "patterns": ("Patterns in LEITSTAND_DENY_DOMAINS", "patterns", [("req_s", "requests/s", 1), ("cpu_us_per_request", "CPU µs", 1)]),
    "gzip": ("Members of a gzip body (all but the last are empty, 16 connections)", "members", [("mb_s", "MB/s as sent", 1), ("cpu_us_per_request", "CPU µs", 1)]),
    "gzip-beside": ("A small gzip request beside 16 clients with bodies of many members", "clients beside it", [("p50_us", "p50 ms", 1e-3), ("p99_ms", "p99 ms", 1)]),
    "forwarded": ("X-Forwarded-For and trusted proxies", "entries", [("req_s", "requests/s", 1), ("cpu_us_per_request", "CPU µs", 1)]),
    "shape": ("Bodies of 60 KB; and of more and more events of 100 bytes", "of them", [("cpu_ns_per_byte", "CPU ns for a byte", 1)]),
    "there": ("Domains that are there", "domains", [("start_ms", "start ms", 1), ("append_ms", "one append, ms", 1), ("health_ms", "`/health` ms", 1), ("metrics_ms", "`/metrics` ms", 1),
                                                   ("page_ms", "`/stats`, a page of 100, ms", 1), ("one_ms", "`/stats`, one domain, ms", 1)]),
    "copies": ("Files in a snapshot and a restore", "files", [("snapshot_us", "snapshot, µs for a file", 1), ("restore_us", "restore, µs for a file", 1)]),
}
COLUMNS = [  # (heading, metric, factor)
    ("requests/s", "req_s", 1), ("events/s", "events_s", 1), ("MB/s", "mb_s", 1), ("p50 ms", "p50_us", 1e-3), ("p99 ms", "p99_us", 1e-3),
    ("p99.9 ms", "p999_us", 1e-3), ("CPU µs/event", "cpu_us_per_event", 1), ("RSS MiB", "rss_mib", 1), ("RSS peak MiB", "rss_peak_mib", 1), ("start ms", "start_ms", 1), ("MB", "size_mb", 1),
]


def shown(value, factor=1):
    if value is None: return "–"
    return ("~" if value.marked else "") + svg.number(value.value * factor)


def fixed(number, unit):
    """Ratios with two digits after the point."""
    return f"{svg.number(number)} {unit}" if unit else f"{number:.2f}"


def scaled(value, factor):
    return stats.Value(value.value * factor, value.clean, value.wanted, value.low * factor, value.high * factor)


def table(headings, lines):
    return "\n".join(["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings), *("| " + " | ".join(cells) + " |" for cells in lines)])


def goals_table(result):
    lines = []
    for goal in stats.GOALS:
        value, is_met = goal.judge(result)
        if value is None: continue
        sign = "at most" if goal.sign == "<=" else "at least"
        mark = "~" if value.marked else ""
        span = f"{fixed(value.low, '')}–{fixed(value.high, '')}" if value.low != value.high else "–"
        text = goal.text
        if goal.row == "size" and not result["rows"]["size"]["cells"]["binary"]["runs"][0]["without_docs"]: text = "stripped binary, with the pages of the documentation"
        lines.append([text, f"{sign} {f'{goal.limit:g} {goal.unit}' if goal.unit else f'{goal.limit:.2f}'}", mark + fixed(value.value, goal.unit), span,
                      "yes" if is_met else "**no**", f"{value.clean} of {value.wanted}"])
    return table(["what", "goal", "value", "lowest–highest", "met", "clean runs"], lines) if lines else ""


def baseline_table(result):
    """This build against another one, cell by cell."""
    lines = []
    for name, row in result["rows"].items():
        for cell_name, cell in row["cells"].items():
            other = row["cells"].get(cell_name.replace(", W4 beside", "") + ", baseline") if "W4 beside" not in cell_name else \
                row["cells"].get(cell_name.replace(", W4 beside", ", baseline, W4 beside"))
            if not other or "baseline" in cell_name: continue
            for metric, label in (("events_s", "events/s"), ("cpu_us_per_event", "CPU for an event"), ("p50_us", "p50"), ("p99_us", "p99"), ("rss_peak_mib", "RSS peak")):
                value = stats.ratio(cell, other, metric)
                if value: lines.append([cell_name, label, ("~" if value.marked else "") + fixed(value.value, ""), f"{value.low:.2f}–{value.high:.2f}", f"{value.clean} of {value.wanted}"])
    return table(["cell", "figure", "this build / baseline", "single rounds", "clean runs"], lines) if lines else ""


def cells_table(name, row):
    cells = row["cells"].values()
    used = [(heading, metric, factor) for heading, metric, factor in COLUMNS if any(stats.median(cell, metric) for cell in cells)
            and (name != "memory" or metric.startswith("rss"))]
    if all(run.get("req_s") == run.get("events_s", run.get("req_s")) for cell in cells for run in cell["runs"]):
        used = [column for column in used if column[1] != "events_s"]
    lines = []
    for cell_name, cell in row["cells"].items():
        clean = sum(map(stats.is_clean, stats.kept(cell, used[0][1]).values()))
        repeated = len(cell["runs"]) - cell["rounds"]
        label = f"{label_of(name, cell['x'])}{POINTS[name]}, {cell['series']}" if "series" in cell else cell_name
        lines.append([label, *(shown(stats.median(cell, metric), factor) for _, metric, factor in used),
                      f"{clean} of {cell['rounds']}" + (f", {repeated} repeated" if repeated else "")])
    return table(["", *(heading for heading, _, _ in used), "clean runs"], lines)


def growth_table(name, row):
    """A line for each series and metric, a column for each point, and the exponent in the last decade."""
    _, grows, metrics = GROWTH[name]
    xs = sorted({cell["x"] for cell in row["cells"].values()})
    series = {}
    for cell in row["cells"].values(): series.setdefault(cell["series"], []).append(cell)
    lines = []
    for one, cells in series.items():
        for metric, label, factor in metrics:
            at = {cell["x"]: stats.median(cell, metric) for cell in cells}
            value = stats.exponent(cells, metric)
            lines.append([f"{one}: {label}", *(shown(at.get(x), factor) if x in at else "" for x in xs),
                          ("~" if value.marked else "") + f"{value.value:.2f}" if value else "–"])
    # A star would be read as emphasis.
    lines = [[cells[0].replace("*", "\\*"), *cells[1:]] for cells in lines]
    return table([grows, *map(svg.number, xs), "exponent"], lines)


POINTS = {"domains": " domains", "connections": " connections", "events": "", "files": " GB"}


def label_of(row, x):
    if row != "events": return svg.number(x)
    return {100: "100 B", 1000: "1 KB", 10_000: "10 KB", 100_000: "100 KB", 2**20: "1 MiB"}.get(x, svg.number(x))


def short(row, cell_name):
    return cell_name.removeprefix(row.upper() + " ").removeprefix("start ")


def pictures(result):
    """File name → (alternative text, SVG)."""
    found = {}
    for name, metrics in BARS.items():
        cells = result["rows"].get(name, {}).get("cells", {})
        panels = []
        for metric, unit, factor in metrics:
            values = [(cell_name, stats.median(cell, metric)) for cell_name, cell in cells.items()]
            if name == "memory": values = [(n, v) for n, v in values if n.startswith("idle") == (metric == "rss_mib")]
            # The row is in the title; the bars need the peer only, unless there are several workloads.
            entries = [(short(name, n), scaled(v, factor)) for n, v in values if v]
            if entries: panels.append((unit, entries))
        if panels: found[f"performance-{name}.svg"] = (TITLES[name], svg.bars(TITLES[name], panels))
    for name, (title, x_label, metrics) in CURVES.items():
        cells = result["rows"].get(name, {}).get("cells", {})
        panels = []
        for metric, unit, factor in metrics:
            series = {}
            for cell in cells.values():
                value = stats.median(cell, metric)
                if value: series.setdefault(cell["series"], []).append((cell["x"], label_of(name, cell["x"]), scaled(value, factor)))
            if series: panels.append((unit, series))
        if panels: found[f"performance-{name}.svg"] = (title, svg.curves(title, x_label, panels))
    return found


def about_lines(about, result):
    lines = [f"Measured {about['date']}, commit `{about['commit']}`, with `{about['command']}` in {result['took_s'] / 60:.1f} minutes: "
             f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']:g} GiB, {about['system']}, Linux {about['kernel']}, "
             f"{about['filesystem']}{''.join(f', {o}' for o in about['mount_options'])}; {about['rustc'].split(' (')[0]}, {about['wrk']}, Python {about['python']}."]
    if about.get("baseline"): lines.append(f"Baseline: {about['baseline']}, SHA-256 `{about['baseline_sha256'][:16]}…`; this build: `{about['leitstand_sha256'][:16]}…`.")
    if about.get("original"): lines.append(f"Original: commit `{about['original']}`.")
    runs = [run for row in result["rows"].values() for cell in row["cells"].values() for run in cell["runs"]]
    lines.append(f"{sum(map(stats.is_clean, runs))} of {len(runs)} runs were clean. `~` marks a value with fewer clean runs than asked for. Every run passed its loss check.")
    return "\n".join(lines)


def markdown(result, images):
    parts = [about_lines(result["about"], result)]
    if goals := goals_table(result): parts += ["### Goals", goals]
    if other := baseline_table(result): parts += ["### This build against the baseline", other]
    for name, row in result["rows"].items():
        title = TITLES.get(name) or (CURVES | GROWTH).get(name, ("Size of the binary",))[0]
        parts.append(f"### {title}")
        if f"performance-{name}.svg" in images: parts.append(f"![{images[f'performance-{name}.svg'][0]}](img/performance-{name}.svg)")
        parts.append(growth_table(name, row) if name in GROWTH else cells_table(name, row))
    return "\n\n".join(parts) + "\n"


def between_markers(page, text):
    before, found, rest = page.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not found or not end: raise SystemExit(f"docs/performance.md has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{text}{END}{after}"


def together(results):
    """One result of several, of the same binary; a later one replaces the rows of an earlier one."""
    first = results[0]
    for other in results[1:]:
        if other["about"]["leitstand_sha256"] != first["about"]["leitstand_sha256"]: raise SystemExit("the results are of different binaries")
        first["rows"] |= other["rows"]
        first["took_s"] += other["took_s"]
    return first


def main(arguments):
    only_print = "--print" in arguments
    paths = [a for a in arguments if a != "--print"] or [os.environ.get("BENCH_RESULT", os.path.join(ROOT, "target", "bench", "result.json"))]
    results = []
    for path in paths:
        try:
            with open(path) as f: results.append(json.load(f))
        except FileNotFoundError:
            print(f"report: there is no {path}; run make bench", file=sys.stderr)
            return 2
    result = together(results)
    images = pictures(result)
    text = markdown(result, images)
    if only_print:
        print(text, end="")
        return 0
    with open(PAGE) as f: page = between_markers(f.read(), text)
    with open(PAGE, "w") as f: f.write(page)
    os.makedirs(IMAGES, exist_ok=True)
    for name in os.listdir(IMAGES):
        # A picture of a row that is no longer in the page.
        if name.startswith("performance-") and name.endswith(".svg") and name not in images: os.unlink(os.path.join(IMAGES, name))
    for name, (_, picture) in images.items():
        with open(os.path.join(IMAGES, name), "w") as f: f.write(picture)
    print(f"report: docs/performance.md and {len(images)} pictures in docs/img")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
