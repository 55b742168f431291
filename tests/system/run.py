#!/usr/bin/env python3
"""Runs the system checks against target/release/leitstand; `run.py NAME…` runs only those."""
import os, sys, time, traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common  # noqa: E402

CHECKS = ["order", "full_disk", "filelock_beside", "repair", "crash", "bombs", "slow_clients", "stop", "idle", "framing", "limits", "canaries"]


def main():
    if not os.path.exists(common.BIN): sys.exit(f"{common.BIN} is missing: cargo build --release")
    passed, failed, skipped = 0, 0, 0
    for name in sys.argv[1:] or CHECKS:
        started = time.time()
        try:
            __import__(name).run()
            passed += 1; word = "ok"
        except common.Skip as reason:
            skipped += 1; word = f"SKIPPED: {reason}"
        except Exception:
            traceback.print_exc()
            failed += 1; word = "FAILED"
        print(f"system/{name} ... {word} ({time.time() - started:.1f} s)", flush=True)
    print(f"system: {passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
