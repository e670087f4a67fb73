#!/usr/bin/env bash
# Versions: ruamel.yaml 0.19.1, PyYAML 6.0.3.
# Behaviour: ruamel.yaml, a reader of YAML 1.2, takes plain texts of a sign or point and underscores for numbers, with
#   the underscores left out: `-_0` is 0, `._0` is 0.0, `-_` is a ValueError. Numbers of YAML 1.2 have no underscores.
#   PyYAML, a reader of YAML 1.1, gives texts for these.
# Seen: ruamel.yaml: 0, 0.0, 0.1, ValueError; PyYAML, which may write all four without quotes: '-_0', '._0', '._1_',
#   '-_'.
# Why it matters: names and tokens like these stand in metadata that one library writes and the other reads. The value
#   comes back as another type, or the whole file cannot be read.
# Exit: 0 while the two differ like this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile ruamel.yaml==0.19.1 PyYAML==6.0.3

"$work/venv/bin/python" - <<'PY'
import yaml
from ruamel.yaml import YAML

EXPECTED = {"-_0": 0, "._0": 0.0, "._1_": 0.1, "-_": "ValueError"}


def read(document: str) -> object:
    try:
        return YAML(typ="safe", pure=True).load(document)["key"]
    except ValueError:
        return "ValueError"


for text, expected in EXPECTED.items():
    written = yaml.safe_dump({"key": text})
    found = read(written)
    own = yaml.safe_load(written)["key"]
    print(f"PyYAML writes {written.strip()!r} and reads {own!r}; ruamel.yaml reads {found!r}")
    if (written, own) != (f"key: {text}\n", text) or repr(found) != repr(expected):
        raise SystemExit(f"changed: {text!r} is written or read in another way now")
PY
