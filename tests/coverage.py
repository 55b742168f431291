#!/usr/bin/env python3
"""Line coverage of src/ over all tests, with the compiler's own counters.

The service under test is the instrumented one too. Counters live in a file that is mapped into
memory, so a process that is killed has been counted. Lines of `#[cfg(test)]` are not.

COVERAGE_MIN (85): percent below which this fails. COVERAGE_SYSTEM: the system checks to run; full_disk
is not among them, because its file size limit would stop the counters too.
"""
import glob, json, os, re, shutil, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "target", "coverage")
FLAGS = ["-C", "instrument-coverage", "-C", "llvm-args=-runtime-counter-relocation"]


def llvm(tool):
    """The tool must know the format that this compiler writes, so the major version must be the same."""
    facts = subprocess.run(["rustc", "-vV"], stdout=subprocess.PIPE, text=True, check=True).stdout
    major = re.search(r"LLVM version: (\d+)", facts).group(1)
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    for path in [*glob.glob(f"{sysroot}/lib/rustlib/*/bin/{tool}"), shutil.which(f"{tool}-{major}")]:
        if path: return path
    sys.exit(f"{tool} of LLVM {major} is missing: rustup component add llvm-tools, or apt-get install llvm-{major}")


def main():
    profdata, cov = llvm("llvm-profdata"), llvm("llvm-cov")
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(os.path.join(OUT, "profiles"))
    os.chmod(os.path.join(OUT, "profiles"), 0o1777)   # One check runs the service as another user.
    env = {**os.environ, "RUSTC_WORKSPACE_WRAPPER": os.path.abspath(__file__),
           "LLVM_PROFILE_FILE": os.path.join(OUT, "profiles", "%p-%m%c.profraw")}
    build = ["cargo", "test", "--locked", "--no-run", "--message-format=json"]
    messages = subprocess.run(build, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    objects = [m["executable"] for m in map(json.loads, messages.splitlines()) if m.get("executable")]
    service = next(path for path in objects if os.path.basename(path) == "leitstand")
    env.update(LEITSTAND_BIN=service, LEITSTAND_NO_BUILD="1", ROUNDS=os.environ.get("ROUNDS", "3"))
    checks = os.environ.get("COVERAGE_SYSTEM", "order openapi_contract crash").split()
    failed = [command for command in [
        *[[path, "-q"] for path in objects if path != service],
        [sys.executable, "tests/golden/check.py"],
        [sys.executable, "tests/system/run.py", *checks],
    ] if subprocess.run(command, cwd=ROOT, env=env).returncode]
    profiles = glob.glob(os.path.join(OUT, "profiles", "*.profraw"))
    merged = os.path.join(OUT, "all.profdata")
    with open(os.path.join(OUT, "profiles.txt"), "w") as f: f.write("\n".join(profiles))
    subprocess.run([profdata, "merge", "--sparse", "--failure-mode=all", "-o", merged, "-f", f.name], check=True)
    more = [part for path in objects[1:] for part in ("-object", path)]
    lcov = subprocess.run([cov, "export", "--format=lcov", f"-instr-profile={merged}", objects[0], *more],
                          stdout=subprocess.PIPE, text=True, check=True).stdout
    with open(os.path.join(OUT, "lcov.info"), "w") as f: f.write(lcov)
    percent = report(lcov)
    for command in failed: print(f"coverage: failed meanwhile: {' '.join(command)}", file=sys.stderr)
    low = percent < float(os.environ.get("COVERAGE_MIN", "85"))
    sys.exit(1 if failed or low else 0)


def report(lcov):
    """Prints each file, the least covered first; the percentage of all."""
    files = {}
    for record in lcov.split("end_of_record\n"):
        name = re.search(r"^SF:(.*)$", record, re.M)
        if not name or not name.group(1).startswith(os.path.join(ROOT, "src") + "/"): continue
        source = open(name.group(1)).read().splitlines()
        tests = next((n for n, line in enumerate(source, 1) if line.strip() == "#[cfg(test)]"), len(source) + 1)
        lines = files.setdefault(os.path.relpath(name.group(1), ROOT), {})
        for number, count in re.findall(r"^DA:(\d+),(\d+)", record, re.M):
            if int(number) < tests: lines[int(number)] = max(lines.get(int(number), 0), int(count))
    missed = {name: [n for n, count in sorted(lines.items()) if not count] for name, lines in files.items()}
    for name in sorted(files, key=lambda name: -len(missed[name]) / max(1, len(files[name]))):
        total = len(files[name])
        if total: print(f"{100 * (1 - len(missed[name]) / total):6.2f} %  {name}  {total - len(missed[name])}/{total}  not: {spans(missed[name])}")
    total = sum(map(len, files.values())); covered = total - sum(map(len, missed.values()))
    print(f"coverage: {100 * covered / total:.2f} % of {total} lines of src/ without its unit tests")
    return 100 * covered / total


def spans(numbers):
    parts = []
    for n in numbers:
        if parts and parts[-1][1] == n - 1: parts[-1][1] = n
        else: parts.append([n, n])
    return " ".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)


if __name__ == "__main__":
    # As RUSTC_WORKSPACE_WRAPPER: only our own code is counted, and the dependencies need not be built again.
    if len(sys.argv) > 1 and os.path.basename(sys.argv[1]) == "rustc": os.execvp(sys.argv[1], [*sys.argv[1:], *FLAGS])
    main()
