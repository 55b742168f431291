"""The events that the benchmark sends: made from a fixed seed, so the same in every run."""
import json, random

WORDS = ("build deploy checkout queue retry shard index replay cursor lease token audit spool merge branch commit "
         "review sensor relay ledger").split()


def compact(event):
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def small(rng):
    """An event as most are: flat, and 192 bytes in the mean."""
    return compact({
        "event": rng.choice(["link", "node.status", "build.finished", "note"]),
        "ts": "2026-01-%02dT%02d:%02d:%02d.%03dZ" % (rng.randint(1, 28), rng.randint(0, 23), rng.randint(0, 59),
                                                     rng.randint(0, 59), rng.randint(0, 999)),
        "id": "%012x" % rng.getrandbits(48),
        "source": "sensor-%03d" % rng.randint(0, 999),
        "status": rng.choice(["ok", "warn", "fail"]),
        "n": rng.randint(0, 10**6),
        "ms": round(rng.random() * 1000, 3),
        "summary": " ".join(rng.choice(WORDS) for _ in range(7)),
    })


def sized(rng, size):
    """An event of exactly `size` bytes; most of it is one text."""
    event = {"event": "note", "id": "%012x" % rng.getrandbits(48), "log": ""}
    missing = size - len(compact(event))
    assert missing >= 0, f"no event has only {size} bytes"
    words = " ".join(rng.choice(WORDS) for _ in range(min(missing, 2000)))
    event["log"] = (words * (missing // max(1, len(words)) + 1))[:missing]
    body = compact(event)
    assert len(body) == size
    return body


def members(rng, count, repeated=False):
    """An event of `count` members of the same length. With one that stands twice it has to be written anew."""
    event = b'{"id":"%012x"' % rng.getrandbits(48) + b"".join(b',"k%06d":%d' % (n, rng.randint(1000, 9999)) for n in range(count - 1))
    return event + (b',"k000000":1234}' if repeated else b"}")


def nested(rng, depth):
    """An event with so many levels below it."""
    return b'{"id":"%012x","in":' % rng.getrandbits(48) + b'{"in":' * (depth - 1) + b"{}" + b"}" * depth


def stored(body, domain):
    """The line that the service writes for a body that names no domain: as it is, unless a name stands twice."""
    if body.endswith(b',"k000000":1234}'): body = compact(json.loads(body))
    return body[:-1] + b',"domain":"' + domain.encode() + b'"}\n'
