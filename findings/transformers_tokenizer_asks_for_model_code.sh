#!/usr/bin/env bash
# Versions: transformers 5.24.0 against 4.57.6.
# Behaviour: tokenizer_config.json names a stock class and config.json has an auto_map for the model alone.
#   AutoTokenizer of 4.57 loads the tokenizer. That of 5.24 reads the model's config first and asks, on stdout,
#   whether to run the model's code; where nobody can answer it goes on as after a no, without an error, unlike
#   AutoConfig.
# Seen: with standard input closed: "Do you wish to run the custom code? [y/N]" on stdout, then the tokenizer. With
#   trust_remote_code=False: the tokenizer alone. 4.57.6 never asks.
# Why it matters: loading a tokenizer of a model with custom code puts a question into the output of programs that
#   print JSON, and asks people for a trust that the tokenizer does not need. Passing False says no in advance.
# Exit: 0 while the two versions differ like this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/v5"
python3 -m venv "$work/v4"
"$work/v5/bin/pip" install --quiet --no-compile transformers==5.24.0 tokenizers==0.23.3
"$work/v4/bin/pip" install --quiet --no-compile transformers==4.57.6 tokenizers==0.22.2

cat >"$work/load.py" <<'PY'
import contextlib
import io
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoTokenizer

QUESTION = "Do you wish to run the custom code?"
folder = Path("model")
folder.mkdir(exist_ok=True)
Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "a"}
(folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
(folder / "config.json").write_text(json.dumps(config))
(folder / "configuration_own.py").write_text("from transformers import PretrainedConfig as OwnConfig\n")


def load(auto: type, **options: bool) -> tuple[bool, str]:
    """Return whether there was a question on stdout, and what came of loading."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            auto.from_pretrained(folder, **options)
            outcome = "loaded"
        except ValueError:
            outcome = "ValueError"
    asked = QUESTION in printed.getvalue()
    print(f"  {auto.__name__}, {options or 'no options'}: {'asked on stdout, ' * asked}{outcome}")
    return asked, outcome


seen = [load(AutoTokenizer), load(AutoTokenizer, trust_remote_code=False), load(AutoConfig)]
if seen != [(sys.argv[1] == "asks", "loaded"), (False, "loaded"), (True, "ValueError")]:
    raise SystemExit("changed: AutoTokenizer asks in other cases now")
PY

cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TRANSFORMERS_VERBOSITY=critical
echo "transformers 5.24.0:"
v5/bin/python load.py asks </dev/null
echo "transformers 4.57.6:"
v4/bin/python load.py silent </dev/null
