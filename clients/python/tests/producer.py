"""Sends numbered events with a spool until it is killed, and says after each call what is safe."""

import os
import sys

import hauski_ingest

url, spool, domain, first, batch = sys.argv[1:]
n, size = int(first), int(batch)
client = hauski_ingest.Client(url=url, token="t", spool=spool, backoff=0.02, timeout=2)
while True:
    numbers = range(n, n + size)
    events = [{"event": "x", "n": number} for number in numbers]
    try:
        if size == 1:
            client.ingest_event(domain, events[0])
        else:
            client.ingest_events(domain, events)
    except hauski_ingest.IngestError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(1)
    # One write call: the line is in the pipe or it is not, whenever the process is killed.
    os.write(1, f"{n} {size}\n".encode())
    n += size
