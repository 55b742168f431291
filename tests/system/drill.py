"""`leitstand drill`, and its figures counted anew from the files that it restored."""
import glob, json, os, shutil, subprocess, tempfile
from common import BIN, leitstand_verify, setting


def run():
    seconds = setting("DRILL_SECONDS", 5, 60)
    directory = tempfile.mkdtemp(prefix="drill-")
    work, filed = os.path.join(directory, "work"), os.path.join(directory, "filed")
    try:
        command = [BIN, "drill", "--dir", work, "--report", filed, "--seconds", str(seconds), "--snapshot-every", "1s", "--keep", "--rto", "60s"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        report = json.load(open(glob.glob(os.path.join(filed, "drill-*.json"))[0]))
        data = os.path.join(work, "work", "data")
        code, verified = leitstand_verify(data)
        # One more line than was restored: the event of the smoke test.
        assert code == 0 and verified["lines"] == report["events"]["restored"] + 1, (verified, report["events"])
        for domain in report["events"]["domains"]: count(data, report["drill"], domain)
        lost, acknowledged = report["events"]["lost"], report["events"]["acknowledged"]
        assert acknowledged > 100 * seconds, "too little load to prove anything"
        taken = sum(snapshot["complete"] for snapshot in report["snapshots"])
        assert taken > 0, report["snapshots"]
        print(f"drill: RTO {report['rto']['measured_ms']:.0f} ms, RPO {report['rpo']['measured_ms']:.0f} ms, "
              f"{lost} of {acknowledged} acknowledged events lost, none from before the last of {taken} snapshots")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def count(data, run, told):
    """Of each client the numbers 1, 2, 3 and so on are there, in order; together as many as the report says."""
    last, lines = {}, 0
    with open(os.path.join(data, told["domain"] + ".jsonl")) as file:
        for line in file:
            event = json.loads(line)
            assert event["drill"] == run and event["domain"] == told["domain"], event
            if event.get("smoke"): continue
            lines += 1
            assert event["n"] == last.get(event["client"], 0) + 1, (event, last)
            last[event["client"]] = event["n"]
    assert lines == told["restored"] and told["acknowledged"] <= lines + told["lost"], (lines, told)
