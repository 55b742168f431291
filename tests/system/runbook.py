"""Every command in the code blocks of RUNBOOK.md and README.md does what is said there, and the German manual has the same.

What is run in which state, and what must come, stands in runbook_states.py. A command is run as it is written, with
the few replacements of `HERE`; one that no state knows fails the check. What the document shows (the code in a sentence
like "You should see" in the next paragraph, or a block of text) must be in what one command printed; only what VARYING
matches may differ.
"""
import os, re, shlex, shutil, signal, subprocess, tempfile, threading, time
from collections import defaultdict, namedtuple
from common import BIN, ROOT, TOKEN, Server, Skip, need, skipped_parts
from runbook_states import NOT_RUN, STATES

GERMAN = "docs/de/betriebshandbuch.md"
NO_COMMANDS = ("text", "toml", "yaml", "ini", "haproxy", "nginx")
# What stands elsewhere on the machine of the document; and its port.
HERE = {"/var/backups/leitstand": "backups", "/run/leitstand/heartbeat": "heartbeat",
        "/run/secrets/leitstand_token": "secret", "/var/lib/leitstand": "data"}
PORT = "8788"

# What may differ from one run to the next; all else is compared as it is, and so is every 0.
COUNTED = "files|lines|events|acknowledged|ok|warnings|snapshots|of"
VARYING = [
    (r"\d{8}T\d{6}Z", r"\d{8}T\d{6}Z"),
    (r"(?<=Z-)[0-9a-f]{16}", "[0-9a-f]{16}"),
    (r"\d{4}-\d\d-\d\d", r"\d{4}-\d\d-\d\d"),
    (r"[1-9]\d*(\.\d+)? (bytes|KiB|MiB|GiB)", r"[\d.]+ (bytes|KiB|MiB|GiB)"),
    (r"\d+\.\d+ s|[1-9]\d* m?s\b", r"[\d.]+ m?s"),
    (rf"[1-9]\d* (?=({COUNTED})\b)", r"\d+ "),
    (r"(?<=of )[1-9]\d*", r"\d+"),
    ("SIGHUP", "(SIGHUP|file)"),   # the service looks at its files too
    ("…|DIR", ".*"),
    (" ", r"\s+"),
]
SHOWS = re.compile(r"you should see|the (first|second|third) (shows|says)|zu sehen sein|der erste befehl zeigt", re.I)
LOGGED = re.compile(r"the log says|das log sagt", re.I)
NO_OUTPUT = re.compile(r"LEITSTAND_\w+|/[\w/]+")   # a setting or a path that such a sentence speaks of

Block = namedtuple("Block", "place section language commands shown logged")
Command = namedtuple("Command", "place text")


def pattern(shown):
    """A regular expression for what is shown, where each thing that varies stands for its like."""
    any_of = re.compile("|".join(f"(?P<v{n}>{varying})" for n, (varying, _) in enumerate(VARYING)))
    result, end = "", 0
    for match in any_of.finditer(shown):
        result += re.escape(shown[end:match.start()]) + VARYING[int(match.lastgroup[1:])][1]
        end = match.end()
    return result + re.escape(shown[end:])


def plain(text): return " ".join(text.split())


def without_comment(command): return re.sub(r"\s#\s.*", "", command)


def blocks(name):
    """The fenced blocks of a document, with their heading and what the paragraph behind says they show."""
    with open(os.path.join(ROOT, name)) as file: lines = file.read().split("\n")
    found, heading, n = [], "", 0
    while n < len(lines):
        fence = re.match(r"```(\w*)$", lines[n])
        if not fence:
            assert not lines[n].lstrip().startswith("```"), f"{name}:{n + 1}: a fence that this check does not read"
            if lines[n].startswith("#"): heading = lines[n].lstrip("# ")
            n += 1; continue
        end = lines.index("```", n + 1)
        if fence[1] == "text" and found: found[-1].shown.append(plain("…".join(lines[n + 1:end])))   # with others between
        paragraph = plain("\n".join(lines[end + 1:]).lstrip("\n").split("\n\n", 1)[0])
        sentences = re.findall(r"(?:`[^`]*`|[^`.]|\.(?!\s|$))+", paragraph)
        shown, logged = ([code for sentence in sentences if says.search(sentence) for code in re.findall("`([^`]+)`", sentence)
                          if not NO_OUTPUT.fullmatch(code)] for says in (SHOWS, LOGGED))
        commands, at = [], n + 2
        for text in [] if fence[1] in NO_COMMANDS else "\n".join(lines[n + 1:end]).replace("\\\n", "\0").split("\n"):
            if text and not text.startswith("#"): commands.append(Command(f"{name}:{at}", text.replace("\0", "\\\n")))
            at += 1 + text.count("\0")
        found.append(Block(f"{name}:{n + 1}", f"{name}#{heading}", fence[1], commands, shown, logged))
        n = end + 1
    return found


class Shell:
    """One bash that is given command after command, as an operator's would be."""

    def __init__(self, cwd, env):
        self.p = subprocess.Popen(["bash"], cwd=cwd, env=env, text=True, start_new_session=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, command, seconds=60):
        """(exit code, what it printed on both streams)"""
        timer = threading.Timer(seconds, self.kill); timer.start()
        try:
            self.p.stdin.write(f"eval {shlex.quote(command)} </dev/null\nprintf '\\n\\036%s\\n' $?\n"); self.p.stdin.flush()
            printed = ""
            for line in self.p.stdout:
                if line.startswith("\036"): return int(line[1:]), printed[:-1]
                printed += line
            return None, printed + f"\n(it did not end within {seconds} s, or ended the shell)"
        finally: timer.cancel()

    def kill(self):
        try: os.killpg(self.p.pid, signal.SIGKILL)
        except ProcessLookupError: pass

    def close(self):
        self.kill(); self.p.wait()
        self.p.stdin.close(); self.p.stdout.close()


class Place:
    """A working directory, a service with its data there, and a shell with its environment and the document's variables."""

    def __init__(self, state, variables):
        self.work = tempfile.mkdtemp(prefix="runbook-")
        self.data, self.log = os.path.join(self.work, "data"), os.path.join(self.work, "leitstand.log")
        self.server, self.shell, self.later = None, None, []
        try: self.set_up(state, variables)
        except BaseException: self.close(); raise

    def set_up(self, state, variables):
        os.mkdir(self.data, 0o700)
        os.mkdir(os.path.join(self.work, "bin"))
        os.symlink(BIN, os.path.join(self.work, "bin", "leitstand"))
        os.symlink("server.log", self.log)
        if state.before: state.before(self)
        env = {"LEITSTAND_ADMIN_TOKEN": "admin", "LEITSTAND_DISK_RESERVE": "0",
               "LEITSTAND_MAX_CONNECTIONS": "100"}   # or a low limit of open files would be a warning
        env |= {name: value and self.here(value) for name, value in state.env.items()}
        self.server = Server(env, datadir=self.data, cwd=self.work, args=state.args)
        assert self.server.up, self.server.log_text()
        path = os.pathsep.join([os.path.join(self.work, "bin"), self.server.env["PATH"], "/usr/sbin", "/sbin"])
        self.shell = Shell(self.work, {**self.server.env, "PATH": path})
        for command in variables: self.do(self.here(command.text).replace("T=dev ", f"T={TOKEN} "))
        self.do(f"date() {{ command date -d @{time.time():.0f} \"$@\"; }}")   # or midnight comes between two commands
        if state.prepare: state.prepare(self)

    def do(self, command):
        code, printed = self.shell.run(command)
        assert code == 0, (command, code, printed)
        return printed

    def here(self, text):
        for there, here in HERE.items(): text = text.replace(there, os.path.join(self.work, here))
        return text.replace(PORT, str(self.server.port)) if self.server else text

    def there(self, text):
        for there, here in HERE.items(): text = text.replace(os.path.join(self.work, here), there)
        return text.replace(str(self.server.port), PORT)

    def run(self, step, command):
        """What it printed, as it would be on the machine of the document, and what is wrong with that."""
        if step.first: step.first(self)
        deadline = time.monotonic() + step.within
        while True:
            code, printed = self.shell.run(self.here(command.text.replace(*step.instead)))
            printed = self.there(printed)
            right = code == step.code and re.search(step.prints, printed, re.M)
            if right or time.monotonic() > deadline: break
            time.sleep(0.05)
        return printed, None if right else (f"{command.place}: {command.text}\n  ended with {code}, not {step.code}, or printed "
                                            f"nothing like {step.prints!r}, but:\n{printed}")

    def close(self):
        for undo in self.later: undo()
        if self.shell: self.shell.close()
        if self.server: self.server.cleanup()
        shutil.rmtree(self.work, ignore_errors=True)


def in_state(state, documents, seen, printed, logs):
    """Runs each step of the state with the next command of its section that begins so; what went wrong."""
    problems, place = [], Place(state, documents["RUNBOOK.md"][0].commands)
    try:
        for section, steps in state.steps.items():
            steps = list(steps)
            for block in (block for block in documents[section.split("#")[0]] if block.section == section):
                for command in block.commands:
                    if not steps or not command.text.startswith(steps[0].begins): continue
                    seen.add(command.place)
                    text, problem = place.run(steps.pop(0), command)
                    printed[block.place].append(text)
                    problems += [problem] if problem else []
                with open(place.log, errors="replace") as file: logs[block.place].append(file.read())
            problems += [f"{section}: no command begins with {step.begins!r}, or not in this order" for step in steps]
    finally: place.close()
    return problems


def unseen(documents, seen):
    """What no state has run is either listed with a reason, or a mistake."""
    for command in (command for blocks in documents.values() for block in blocks for command in block.commands):
        if command.place in seen: continue
        reason = next((reason for begins, reason in NOT_RUN.items() if command.text.startswith(begins)), None)
        if not reason: yield f"{command.place}: nobody knows how to run this: {command.text}"; continue
        skipped_parts.append(f"runbook/{command.place}")
        print(f"runbook: SKIPPED: {command.place}: {command.text.split(' -')[0]}: {reason}")


def not_shown(documents, printed, logs):
    for block in (block for blocks in documents.values() for block in blocks if block.place in printed):
        for shown, where in [(text, printed) for text in block.shown] + [(text, logs) for text in block.logged]:
            if not any(re.search(pattern(shown), text, re.S) for text in where[block.place]):
                yield f"{block.place}: this is shown, but does not come: {shown}\n  what came:\n" + "\n".join(where[block.place])[-3000:]


def only_german(documents):
    """A command or an output of the German manual that is not also one of RUNBOOK.md."""
    english = documents["RUNBOOK.md"]
    commands = {plain(without_comment(command.text)) for block in english for command in block.commands}
    shown = {text for block in english for text in block.shown + block.logged}
    for block in blocks(GERMAN):
        for command in block.commands:
            if plain(without_comment(command.text)) not in commands: yield f"{command.place}: not in RUNBOOK.md: {command.text}"
        for text in block.shown + block.logged:
            if text not in shown: yield f"{block.place}: shown here, but not in RUNBOOK.md: {text}"


def unknown_options():
    """An option in the text, as in `leitstand verify --json`, that the help of this command does not have."""
    helps = defaultdict(str)
    for name in ("RUNBOOK.md", "README.md", GERMAN):
        with open(os.path.join(ROOT, name)) as file: text = plain(file.read())
        for said in re.findall(r"`leitstand ([^`]+)`", text):
            command = re.match(r"(?:(?:token|config) )?(?:[a-z][a-z-]*)?", said)[0].split()
            if not (key := " ".join(command)) in helps:
                helps[key] = subprocess.run([BIN, *command, "--help"], capture_output=True, text=True).stdout
            options = re.findall(r"--[a-z-]+", said)
            if not helps[key] or any(not re.search(rf"{option}\b(?!-)", helps[key]) for option in options):
                yield f"{name}: there is no such command: leitstand {said}"


def run():
    need("bash", "curl", "jq", "fuser", "lslocks", "ss")
    documents = {name: blocks(name) for name in ("RUNBOOK.md", "README.md")}
    variables = {command.place for command in documents["RUNBOOK.md"][0].commands}
    seen, excused, printed, logs, problems = set(variables), set(), defaultdict(list), defaultdict(list), []
    for name, state in STATES.items():
        try: problems += in_state(state, documents, seen, printed, logs)
        except Skip as reason:
            skipped_parts.append(f"runbook/{name}")
            print(f"runbook: SKIPPED: {name}: {reason}")
            for block in (block for blocks in documents.values() for block in blocks if block.section in state.steps):
                excused.update(command.place for command in block.commands)
                printed.pop(block.place, None)
        except AssertionError as error: problems.append(f"{name}: could not be brought about: {error}")
    problems += [*unseen(documents, seen | excused), *not_shown(documents, printed, logs), *only_german(documents), *unknown_options()]
    assert not problems, "\n" + "\n".join(problems)
    shown = sum(len(block.shown + block.logged) for blocks in documents.values() for block in blocks if block.place in printed)
    print(f"runbook: {len(seen)} commands in {len(STATES)} states do what is said, {shown} outputs come as shown; "
          "the German manual has no others")
