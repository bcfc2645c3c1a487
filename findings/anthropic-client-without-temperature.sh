#!/usr/bin/env bash
# The `anthropic` client of Python has no parameter for temperature, top_p or top_k.
#
# Version: anthropic 2.14.0 (PyPI). Expected: the sampling parameters of the Messages API, which
# earlier clients took by name. Seen: `messages.create` names none of the three, so that passing one
# is a TypeError before anything is sent; a server that honours them gets them through
# `extra_body={"temperature": 0}` alone.
# Output seen: "named: none", then the TypeError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check anthropic==2.14.0
"$python" - <<'PY'
import inspect

from anthropic import Anthropic

client = Anthropic(api_key="none", base_url="http://127.0.0.1:9")
known = inspect.signature(client.messages.create).parameters
named = [name for name in ("temperature", "top_p", "top_k") if name in known]
print("named:", ", ".join(named) or "none")
assert not named
try:
    client.messages.create(model="m", max_tokens=1, messages=[], temperature=0)
except TypeError as error:
    print(error)
else:
    raise SystemExit("temperature was taken")
PY
