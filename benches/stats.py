"""From runs to values: medians of clean runs, ratios, and whether a goal is met. Reads no clock and no file."""
import math, statistics

# Everything that is neither server nor load may use so much of the processors in a clean run.
CLEAN_SHARE = 0.15


class Value:
    """A median, how many clean runs it rests on, and how far the runs lie apart."""

    def __init__(self, value, clean, wanted, low, high):
        self.value, self.clean, self.wanted, self.low, self.high = value, clean, wanted, low, high

    @property
    def marked(self):
        """Not as many clean runs as asked for: to be read with care."""
        return self.clean < self.wanted


def is_clean(run):
    return run.get("other_share", 0.0) < CLEAN_SHARE


def kept(cell, metric):
    """Round → its run: of a run that was repeated, the one with the least noise."""
    found = {}
    for run in cell["runs"]:
        if run.get(metric) is None: continue
        best = found.get(run["round"])
        if best is None or run.get("other_share", 0.0) <= best.get("other_share", 0.0): found[run["round"]] = run
    return found


def chosen(cell, metric):
    """The clean runs by round; if there is none, all."""
    runs = kept(cell, metric)
    return {n: run for n, run in runs.items() if is_clean(run)} or runs


def median(cell, metric):
    """`None` if the cell has no such figure."""
    figures = [run[metric] for run in chosen(cell, metric).values()]
    if not figures: return None
    clean = sum(map(is_clean, kept(cell, metric).values()))
    return Value(statistics.median(figures), clean, cell["rounds"], min(figures), max(figures))


def ratio(above, below, metric, metric_below=None):
    """The ratio of the two medians; low and high are the ratios of single rounds."""
    metric_below = metric_below or metric
    a, b = median(above, metric), median(below, metric_below)
    if a is None or b is None or not b.value: return None
    firsts, seconds = chosen(above, metric), chosen(below, metric_below)
    pairs = [firsts[n][metric] / seconds[n][metric_below] for n in firsts if n in seconds and seconds[n][metric_below]] or [a.value / b.value]
    least = min(a, b, key=lambda v: v.clean - v.wanted)
    return Value(a.value / b.value, least.clean, least.wanted, min(pairs), max(pairs))


def largest(cells, metric):
    """The largest of the medians of several cells."""
    found = [value for value in (median(cell, metric) for cell in cells) if value]
    return max(found, key=lambda v: v.value) if found else None


def last_decade(cells, metric):
    """The cell with the largest `x`, and the one nearest a tenth of it; `None` if there are no two."""
    points = sorted((cell["x"], n) for n, cell in enumerate(cells) if cell.get("x") and median(cell, metric))
    if len(points) < 2: return None
    top = points[-1]
    below = min(points[:-1], key=lambda point: abs(math.log10(top[0] / point[0]) - 1))
    return cells[top[1]], cells[below[1]]


def exponent(cells, metric):
    """What power of `x` a figure grows with in the last decade: 0 stays as it is, 1 is ten times as much for ten times as much."""
    found = last_decade(cells, metric)
    value = found and ratio(*found, metric)
    if not value: return None
    power = lambda grown: math.log(grown) / math.log(found[0]["x"] / found[1]["x"])
    return Value(power(value.value), value.clean, value.wanted, power(value.low), power(value.high))


def met(value, sign, limit):
    return value <= limit if sign == "<=" else value >= limit


class Goal:
    """`cell` of a row by one metric, against another cell, or against a plain number."""

    def __init__(self, row, text, above, metric, sign, limit, below=None, metric_below=None, unit=""):
        self.row, self.text, self.above, self.metric = row, text, above, metric
        self.sign, self.limit, self.below, self.metric_below, self.unit = sign, limit, below, metric_below, unit

    def judge(self, result):
        """(value, met), or (None, None) if it was not measured."""
        cells = result["rows"].get(self.row, {}).get("cells", {})
        names = self.above if isinstance(self.above, list) else [self.above]
        if any(name not in cells for name in [*names, *([self.below] if self.below else [])]): return None, None
        if self.below: value = ratio(cells[names[0]], cells[self.below], self.metric, self.metric_below)
        else: value = largest([cells[name] for name in names], self.metric)
        return (value, met(value.value, self.sign, self.limit)) if value else (None, None)

    def lacks(self, cells):
        """What it names and a row has not."""
        return {*(self.above if isinstance(self.above, list) else [self.above]), *([self.below] if self.below else [])} - set(cells)


class Growth:
    """How a metric of one series of a row grows in the last decade, as an exponent."""

    sign, unit = "<=", ""

    def __init__(self, row, text, series, metric, limit):
        self.row, self.text, self.series, self.metric, self.limit = row, text, series, metric, limit

    def judge(self, result):
        cells = result["rows"].get(self.row, {}).get("cells", {})
        value = exponent([cell for cell in cells.values() if cell.get("series") == self.series], self.metric)
        return (value, met(value.value, self.sign, self.limit)) if value else (None, None)

    def lacks(self, cells):
        points = [cell for cell in cells.values() if cell.series == self.series and cell.x]
        return {self.series} if len(points) < 2 else set()


CPU, RATE = "cpu_us_per_event", "req_s"
GOALS = [
    Goal("w1", "W1 `never`, processor time for an event, against the ceiling", "W1 never", CPU, "<=", 1.25, "W1 ceiling"),
    Goal("w1", "W1 `never`, requests/s, against the ceiling", "W1 never", RATE, ">=", 0.85, "W1 ceiling"),
    Goal("w1", "W1 `always`, requests/s, against the ceiling", "W1 always", RATE, ">=", 0.60, "W1 ceiling"),
    Goal("w1", "W1 `never`, access log to a file, processor time for an event, against the same without it", "W1 never, log", CPU, "<=", 1.25, "W1 never"),
    Goal("w2", "W2 `never`, requests/s, against W1 `never`", "W2 never", RATE, ">=", 0.90, "W1 never"),
    Goal("w2", "W2 `always`, requests/s, against the ceiling", "W2 always", RATE, ">=", 0.30, "W2 ceiling"),
    Goal("w3", "W3 `never`, events/s, against the ceiling", "W3 never", "events_s", ">=", 0.20, "W3 ceiling"),
    Goal("w3", "W3 `always`, events/s, against `never`", "W3 always", "events_s", ">=", 0.80, "W3 never"),
    Goal("w4", "W4 `always`, MB/s, against serial appends of 1 MiB with `fdatasync`", "W4 always", "mb_s", ">=", 0.60, "disk 1 MiB"),
    Goal("w6", "W6 `always`, p50, against one append of 200 bytes with `fdatasync`", "W6 always", "p50_us", "<=", 3, "disk 200 B"),
    Goal("w6", "W6 `always`, p99, against one append of 200 bytes with `fdatasync`", "W6 always", "p99_us", "<=", 8, "disk 200 B"),
    Goal("w6", "W6 `always` while W4 runs beside it, p99, against W6 alone", "W6 always, W4 beside", "p99_us", "<=", 3, "W6 always"),
    Goal("memory", "resident memory, idle", ["idle never", "idle always"], "rss_mib", "<=", 12, unit="MiB"),
    Goal("memory", "resident memory, peak in a long W1", ["W1 never", "W1 always"], "rss_peak_mib", "<=", 20, unit="MiB"),
    Goal("memory", "resident memory, peak with four bodies of 1 MiB at once", ["W4 never", "W4 always"], "rss_peak_mib", "<=", 56, unit="MiB"),
    Goal("start", "start of the process to the first accepted event", ["start always"], "start_ms", "<=", 15, unit="ms"),
    Goal("size", "stripped binary, without the pages of the documentation", ["binary"], "size_mb", "<=", 8, unit="MB"),
    Goal("patterns", "1,000 ordinary patterns, requests/s, against none", "patterns 1000 ordinary", RATE, ">=", 0.95, "patterns 0 ordinary"),
    Goal("patterns", "1,000 ordinary patterns and a name of 253 characters, requests/s, against none", "patterns 1000 ordinary, long name", RATE, ">=", 0.95, "patterns 0 ordinary, long name"),
    Goal("patterns", "1,000 patterns `*aa…b*` and a name of 253 times `a`, requests/s, against none", "patterns 1000 *aa…b*, long name", RATE, ">=", 0.95, "patterns 0 ordinary, long name"),
    Goal("gzip-beside", "a small gzip request beside 16 clients with as many members as there may be, p99",
         ["small gzip beside 16 of 4096 members", "small gzip beside 16 of 800 members"], "p99_ms", "<=", 20, unit="ms"),
    *(Growth("shape", f"time for a byte with ten times the {what}, exponent", series, "cpu_ns_per_byte", 0.1) for series, what in (
        ("members", "members of an object"), ("members, one twice", "members of an object that is written anew"), ("levels", "levels"), ("events in a body", "events in a body"))),
]
