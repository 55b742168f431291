#!/usr/bin/env python3
"""Breaks the code on purpose, one small change at a time, and looks whether a test notices.

The changes are those of `cargo mutants`. All of them are compiled into one tree, each behind a switch
(src/main.rs beside this file), so that a mutant costs a run of the tests and not a build. Constants,
functions that are `const` and conditions with `let` have no switch; `cargo mutants` itself builds and tests those.

Fails if fewer than MUTANTS_MIN (85) percent of the mutants that compile are caught, or if one is not
caught in an append or its roll-back. A mutant that hangs counts as not caught, and is named.

What was judged stands in target/mutants/judged.jsonl. A run that was broken off goes on from there, unless the
code or its tests have changed meanwhile, or MUTANTS_ANEW is set.

MUTANTS: regular expression for the names of mutants, as `cargo mutants --list` gives them. MUTANTS_JOBS
(2): how many run at once. MUTANTS_SECONDS (60): how long the tests of one step may take. MUTANTS_FILES:
other files than FILES, as patterns with a blank between.
"""
import collections, concurrent.futures, fnmatch, hashlib, json, os, re, shutil, signal, subprocess, sys, threading, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "target", "mutants")
TREE = os.path.join(OUT, "tree")
FILES = ["src/storage/*.rs", "src/storage/verify/*.rs", "src/http/auth.rs", "src/token/set.rs", "src/http/limits.rs", "src/domain.rs",
         "src/event.rs", "src/json.rs"]
FILES = os.environ.get("MUTANTS_FILES", "").split() or FILES
SHARE_MIN = float(os.environ.get("MUTANTS_MIN", "85"))
NAMES = os.environ.get("MUTANTS", "")
JOBS = int(os.environ.get("MUTANTS_JOBS", "2"))
SECONDS = float(os.environ.get("MUTANTS_SECONDS", "60"))
# What no change may get past.
SACRED = re.compile(r"src/storage/log\.rs:.* in (Log<D>::append|Log<D>::current_data|Data<F>::\w+)$"
                    r"|src/storage/log\.rs:.*replace (Log<D>::append|Log<D>::current_data|Data<F>::\w+) ->")

# Tests that take long, or that disturb others. They run only in a step that names them.
SLOW = """a_large_file_is_streamed beside_a_service_at_full_load at_every_cut bytes_that_are_replaced a_file_cut_at
    the_time_of_a_refusal the_map_is_bounded names_are_bounded a_stuck_log slow_connections takes_longer_than_ten
    retry_after_is a_power_cut_at under_load_and tidy:: a_bomb
    pieces_can_be_hashed large_files_are_restored restored_is_what_was_there""".split()
TEXT = [("lib", "domain:: event:: json:: layout::"), ("it", "ingest:: clients:: fuzz_corpus:: verify:: auth::")]
HTTP = [("lib", "http::auth http::limits"), ("it", "limits:: auth:: ingest::limited"),
        ("lib", "the_map_is_bounded the_time_of_a_refusal")]
RIGHTS = [("lib", "token:: http::auth"), ("it", "auth:: each_route_asks a_token_writes a_default_domain a_token_ends tokens_that_end_soon")]
UNIT, LOOK = ("lib", "storage::"), ("it", "verify:: repair::")
STORE = ("it", "disk:: storage:: handover:: errors:: model::")
DEEP = ("it", "power_cut:: a_power_cut_at at_every_cut a_file_cut_at bytes_that_are_replaced")
WIDE = ("it", "ops:: shutdown:: cli:: ingest:: limits:: logs::")
COPY = [("lib", "storage::snapshot::"), ("it", "snapshot::"), ("lib", "pieces_can_be_hashed"),
        ("it", "large_files_are_restored restored_is_what_was_there")]
LONG = ("it", "a_large_file_is_streamed beside_a_service_at_full_load under_load_and")
# The steps for a file; the first that fits. A step ends with the first test that fails.
STEPS = [
    ("src/domain.rs", TEXT), ("src/event.rs", TEXT), ("src/json.rs", TEXT), ("src/token/*", RIGHTS),
    ("src/http/auth.rs", [*HTTP, *RIGHTS, ("it", "the_access_log_names admin:: config::")]), ("src/http/*", HTTP),
    ("src/storage/snapshot/*", COPY),
    ("src/storage/verify/reading.rs", [UNIT, LOOK, STORE, DEEP, ("it", "snapshot::"), LONG]),
    ("src/storage/verify/*", [UNIT, LOOK, STORE, DEEP, LONG]),
    ("src/storage/stats.rs", [UNIT, ("it", "stats::")]), ("src/storage/ready.rs", [UNIT, ("it", "threads:: handover::"), STORE]),
    ("src/storage/repair.rs", [UNIT, LOOK, STORE, DEEP]), ("src/storage/marker.rs", [UNIT, LOOK, STORE, DEEP]),
    ("src/storage/layout.rs", [UNIT, LOOK, STORE]), ("src/storage/watch.rs", [UNIT, ("lib", "names_are_bounded"), STORE]),
    ("src/storage/log.rs", [UNIT, STORE, DEEP, LOOK, WIDE]), ("src/storage/tail.rs", [UNIT, STORE, DEEP, LOOK]),
    ("*", [UNIT, STORE, LOOK, DEEP, WIDE, ("it", "admin:: stats:: threads::"), LONG]),
]
SWITCH = """
#[allow(dead_code)]
pub(crate) fn mutant_is_on(number: u32) -> bool {
    static ON: std::sync::LazyLock<u32> =
        std::sync::LazyLock::new(|| std::env::var("MUTANT_IS_ON").map_or(0, |text| text.parse().unwrap()));
    *ON == number
}
"""


def build_env():
    env = {**os.environ, "CARGO_PROFILE_DEV_DEBUG": "0", "RUST_BACKTRACE": "0", "PROPTEST_CASES": "24", "CRASH_STATES": "2000",
           # A case that one mutant failed would be tried, and perhaps fail, with all later ones.
           "PROPTEST_DISABLE_FAILURE_PERSISTENCE": "1"}
    if shutil.which("mold"):
        env["RUSTFLAGS"] = (env.get("RUSTFLAGS", "") + " -Clink-arg=-fuse-ld=mold").strip()
    return env


ENV = build_env()


def output(*command, **more):
    return subprocess.run(command, cwd=ROOT, env=ENV, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def fresh_tree(switch, left_out):
    """A copy of what git knows, with all mutants but some; gives the numbers that have no place."""
    for name in output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        path = os.path.join(TREE, name)
        if os.path.isfile(os.path.join(ROOT, name)):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(os.path.join(ROOT, name), "rb") as file: text = file.read()
            if os.path.exists(path):
                with open(path, "rb") as file:
                    if file.read() == text: continue
            with open(path, "wb") as file: file.write(text)
    placeless = output(switch, os.path.join(OUT, "list.json"), TREE, *map(str, sorted(left_out))).split()
    for root in ["src/lib.rs", "tests/it/main.rs"]:
        with open(os.path.join(TREE, root), "a") as file: file.write(SWITCH)
    return {int(number) for number in placeless}


def cargo(*args, **env):
    """The messages of the compiler."""
    # Built once, run a thousand times. Without optimisation most of the time goes into hashes.
    done = subprocess.run(["cargo", "--config", "profile.dev.opt-level=1", *args, "--locked", "--message-format=json"], cwd=TREE, env=ENV | env,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.returncode == 0, [json.loads(line) for line in done.stdout.splitlines()]


def owner(span):
    """The mutant whose text the compiler means."""
    try:
        with open(os.path.join(TREE, span["file_name"]), "rb") as file: text = file.read()
    except OSError:
        return None
    at = span["byte_start"]
    start = text.rfind(b"/*M", 0, at + 3)
    return int(re.match(rb"/\*M(\d+)", text[start:]).group(1)) if start > text.rfind(b"/*E*/", 0, at) else None


def place_all(switch, mutants):
    """Leaves out what does not compile until the rest does. Gives what was left out, and what has no place."""
    # An arm without a guard is needed where no `_` follows it; the compiler cannot name it then.
    unviable = set()
    # One body can only be of one type.
    opaque = {number for number, mutant in enumerate(mutants, 1) if mutant["genre"] == "FnValue" and "-> impl " in mutant["name"]}
    while True:
        placeless = opaque | fresh_tree(switch, unviable | opaque)
        ok, messages = cargo("check", "--lib")
        if ok: return unviable, placeless
        errors = [m["message"] for m in messages if m.get("reason") == "compiler-message" and m["message"]["level"] == "error"]
        found = set()
        for error in errors:
            spans = sorted(error["spans"], key=lambda span: not span["is_primary"])
            found.add(next(filter(None, map(owner, spans)), None))
            if (error["code"] or {}).get("code") == "E0004":
                place = spans[0]
                with open(os.path.join(TREE, place["file_name"])) as file: rest = "".join(file.readlines()[place["line_start"] - 1:])
                arms = re.findall(r" if !crate::mutant_is_on\((\d+)\)", rest.split("\n    }\n")[0])
                found.update(int(number) for number in arms if mutants[int(number) - 1]["genre"] == "MatchArm")
        found -= {None} | unviable
        if not found: sys.exit("\n".join(error["rendered"] for error in errors))
        unviable |= found


def steps_of(file):
    return next(steps for pattern, steps in STEPS if fnmatch.fnmatch(file, pattern))


class Tests:
    """The tests of the tree, with one mutant on."""

    def __init__(self):
        # Incremental builds that were broken off leave what does not link.
        ok, messages = cargo("test", "--lib", "--test", "it", "--no-run", CARGO_INCREMENTAL="0")
        if not ok:
            rendered = [m["message"]["rendered"] for m in messages if m.get("reason") == "compiler-message"]
            sys.exit("the tests do not compile with the mutants in\n" + "".join(rendered)[-4000:])
        tests = [m for m in messages if m.get("executable") and m["profile"]["test"]]
        self.binaries = {"lib" if "lib" in m["target"]["kind"] else "it": m["executable"] for m in tests}

    def run(self, binary, args, number):
        """What became of it: passed, failed, hangs or disturbed, and the test that failed."""
        process = subprocess.Popen([self.binaries[binary], *args], cwd=TREE, env={**ENV, "MUTANT_IS_ON": str(number)},
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        failed, ended = [], threading.Event()

        def read():
            for line in process.stdout:
                match = re.match(r"test (\S+).* \.\.\. FAILED", line)
                if match: failed.append(match.group(1))
            ended.set()
        threading.Thread(target=read, daemon=True).start()
        spent, before, disturbed = 0.0, time.monotonic(), False
        while not ended.wait(0.05) and not failed and spent < SECONDS:
            now = time.monotonic()
            # A machine that stood still, or this process, is no fault of the mutant.
            disturbed |= now - before > 2
            spent, before = spent + min(now - before, 0.5), now
        hangs = not ended.is_set() and not failed
        try: os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        code = process.wait()
        if disturbed: return "disturbed", None
        if failed: return "failed", failed[0]
        return ("hangs", None) if hangs else ("passed", None) if code == 0 else ("failed", "")

    def step(self, binary, filters, number):
        filters = filters.split()
        skips = [word for name in SLOW if name not in filters for word in ("--skip", name)]
        hangs = 0
        for _ in range(5):
            what, test = self.run(binary, [*filters, *skips, "--test-threads", "12"], number)
            if what == "passed": return what, None
            if what == "failed":
                # On a busy machine a test may fail by itself: once more, alone.
                if not test or self.run(binary, [test, "--exact"], number)[0] in ("failed", "hangs"): return what, test
            hangs += what == "hangs"
            if hangs == 2: return what, None
        return "passed", None

    def judge(self, number, file):
        for binary, filters in steps_of(file):
            what, test = self.step(binary, filters, number)
            if what == "failed": return "caught", test or filters
            if what == "hangs": return "timeout", filters
        return "missed", None


class Judged:
    """What became of mutants in earlier runs over the same code and tests."""

    def __init__(self):
        known = [name for name in output("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
                 if name.startswith(("src/", "tests/it/", "tests/mutants/", "Cargo."))]
        code = hashlib.sha256()
        for name in sorted(known):
            with open(os.path.join(ROOT, name), "rb") as file: code.update(name.encode() + b"\0" + file.read() + b"\0")
        head = json.dumps({"code": code.hexdigest()})
        path = os.path.join(OUT, "judged.jsonl")
        lines = open(path).read().splitlines() if os.path.exists(path) and not os.environ.get("MUTANTS_ANEW") else []
        keep = lines[:1] == [head]
        self.outcomes = dict(json.loads(line) for line in lines[1:] if line.endswith("]")) if keep else {}
        self.file = open(path, "a" if keep else "w")
        if not keep: print(head, file=self.file, flush=True)

    def add(self, name, outcome):
        self.outcomes[name] = outcome
        print(json.dumps([name, outcome]), file=self.file, flush=True)


def by_cargo_mutants(mutants):
    """For what has no switch: a build for each."""
    names = [arg for mutant in mutants for arg in ("--re", "^" + re.escape(mutant["name"]) + "$")]
    names += [arg for file in sorted({mutant["file"] for mutant in mutants}) for arg in ("--file", file)]
    skips = [word for name in SLOW for word in ("--skip", name)]
    tests = ["--locked", "--lib", "--test", "it", "--", "domain::", "event::", "storage::", "verify::", "repair::"]
    if any(steps_of(mutant["file"]) is COPY for mutant in mutants): tests.append("snapshot::")
    tests += skips
    subprocess.run(["cargo", "mutants", "--baseline", "skip", "--timeout", "120", "--output", OUT, *names, "--", *tests],
                   cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL)
    with open(os.path.join(OUT, "mutants.out", "outcomes.json")) as file: outcomes = json.load(file)["outcomes"]
    words = {"CaughtMutant": "caught", "MissedMutant": "missed", "Timeout": "timeout", "Unviable": "unviable"}
    return {outcome["scenario"]["Mutant"]["name"]: words[outcome["summary"]] for outcome in outcomes}


def report(mutants, outcomes):
    columns = ["viable", "caught", "missed", "timeout", "unviable"]
    table = collections.defaultdict(collections.Counter)
    for mutant, outcome in zip(mutants, outcomes):
        for row in (mutant["file"], "all"):
            table[row][outcome] += 1
            table[row]["viable"] += outcome != "unviable"
    for word in ("missed", "timeout"):
        for mutant, outcome in zip(mutants, outcomes):
            if outcome == word: print(f"{word}: {mutant['name']}")
    print(f"\n{'file':28}" + "".join(f"{column:>10}" for column in columns))
    for row in sorted(table, key=lambda row: (row == "all", row)):
        print(f"{row:28}" + "".join(f"{table[row][column]:10}" for column in columns))
    share = 100 * table["all"]["caught"] / max(table["all"]["viable"], 1)
    sacred = [m["name"] for m, outcome in zip(mutants, outcomes) if SACRED.search(m["name"]) and outcome in ("missed", "timeout")]
    print(f"mutants: {share:.1f} % of {table['all']['viable']} caught (at least {SHARE_MIN:g})")
    for name in sacred: print(f"mutants: append or roll-back: {name}")
    return 0 if share >= SHARE_MIN and not sacred else 1


def main():
    os.makedirs(TREE, exist_ok=True)
    listed = output("cargo", "mutants", "--list", "--json", *[arg for file in FILES for arg in ("--file", file)])
    mutants = [mutant for mutant in json.loads(listed) if re.search(NAMES, mutant["name"])]
    with open(os.path.join(OUT, "list.json"), "w") as file: json.dump(mutants, file)
    output("cargo", "build", "--release", "--locked", "--quiet", "--manifest-path", "tests/mutants/Cargo.toml",
           "--target-dir", os.path.join(OUT, "switch"))
    unviable, placeless = place_all(os.path.join(OUT, "switch", "release", "switch"), mutants)
    tests = Tests()
    for binary, filters in sorted({step for mutant in mutants for step in steps_of(mutant["file"])}):
        what, test = tests.step(binary, filters, 0)
        if what != "passed": sys.exit(f"without any mutant: {test or filters} {what}")
    numbers = [number for number in range(1, len(mutants) + 1) if number not in unviable | placeless]
    print(f"mutants: {len(mutants)} in all, {len(unviable)} do not compile, {len(placeless)} by cargo mutants", flush=True)
    outcomes = {number: "unviable" for number in unviable}
    judged = Judged()
    outcomes |= {number: judged.outcomes[mutants[number - 1]["name"]] for number in numbers if mutants[number - 1]["name"] in judged.outcomes}
    if len(outcomes) > len(unviable): print(f"mutants: {len(outcomes) - len(unviable)} judged before", flush=True)
    numbers = [number for number in numbers if number not in outcomes]

    def judge(number):
        outcome, by = tests.judge(number, mutants[number - 1]["file"])
        print(f"{outcome:8} {mutants[number - 1]['name']}" + (f" ({by})" if by else ""), flush=True)
        outcomes[number] = outcome
        judged.add(mutants[number - 1]["name"], outcome)
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(judge, numbers))
    rest = [mutants[number - 1] for number in placeless if mutants[number - 1]["name"] not in judged.outcomes]
    for name, outcome in (by_cargo_mutants(rest) if rest else {}).items(): judged.add(name, outcome)
    outcomes |= {number: judged.outcomes[mutants[number - 1]["name"]] for number in placeless}
    sys.exit(report(mutants, [outcomes[number] for number in range(1, len(mutants) + 1)]))


main()
