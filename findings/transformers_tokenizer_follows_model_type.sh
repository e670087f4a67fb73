#!/usr/bin/env bash
# Versions: transformers 5.24.0 (the same in 5.23.0), against 4.57.6.
# Behaviour: one tokenizer.json and one tokenizer_config.json give different token ids when only the model_type in
#   config.json changes. Where transformers has the generic tokenizer on its list for a model_type (granite, olmo2,
#   ...), AutoTokenizer keeps the pre-tokenizer of tokenizer.json; for a model_type that it does not know, the class
#   named in tokenizer_config.json builds a pre-tokenizer of its own.
# Seen: "In 2024" with model_type granite: ['In', 'Ġ', '2', '0', '2', '4']; with my_granite: ['In', 'Ġ', '2024'].
#   4.57.6 gives the first for both. With tokenizer_class PreTrainedTokenizerFast 5.24.0 keeps the file for both, too.
# Why it matters: a derived model with custom code has a model_type of its own and copies the base's tokenizer files
#   byte for byte. It is then fed other ids than the base, with no message, and every comparison of the two is off.
# Exit: 0 while transformers does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/v5"
python3 -m venv "$work/v4"
"$work/v5/bin/pip" install --quiet --no-compile transformers==5.24.0 tokenizers==0.23.3
"$work/v4/bin/pip" install --quiet --no-compile transformers==4.57.6 tokenizers==0.22.2

cat >"$work/tokens.py" <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

SPLIT, MERGED = ["In", "Ġ", "2", "0", "2", "4"], ["In", "Ġ", "2024"]


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE that splits digits before its merges, one of which is 20 + 24."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("I", "n"), ("2", "0"), ("2", "4"), ("20", "24")]
    vocabulary = ["<|end|>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(vocabulary)}, merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def tokens(folder: Path, tokenizer_class: str, model_type: str) -> list[str]:
    names = {"tokenizer_class": tokenizer_class, "bos_token": "<|end|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    found = AutoTokenizer.from_pretrained(folder).tokenize("In 2024")
    print(f"  {tokenizer_class}, model_type {model_type}: {found}")
    return found


folder, expected = Path(sys.argv[1]), {"split": SPLIT, "merged": MERGED}[sys.argv[2]]
folder.mkdir()
write_tokenizer(folder)
seen = [
    tokens(folder, class_, model_type)
    for class_ in ("GPT2Tokenizer", "PreTrainedTokenizerFast")
    for model_type in ("granite", "my_granite")
]
if seen != [SPLIT, expected, SPLIT, SPLIT]:
    raise SystemExit("changed: the model_type has another influence on the tokens now")
PY

cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" TRANSFORMERS_VERBOSITY=critical
echo "transformers 5.24.0:"
v5/bin/python tokens.py five merged
echo "transformers 4.57.6:"
v4/bin/python tokens.py four split
