#!/usr/bin/env python3
"""docs/openapi.yaml is a valid OpenAPI document, and readers of YAML 1.1 and 1.2 see the same in it as in the JSON form."""
import json, os, subprocess, sys
from collections import Counter

import yaml
from openapi_spec_validator import validate

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def main():
    # PyYAML reads YAML 1.1; the service writes 1.2.
    with open(os.path.join(ROOT, "docs", "openapi.yaml")) as f: document = yaml.safe_load(f)
    as_json = json.loads(subprocess.run(["cargo", "run", "--locked", "--quiet", "--", "openapi", "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    if document != as_json: sys.exit("openapi: YAML 1.1 readers see another document than JSON readers; see quote_for_yaml_1_1 in src/cli/openapi.rs")
    validate(document)
    operations = [(f"{method.upper()} {path}", operation) for path, item in document["paths"].items() for method, operation in item.items() if method in METHODS]
    ids = Counter(operation.get("operationId") for _, operation in operations)
    twice = sorted(str(name) for name, count in ids.items() if count > 1 or not name)
    if twice: sys.exit(f"openapi: operation ids that are missing or not unique: {', '.join(twice)}")
    # What needs a token can refuse it in three ways.
    for name, operation in operations:
        missing = {"401", "403", "429"} - set(operation["responses"]) if operation.get("security") else set()
        if missing: sys.exit(f"openapi: {name} needs a token and does not describe {', '.join(sorted(missing))}")
    print(f"openapi: {len(operations)} operations, valid")


if __name__ == "__main__":
    main()
