#!/usr/bin/env python3
"""Replays recorded.jsonl against the release binary and judges the result.

A case may differ only if docs/compat.md names it (`group/name` in backticks) and says why. A case
that is named there and does not differ any more is stale and fails too.
"""
import os, re, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def main():
    env = dict(os.environ, LEITSTAND_NO_BUILD="1")
    out = subprocess.run([sys.executable, os.path.join(HERE, "replay.py"), os.path.join(HERE, "recorded.jsonl"), "-v"],
                         cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True).stdout
    lines = out.strip().split("\n")
    summary = re.fullmatch(r"(\d+) of (\d+) recorded cases as they must be \((\d+) not set up here\)", lines[-1])
    if not summary:
        sys.exit("replay did not end as it should:\n" + out)
    ok, total, skipped = map(int, summary.groups())
    differing = {line.split(": ", 1)[0]: line for line in lines[:-1]}
    compat = open(os.path.join(ROOT, "docs", "compat.md"), encoding="utf-8").read()
    argued = set(re.findall(r"`([a-z-]+/[A-Za-z0-9_.%/; ,+-]+)`", compat)) & named_cases()
    for name in sorted(set(differing) - argued):
        print(f"differs and is not argued in docs/compat.md: {differing[name]}")
    for name in sorted(argued - set(differing)):
        print(f"argued in docs/compat.md but does not differ: {name}")
    bad = (set(differing) - argued) | (argued - set(differing))
    print(f"golden: {lines[-1]}; differing on purpose: {', '.join(sorted(argued)) or 'none'}")
    print(f"golden: {skipped} cases need another user or a full disk; tests/system/full_disk.py has them")
    sys.exit(1 if bad or total < 400 else 0)


def named_cases():
    import json
    with open(os.path.join(HERE, "recorded.jsonl"), encoding="utf-8") as f:
        return {f"{c['group']}/{c['name']}" for c in map(json.loads, f)}


if __name__ == "__main__":
    main()
