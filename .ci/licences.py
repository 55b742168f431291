#!/usr/bin/env python3
"""Every crate we ship must offer a licence that MIT software may include; prints those that do not."""
import json, re, subprocess, sys

ALLOWED = {"MIT", "MIT-0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC",
           "Unicode-3.0", "Zlib", "0BSD", "CC0-1.0", "Unlicense", "BSL-1.0"}


def allowed(expression):
    """SPDX: one of the OR alternatives must consist of allowed AND parts."""
    text = expression.replace("/", " OR ").replace("(", " ( ").replace(")", " ) ")
    # No licence name contains a bracket, so brackets can be resolved from the inside out.
    while "(" in text:
        text, n = re.subn(r"\(([^()]*)\)", lambda m: "MIT" if allowed(m.group(1)) else "REFUSED", text)
        if n == 0:
            return False
    return any(all(part.strip() in ALLOWED for part in choice.split(" AND ")) for choice in text.split(" OR "))


def main():
    data = json.loads(subprocess.run(["cargo", "metadata", "--format-version=1", "--locked", "--all-features", "--filter-platform",
                                      "x86_64-unknown-linux-gnu"], check=True, stdout=subprocess.PIPE).stdout)
    reached = {node["id"] for node in data["resolve"]["nodes"]}
    packages = [p for p in data["packages"] if p["id"] in reached]
    bad = [f"{p['name']} {p['version']}: {p['license'] or 'no licence given'}" for p in packages
           if not allowed(p["license"] or "")]
    outside = [f"{p['name']}: from {p['source']}" for p in packages
               if p["source"] and not p["source"].startswith("registry+https://github.com/rust-lang/crates.io-index")]
    for line in bad + outside:
        print(line, file=sys.stderr)
    print(f"licences: {len(packages)} crates looked at, {len(bad)} with a licence that is not allowed, {len(outside)} from elsewhere")
    sys.exit(1 if bad or outside else 0)


if __name__ == "__main__":
    main()
