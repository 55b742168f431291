"""What a schema cannot say, for the generated requests of openapi_contract.py."""
import json

import schemathesis

LINE_TYPES = ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"]


@schemathesis.serializer(*LINE_TYPES)
def as_sent(context, value):
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def feed(text):
    """The events of a feed; None if it is none."""
    try: events = [json.loads(line) for line in text.strip().split("\n") if line]
    except ValueError: return None
    return events if all(isinstance(event, dict) for event in events) else None


@schemathesis.hook
def map_case(context, case):
    """A feed of lines is any text by its schema: of a text that is none, makes events that carry its parts."""
    if case.media_type in LINE_TYPES and isinstance(case.body, str) and feed(case.body) is None:
        case.body = "".join(json.dumps({"text": part}) + "\n" for part in case.body.split("\n"))
    return case


@schemathesis.hook
def filter_case(context, case):
    """Leaves out what is right by the schema and wrong by a rule between two fields, or between two layers."""
    if case.method.upper() == "QUERY":
        return False   # The HTTP layer of the original did not know it, so it is a malformed request: docs/compat.md.
    if case.operation.path == "/config" and isinstance(case.body, dict):
        features = case.body.get("features")
        if any(isinstance(case.body.get(key), str) for key in ("allow_domains", "deny_domains")):
            return False   # One text with commas is taken too, which the description says in words.
        # Right by its type, and refused: nobody could switch it on again.
        return not (isinstance(features, dict) and features.get("config") is False)
    if case.method.upper() != "POST" or case.operation.path not in ("/v1/ingest", "/ingest/{domain}"):
        return True
    if case.media_type in LINE_TYPES and not isinstance(case.body, str):
        return False   # Another type than text cannot be sent as text: `{}` is a good line.
    named = (case.path_parameters or {}).get("domain") or (case.query or {}).get("domain")
    if isinstance(named, list): named = named[-1] if named else None
    body = feed(case.body) if case.media_type in LINE_TYPES else case.body
    events = body if isinstance(body, list) else [body]
    for number, event in enumerate(events):
        own = event.get("domain") if isinstance(event, dict) else None
        if number == 0 and not named and isinstance(own, str): named = own
        if isinstance(own, str) and isinstance(named, str) and own.strip().lower() != named.strip().lower():
            return False   # `domain mismatch`
    # `domain must be specified via query or payload`; an empty array needs none.
    return bool(named) or body == []
