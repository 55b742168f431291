#!/usr/bin/env python3
"""Does the benchmark judge right? Made-up results and files; no server, no load. Part of `make check`."""
import os, sys, tempfile, xml.etree.ElementTree

import check, load, report, stats, svg


def cell(figures, metric="req_s", clean=None, rounds=None, **more):
    clean = clean or [True] * len(figures)
    runs = [{"round": n, metric: figure, "other_share": 0.02 if good else 0.5} for n, (figure, good) in enumerate(zip(figures, clean))]
    return {"peer": "x", "rounds": rounds or len(figures), "runs": runs, **more}


def medians():
    """Broken, one odd or noisy run would decide a figure."""
    assert stats.median(cell([1, 100, 3, 2, 4]), "req_s").value == 3
    value = stats.median(cell([10, 20, 1000], clean=[True, True, False]), "req_s")
    assert (value.value, value.clean, value.wanted, value.marked) == (15, 2, 3, True)
    none = stats.median(cell([10, 20, 30], clean=[False] * 3), "req_s")
    assert (none.value, none.clean, none.marked) == (20, 0, True), "without a clean run, the median of all, marked"
    assert not stats.median(cell([1, 2, 3]), "req_s").marked
    assert not stats.is_clean({"other_share": 0.15}) and stats.is_clean({"other_share": 0.149})
    assert stats.median(cell([1]), "mb_s") is None


def ratios():
    """Broken, two peers would be compared by runs of different rounds, or the wrong way round."""
    value = stats.ratio(cell([50, 60, 70]), cell([100, 100, 140]), "req_s")
    assert (value.value, value.low, value.high, value.marked) == (0.6, 0.5, 0.6, False), vars(value)
    assert stats.ratio(cell([1, 2, 3], clean=[True, False, True]), cell([1, 2, 3]), "req_s").marked
    assert stats.ratio(cell([1, 2, 3]), cell([1, 2, 3], clean=[True, False, True]), "req_s").marked
    assert stats.ratio(cell([1]), cell([0]), "req_s") is None
    repeated = cell([9, 5], clean=[False, True], rounds=1)
    for run in repeated["runs"]: run["round"] = 0
    value = stats.ratio(repeated, cell([10]), "req_s")
    assert (value.value, value.low, value.marked) == (0.5, 0.5, False), "a repeated run takes the place of the one that was not clean"
    for run, share in zip(repeated["runs"], (0.2, 0.9)): run["other_share"] = share
    value = stats.median(repeated, "req_s")
    assert (value.value, value.clean, value.marked) == (9, 0, True), "or of the noisier one"


def exponents():
    """Broken, a cost that grows would be told as one that stays, or would be asked of the wrong points."""
    def points(*pairs, metric="ms"): return [cell([figure], metric, x=x, series="s") for x, figure in pairs]

    assert round(stats.exponent(points((0, 5), (1, 9), (100, 2), (1000, 20), (10_000, 2000)), "ms").value, 6) == 2, "the last decade alone"
    assert round(stats.exponent(points((10_000, 7), (1000, 7)), "ms").value, 6) == 0, "in whatever order they come"
    assert round(stats.exponent(points((9, 1), (90, 1), (900, 100)), "ms").value, 6) == 2
    assert round(stats.exponent(points((400, 1), (4096, 10.24)), "ms").value, 6) == 1, "as near to a decade as there is"
    assert stats.exponent(points((0, 1), (1000, 10)), "ms") is None, "nothing grows from nothing"
    assert stats.exponent([], "ms") is None and stats.exponent(points((1, 1), (10, 1)), "us") is None
    spread = [cell([1, 2, 4], "ms", x=10, series="s"), cell([10, 2, 4], "ms", x=100, series="s")]
    value = stats.exponent(spread, "ms")
    assert (round(value.value, 3), value.low, round(value.high, 6)) == (0.301, 0, 1), vars(value)
    noisy = [cell([1, 1], "ms", clean=[True, False], x=1, series="s"), cell([1, 1], "ms", x=10, series="s")]
    assert stats.exponent(noisy, "ms").marked


def grown(figure=1.0, metric="cpu_ns_per_byte"):
    """A row of which the last point of one series has that figure; what is below it has 1."""
    cells = {f"shape {x} levels": cell([1.0 if x < 900 else figure], metric, x=x, series="levels") for x in (9, 90, 900)}
    return {"shape": {"title": "shape", "cells": cells | {"shape 4000 members": cell([99.0], metric, x=4000, series="members")}}}


def growth_goals():
    """Broken, a cost that grows faster than it may would be reported as met."""
    levels = next(g for g in stats.GOALS if g.row == "shape" and g.series == "levels")
    assert levels.judge({"rows": grown(1.2)})[1] is True and levels.judge({"rows": grown(1.3)})[1] is False
    assert levels.judge({"rows": {}}) == (None, None)
    assert next(g for g in stats.GOALS if g.row == "shape" and g.series == "members").judge({"rows": grown()}) == (None, None), "one point is no curve"
    beside = next(g for g in stats.GOALS if g.row == "gzip-beside")

    def p99(*figures): return beside.judge({"rows": {"gzip-beside": {"cells": {name: cell([f], "p99_ms", x=16, series="s") for name, f in zip(beside.above, figures)}}}})

    assert (p99(19, 20)[1], p99(19, 20.1)[1], p99(20.1, 1)[1]) == (True, False, False), "the worst of them counts"
    for goal in (g for g in stats.GOALS if g.row == "patterns"):
        for figures, is_met in (((95, 100), True), ((94, 100), False)):
            cells = {name: cell([figure]) for name, figure in zip((goal.above, goal.below), figures)}
            assert goal.judge({"rows": {"patterns": {"cells": cells}}})[1] is is_met, goal.text


def made_up(never=90, ceiling=100, cpu=11, binary=7.0):
    w1 = {"W1 ceiling": cell([ceiling] * 3), "W1 never": cell([never, never, never + 1])}
    for name, figure in (("W1 ceiling", 10), ("W1 never", cpu)):
        for run in w1[name]["runs"]: run["cpu_us_per_event"] = figure
    size = cell([binary], "size_mb")
    size["runs"][0]["without_docs"] = True
    curve = {f"domains {x} never": cell([x * 10, x * 11], clean=[True, x > 1], x=x, series="never") for x in (1, 10)}
    about = dict.fromkeys(("date", "commit", "command", "cpu", "system", "kernel", "filesystem", "mount_options", "rustc", "wrk", "python"), "x")
    return {"about": {**about, "cores": 2, "memory_gib": 24.0, "leitstand_sha256": "0"}, "took_s": 60, "rows": {
        "w1": {"title": "w1", "cells": w1}, "size": {"title": "size", "cells": {"binary": size}}, "domains": {"title": "d", "cells": curve}}}


def goals():
    """Broken, a goal that is missed would be reported as met, or the reverse."""
    def verdicts(**figures): return {g.text: g.judge(made_up(**figures))[1] for g in stats.GOALS if g.judge(made_up(**figures))[0]}
    cpu, rate = [g.text for g in stats.GOALS if g.row == "w1"][:2]
    size = next(g.text for g in stats.GOALS if g.row == "size")
    assert verdicts() == {cpu: True, rate: True, size: True}, verdicts()
    assert verdicts(never=84) == {cpu: True, rate: False, size: True}
    assert verdicts(never=85, cpu=12.5, binary=8.0) == {cpu: True, rate: True, size: True}, "the limit itself is met"
    assert verdicts(cpu=12.6, binary=8.1) == {cpu: False, rate: True, size: False}
    known = {g.row for g in stats.GOALS}
    assert all(g.sign in ("<=", ">=") for g in stats.GOALS) and known <= {*report.TITLES, *report.GROWTH, "size"}


def goals_name_cells_that_exist():
    """Broken, a goal would silently never be judged."""
    import run
    rows = run.rows(None, None)
    for goal in stats.GOALS:
        cells = {cell.name: cell for cell in rows[goal.row][1]}
        assert not goal.lacks(cells), f"{goal.row} has no {goal.lacks(cells)}: {list(cells)}"
    first, *rest = [goal for goal in stats.GOALS if goal.row == "shape"]
    assert first.lacks({}) == {first.series} and stats.GOALS[0].lacks({}) == {stats.GOALS[0].above, stats.GOALS[0].below}, "and it is seen"
    assert set(run.growth.rows()) == set(report.GROWTH), "a row that no page shows, or the reverse"
    with_more = run.rows(run.peers.leitstand("original", "never"), "/bin/true")
    for name, (_, cells) in with_more.items():
        assert len({cell.name for cell in cells}) == len(cells), f"{name} names a cell twice"
        for cell in cells:
            # A letter of 14 px is 7.5 px wide in the mean.
            if name in report.BARS: assert 7.5 * len(report.short(name, cell.name)) < svg.NAMES - 10, f"no room beside the bar for {cell.name}"


def pages():
    """Broken, the page would show other figures than the result, or lose the text around them."""
    result = made_up(never=80)
    result["rows"] |= grown(1.3)
    images = report.pictures(result)
    text = report.markdown(result, images)
    assert "| of them | 9 | 90 | 900 | 4,000 | exponent |" in text and "| levels: CPU ns for a byte | 1 | 1 | 1.3 |  | 0.11 |" in text, text
    assert "| members: CPU ns for a byte |  |  |  | 99 | – |" in text, text
    assert "| time for a byte with ten times the levels, exponent | at most 0.10 | 0.11 |" in text, text
    assert "| at least 0.85 | 0.80 | 0.80–0.81 | **no** | 3 of 3 |" in text, text
    assert "| 1.10 | – | yes | 3 of 3 |" in text, text
    assert "| ~10 |" in text and "| 105 |" in text, "of two runs one is not clean: the clean one, marked; else the median of both\n" + text
    page = report.between_markers(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", text)
    assert page.startswith(f"before\n{report.BEGIN}\n") and page.endswith(f"{report.END}\nafter\n") and "old" not in page and text in page
    assert report.between_markers(page, text) == page, "twice is the same as once"
    assert set(images) == {"performance-w1.svg", "performance-domains.svg"}
    for name, (_, picture) in images.items():
        xml.etree.ElementTree.fromstring(picture)
        assert "prefers-color-scheme: dark" in picture and "nan" not in picture, name
    other = made_up()
    other["about"]["leitstand_sha256"] = "1"
    try: report.together([made_up(), other])
    except SystemExit: pass
    else: raise AssertionError("results of two binaries were put together")


def numbers():
    """Broken, labels would be unreadable or cut."""
    assert [svg.number(n) for n in (0, 0.0123, 1.5, 12.34, 123.4, 1234, 123456)] == ["0", "0.0123", "1.5", "12.3", "123", "1,234", "123,456"]
    assert svg.steps(97) == [0, 25, 50, 75, 100] and svg.steps(1) == [0, 0.25, 0.5, 0.75, 1.0]


def losses():
    """Broken, the benchmark would praise a service that loses, doubles or tears events."""
    requests = load.Requests(load.Workload("W1", connections=2, distinct=4))
    batches = load.Requests(load.Workload("W3", per=3, connections=2, distinct=2))
    spread = load.Requests(load.Workload("W2", domains=2, connections=2, distinct=4))

    def judged(requests, lines, sent, acked, offsets=None):
        with tempfile.TemporaryDirectory() as directory:
            for domain, content in lines.items():
                with open(os.path.join(directory, f"{domain}.jsonl"), "wb") as f: f.write(b"".join(content))
            try: return check.check(directory, requests, sent, acked, offsets)
            except check.Lost as lost: return str(lost)

    one = [lines[0] for _, lines in requests.lines]
    sent = [2, 2, 1, 1]
    all_six = one + one[:2]
    assert judged(requests, {"bench": all_six}, sent, 6) == 6
    assert judged(requests, {"bench": all_six}, sent, 4) == 6, "one unfinished request for each connection may be there"
    assert judged(requests, {"bench": all_six[:-2]}, sent, 4) == 4, "or not"
    assert "only 2 can be unfinished" in judged(requests, {"bench": all_six}, sent, 3)
    assert "1 are missing" in judged(requests, {"bench": all_six[:-1]}, sent, 6)
    assert "2 times and was sent 1 times: doubled" in judged(requests, {"bench": one + one[2:3]}, sent, 4), "though the number of lines would do"
    assert "is torn" in judged(requests, {"bench": [*all_six[:-1], all_six[-1][:-1]]}, sent, 5)
    assert "is torn" in judged(requests, {"bench": [*all_six, one[0][:9]]}, sent, 6)
    assert "none that was sent" in judged(requests, {"bench": [*all_six, one[0][:20] + one[1][20:]]}, sent, 6), "mixed"
    assert "6 are missing" in judged(requests, {}, sent, 6), "no file at all"
    old = b"an older line\n"
    assert judged(requests, {"bench": [old, *all_six]}, sent, 6, {"bench.jsonl": len(old)}) == 6

    first, second = [lines for _, lines in batches.lines]
    assert judged(batches, {"bench": first + second}, [1, 1], 2) == 6
    assert "not there whole" in judged(batches, {"bench": first + second[:2]}, [1, 1], 1)

    by_domain = {domain: [lines[0] for d, lines in spread.lines if d == domain] for domain, _ in spread.lines}
    assert judged(spread, by_domain, [1] * 4, 4) == 4
    (a, in_a), (b, in_b) = by_domain.items()
    assert "to this domain" in judged(spread, {a: [*in_a, in_b[0]], b: in_b[1:]}, [1] * 4, 4), "in the wrong file"


def main():
    for test in (medians, ratios, exponents, goals, growth_goals, goals_name_cells_that_exist, pages, numbers, losses):
        try: test()
        except Exception as error:
            print(f"selftest: {test.__name__}: {test.__doc__} {error}", file=sys.stderr)
            raise
    print("benches/selftest: ok")


if __name__ == "__main__":
    main()
