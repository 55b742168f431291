"""On a terminal the long commands draw a bar, and leave nothing of it behind."""
import json, os, pty, re, subprocess, tempfile, threading
from common import BIN

BAR = re.compile(rb"\r\[#* *\] *\d+ % of [^\r\n]*\x1b\[K")


def run():
    with tempfile.TemporaryDirectory(prefix="terminal-") as dir:
        os.mkdir(os.path.join(dir, "data"))
        with open(os.path.join(dir, "data", "a.jsonl"), "w") as f:
            for n in range(40000): f.write(json.dumps({"n": n, "pad": "x" * 40, "domain": "a"}, separators=(",", ":")) + "\n")
        drawn = [bars(dir, "snapshot", "--data-dir", "data", "--to", "s", "--rate", "2MiB"),
                 bars(dir, "drill", "--seconds", "2", "--snapshot-every", "1s", "--clients", "1")]
        silent = said(dir, "snapshot", "--data-dir", "data", "--to", "s2", "--rate", "4MiB", "--json")
        assert silent == b"", silent
    print(f"terminal: {drawn[0]} bars of a snapshot, {drawn[1]} of a drill, none left behind")


def bars(dir, *args):
    text = said(dir, *args)
    found = BAR.findall(text)
    assert len(found) >= 2, text
    assert text.endswith(b"\r\x1b[K"), text[-200:]
    return len(found)


def said(dir, *args):
    """What a command writes to a terminal as its stderr."""
    ours, theirs = pty.openpty()
    read = bytearray()

    def take():
        while True:
            try: more = os.read(ours, 4096)
            except OSError: return   # Nobody has the other end any more.
            if not more: return
            read.extend(more)

    reader = threading.Thread(target=take)
    reader.start()
    done = subprocess.Popen([BIN, *args], cwd=dir, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    out, _ = done.communicate(timeout=60)
    reader.join(20)
    os.close(ours)
    assert done.returncode == 0, (args, done.returncode, out, bytes(read))
    return bytes(read)
