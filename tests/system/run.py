#!/usr/bin/env python3
"""Runs the system checks against target/release/leitstand; `run.py NAME…` runs only those.

`--long` takes the full figures of every check instead of the short ones.
"""
import os, sys, time, traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
if "--long" in sys.argv[1:]: os.environ["LONG"] = "1"   # before anybody reads it
import common  # noqa: E402

CHECKS = ["order", "faults", "failed_sync", "writeback_errors", "thin_device", "slow_disk", "full_disk", "descriptors", "confined",
          "filelock_beside", "original_beside", "held_locks", "repair", "snapshots", "reflinks", "crash", "drill", "terminal", "bombs",
          "slow_clients", "stop", "idle", "keep_alive", "proxies", "framing", "limits", "memory", "memory_bounds", "canaries",
          "openapi_contract", "reload", "runbook", "image"]


def main():
    if not os.path.exists(common.BIN): sys.exit(f"{common.BIN} is missing: cargo build --release")
    names = [name for name in sys.argv[1:] if name != "--long"]
    passed, failed, skipped, began, words = 0, [], 0, time.time(), []
    for name in names or CHECKS:
        started = time.time()
        try:
            __import__(name).run()
            passed += 1; word = "ok"
        except common.Skip as reason:
            skipped += 1; word = f"SKIPPED: {reason}"
        except Exception:
            traceback.print_exc()
            failed.append(name); word = "FAILED"
        words.append(f"system/{name} ... {word} ({time.time() - started:.1f} s)")
        print(words[-1], flush=True)
    if common.LONG: print("\n" + "\n".join(words))
    whom = f": {', '.join(failed)}" if failed else ""
    parts = f"; skipped parts: {', '.join(common.skipped_parts)}" if common.skipped_parts else ""
    print(f"system: {passed} passed, {len(failed)} failed{whom}, {skipped} skipped ({time.time() - began:.0f} s){parts}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
