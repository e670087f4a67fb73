#!/usr/bin/env bash
# Versions: datasets 5.2.0 (the same in 4.8.5).
# Behaviour: IterableDataset.set_epoch(n) makes a shuffled stream give the order of epoch n. A data set that is
#   derived from it afterwards, by take, skip, map, filter, select_columns, shard, repeat or with_format, is at epoch
#   0 again, without a word. Only set_epoch as the very last call counts.
# Seen: the stream itself begins 300, 0, 201 after set_epoch(1); all eight derived from it begin as in epoch 0.
# Why it matters: "the next epoch, and of that the first 1,000" is written shuffled.set_epoch(1); shuffled.take(1000).
#   It gives the first 1,000 of epoch 0 every time: the same sample, where another was meant.
# Exit: 0 while datasets does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" venv/bin/python - <<'PY'
import json
from pathlib import Path

from datasets import IterableDataset, load_dataset

files = [f"shard{number}.jsonl" for number in range(4)]
for number, file in enumerate(files):
    Path(file).write_text("".join(json.dumps({"x": 100 * number + row}) + "\n" for row in range(10)))
stream = load_dataset("json", data_files=files, split="train", streaming=True)
derive = {
    "take": lambda data: data.take(30),
    "skip": lambda data: data.skip(0),
    "map": lambda data: data.map(lambda row: row),
    "filter": lambda data: data.filter(lambda row: True),
    "select_columns": lambda data: data.select_columns(["x"]),
    "shard": lambda data: data.shard(num_shards=1, index=0),
    "repeat": lambda data: data.repeat(2),
    "with_format": lambda data: data.with_format("numpy"),
}


def start(data: IterableDataset) -> list[int]:
    return [int(row["x"]) for _, row in zip(range(6), data, strict=False)]


def shuffled(epoch: int) -> IterableDataset:
    data = stream.shuffle(seed=0, buffer_size=5)
    data.set_epoch(epoch)
    return data


epochs = [start(shuffled(0)), start(shuffled(1))]
print("epoch 0:", epochs[0])
print("epoch 1:", epochs[1])
lost = []
for name, call in derive.items():
    before, after = call(shuffled(1)), call(stream.shuffle(seed=0, buffer_size=5))
    after.set_epoch(1)
    print(f"set_epoch(1), then {name}: {start(before)}; {name}, then set_epoch(1): {start(after)}")
    lost.append(start(before) == epochs[0] and start(after) == epochs[1])
if epochs[0] == epochs[1] or not all(lost):
    raise SystemExit("changed: a derived stream keeps the epoch now, or set_epoch does something else")
PY
