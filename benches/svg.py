"""Bars and lines as SVG, for light and dark pages. No script, no font, no picture from outside."""
import math
from xml.sax.saxutils import escape

WIDTH = 760
# Room for the names of bars; the longest is "always, baseline, W4 beside".
NAMES = 220
# Okabe and Ito's colours, which colour-blind readers can tell apart; darker on light pages, lighter on dark ones.
# Every series also has a mark of its own and its name beside it.
STYLE = """
 text { font: 14px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
 .title { font-weight: 600; font-size: 16px } .small { font-size: 12.5px; fill: #59636e }
 .grid { stroke: #d1d9e0; stroke-width: 1 } .axis { stroke: #59636e; stroke-width: 1 }
 .line { fill: none; stroke-width: 2.5 } .range { stroke-width: 1.5 }
 .ceiling { --c: #6e7781 } .never { --c: #b35900 } .always { --c: #0063a3 } .everysec { --c: #00754f }
 .log { --c: #9a4d82 } .original { --c: #7a5c00 } .baseline { --c: #6e7781 } .disk { --c: #6e7781 }
 .fill { fill: var(--c) } .stroke { stroke: var(--c) } .name { fill: var(--c); font-weight: 600 }
 @media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #a3adb8 } .grid { stroke: #30363d } .axis { stroke: #a3adb8 }
  .ceiling { --c: #9198a1 } .never { --c: #f0a040 } .always { --c: #58b0ee } .everysec { --c: #2fc493 }
  .log { --c: #dd92c4 } .original { --c: #e3cf57 } .baseline { --c: #9198a1 } .disk { --c: #9198a1 }
 }
"""


def series_class(name):
    """The colour of a peer, or of the disk alone."""
    for word in ("baseline", "log", "original", "ceiling", "disk", "everysec", "never", "always"):
        if word in name: return word
    return "disk"


def number(value):
    """As people write it: three digits that count, a comma between thousands."""
    if value == 0: return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{round(value, digits):,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def steps(top, count=4):
    """Round numbers from 0 to at least `top`."""
    raw = top / count
    power = 10 ** math.floor(math.log10(raw)) if raw > 0 else 1
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [step * n for n in range(math.ceil(top / step - 1e-9) + 1)]


def text(x, y, said, kind="", anchor="start", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{f" class=" + chr(34) + kind + chr(34) if kind else ""}{extra}>{escape(said)}</text>'


def line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def document(height, title, description, parts):
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img">',
                      f"<title>{escape(title)}</title>", f"<desc>{escape(description)}</desc>", f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def bars(title, panels):
    """`panels`: (what is measured and its unit, [(name, Value)]). Bars begin at 0; the thin line below a bar is the span of the runs."""
    left, right, row, parts = NAMES, WIDTH - 88, 30, [text(8, 24, title, "title")]
    y, told = 44, []
    for unit, entries in panels:
        parts.append(text(8, y + 14, unit, "small"))
        y += 24
        top = steps(max(max(value.value, value.high) for _, value in entries) or 1)
        scale = (right - left) / top[-1]
        bottom = y + row * len(entries)
        for tick in top:
            parts.append(line(left + tick * scale, y, left + tick * scale, bottom + 4, "axis" if tick == 0 else "grid"))
            parts.append(text(left + tick * scale, bottom + 18, number(tick), "small", "middle"))
        for name, value in entries:
            kind, middle = series_class(name), y + row / 2
            parts.append(text(left - 10, middle + 5, name, "", "end"))
            parts.append(f'<rect x="{left}" y="{y + 6:.1f}" width="{max(1, value.value * scale):.1f}" height="{row - 13}" rx="2" class="{kind} fill"/>')
            if value.high - value.low > 0.01 * top[-1]:
                under = y + row - 3
                for x in (value.low, value.high): parts.append(line(left + x * scale, under - 3, left + x * scale, under + 3, f"{kind} stroke range"))
                parts.append(line(left + value.low * scale, under, left + value.high * scale, under, f"{kind} stroke range"))
            shown = ("~" if value.marked else "") + number(value.value)
            parts.append(text(left + value.value * scale + 8, middle + 4, shown))
            told.append(f"{name}: {shown} {unit}")
            y += row
        y = bottom + 36
    return document(y, title, "; ".join(told), parts)


def marker(kind, x, y):
    """Shapes, so that lines differ without colour too."""
    if kind == "never": return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" class="{kind} fill"/>'
    if kind == "always": return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{kind} fill"/>'
    return f'<path d="M{x:.1f} {y - 6:.1f} l6 10 h-12 z" class="{kind} fill"/>'


def curves(title, x_label, panels):
    """`panels`: (unit, {series: [(x, name of x, Value)]}). The x axis is logarithmic; 0 stands at its left end."""
    left, right, height, parts = 70, WIDTH - 84, 210, [text(8, 24, title, "title")]
    y, told = 66, []
    for unit, series in panels:
        points = sorted({(x, name) for found in series.values() for x, name, _ in found})
        known = [x for x, _ in points if x > 0]
        # A point at 0 has no logarithm: it stands one step left of the first.
        logs = {x: math.log10(x) if x > 0 else math.log10(known[0]) - 1 for x, _ in points}
        least, most = min(logs.values()), max(logs.values())
        across = lambda x: left + 14 + (logs[x] - least) / ((most - least) or 1) * (right - left - 28)
        top = steps(max(value.high for found in series.values() for _, _, value in found) or 1)
        up = lambda v: y + height - v / top[-1] * height
        parts.append(text(8, y - 16, unit, "small"))
        for tick in top:
            parts.append(line(left, up(tick), right, up(tick), "axis" if tick == 0 else "grid"))
            parts.append(text(left - 8, up(tick) + 4, number(tick), "small", "end"))
        for x, name in points:
            parts.append(line(across(x), y + height, across(x), y + height + 5, "axis"))
            parts.append(text(across(x), y + height + 20, name, "small", "middle"))
        ends = []
        for name, found in series.items():
            kind = series_class(name)
            found = sorted(found, key=lambda p: p[0])
            parts.append(f'<polyline points="{" ".join(f"{across(x):.1f},{up(v.value):.1f}" for x, _, v in found)}" class="{kind} stroke line"/>')
            for x, _, value in found:
                parts.append(line(across(x), up(value.low), across(x), up(value.high), f"{kind} stroke range"))
                parts.append(marker(kind, across(x), up(value.value)))
                if value.marked: parts.append(text(across(x), up(value.value) - 8, "~", "small", "middle"))
            ends.append((up(found[-1][2].value), name, kind))
            told.append(f"{name}, {unit}: " + ", ".join(f"{label} {'~' if v.marked else ''}{number(v.value)}" for _, label, v in found))
        # Names at the ends of the lines, kept apart.
        ends.sort()
        places = [end[0] for end in ends]
        for n in range(1, len(places)): places[n] = max(places[n], places[n - 1] + 17)
        over = places[-1] - (y + height) if places else 0
        if over > 0: places = [max(y, place - over) for place in places]
        for n in range(len(places) - 2, -1, -1): places[n] = min(places[n], places[n + 1] - 17)
        for place, (_, name, kind) in zip(places, ends): parts.append(text(right + 6, place + 5, name, f"{kind} name"))
        parts.append(text((left + right) / 2, y + height + 40, x_label, "small", "middle"))
        y += height + 84
    return document(y - 32, title, "; ".join(told), parts)
