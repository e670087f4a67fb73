"""The shipped mixes and those of one's own, read from a Hub over HTTP with the columns that their data sets have."""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from little import BASE, CommandLine, Ended, lines

from hubprune.localhub import RunningHub

SENTENCES = [f"The {n} boats went out at dawn and came back with {n * 7} fish." for n in range(40)]
CODE = [{"instruction": f"Add {n}.", "input": "" if n % 2 else f"x = {n}", "output": f"x += {n}"} for n in range(12)]
MATH = [{"source": "demo", "output": f"It is {2 * n}.", "instruction": f"What is {n} + {n}?"} for n in range(12)]
TALKS = [{"conversations": [f"Why {n}?", f"Because {n}.", "Thanks."], "source": "demo"} for n in range(12)]
C4_CARD = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/c4-train.*.json.gz}
  - {split: validation, path: en/c4-validation.*.json.gz}
- config_name: realnewslike
  data_files:
  - {split: validation, path: realnewslike/c4-validation.*.json.gz}
---
# C4
"""


def shard(texts: list[str]) -> bytes:
    return gzip.compress(lines([{"text": t, "timestamp": "2019-04-25", "url": "https://example.org"} for t in texts]))


def stand_ins() -> dict[str, dict[str, bytes]]:
    """Files of small data sets by the ids, paths and columns of those that the shipped mixes name."""
    shards = {f"en/c4-validation.0000{n}-of-00002.json.gz": shard(SENTENCES[n::2]) for n in range(2)}
    return {
        "allenai/c4": {
            "README.md": C4_CARD.encode(),
            "en/c4-train.00000-of-00001.json.gz": shard(["never read"] * 40),
            "realnewslike/c4-validation.00000-of-00001.json.gz": shard(["never read"] * 40),
            **shards,
        },
        "sahil2801/CodeAlpaca-20k": {"code_alpaca_20k.json": json.dumps(CODE).encode()},
        "TIGER-Lab/MathInstruct": {"MathInstruct.json": json.dumps(MATH).encode()},
        "GAIR/lima": {
            "lima.py": b"raise SystemExit('never run')",
            "train.jsonl": lines(TALKS),
            "test.jsonl": lines([{"conversations": ["never read"], "source": "demo"}]),
        },
    }


@pytest.fixture(scope="module")
def data(hub: RunningHub) -> Iterator[None]:
    """The stand-ins, on the Hub; one of them gated, as the real one is."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    for repo_id, files in stand_ins().items():
        api.create_repo(repo_id, repo_type="dataset", exist_ok=True)
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        api.create_commit(repo_id, operations, commit_message="Fill", repo_type="dataset")
    api.update_repo_settings("GAIR/lima", gated="auto", repo_type="dataset")
    yield
    for repo_id in stand_ins():
        api.delete_repo(repo_id, repo_type="dataset")


@pytest.fixture
def score(hubprune: CommandLine, data: None) -> Callable[..., Ended]:
    """`hubprune score` of the small base on a mix."""

    def run(mix: object, *more: object, **options: str) -> Ended:
        return hubprune("score", BASE, "--calibration", mix, *more, **options)

    return run


@pytest.fixture
def scores(hubprune: CommandLine, data: None) -> Callable[..., list[Ended]]:
    """`hubprune score` of the small base, several times in one process."""

    def run(*options: tuple[object, ...]) -> list[Ended]:
        return hubprune.each(*(("score", BASE, "--calibration", *more) for more in options))

    return run


def calibration_of(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    record: dict[str, Any] = json.loads(ended.out)["calibration"]
    return record


def test_c4_is_packed_into_sequences_of_the_bases_context(scores):
    ended, table, wanting = scores(("c4", "--num-samples", 6, "--json"), ("c4", "--num-samples", 6), ("c4",))
    record = calibration_of(ended)
    assert "samples have 256 tokens, the base's context, instead of the mix's 2048" in ended.err
    [source] = record["sources"]
    assert (source["dataset"], source["config"], source["split"]) == ("allenai/c4", "en", "validation")
    assert (record["packed"], record["max_tokens"], source["documents"], source["tokens"]) == (True, 256, 6, 1536)
    assert 6 < source["texts"] <= len(SENTENCES)
    assert "6 sequences, 1,536 tokens of c4" in table.out
    # As many as the mix asks for there are not, which is counted in sequences.
    assert wanting.code == 1
    assert "allenai/c4 (en, validation) has 40 documents, enough for 9 sequences of 256 tokens" in flat(wanting.err)
    assert "the mix wants 256 of it" in flat(wanting.err)


def test_the_instruction_sets_are_read_a_row_at_a_time(scores):
    mixes = {
        "codealpaca": [[row["instruction"], row["input"], row["output"]] for row in CODE],
        "mathinstruct": [[row["instruction"], row["output"]] for row in MATH],
        "lima": [row["conversations"] for row in TALKS],
    }
    found = scores(*((mix, "--num-samples", 12, "--max-tokens", 200, "--json") for mix in mixes))
    for rows, ended in zip(mixes.values(), found, strict=True):
        record = calibration_of(ended)
        joined = ["\n\n".join(text for text in row if text) for row in rows]
        [source] = record["sources"]
        assert (record["packed"], source["documents"], source["texts"]) == (False, 12, None)
        assert source["tokens"] == sum(map(len, joined))  # the tokenizer makes one token of a byte
        assert len(source["commit"]) == 40


def test_a_gated_data_set_says_where_to_ask_for_access(score, hub):
    ended = score("lima", HF_TOKEN="")
    assert ended.code == 1
    assert "The calibration data set GAIR/lima is gated, and this run has no access to it." in flat(ended.err)
    assert f"Ask for access at {hub.endpoint}/datasets/GAIR/lima" in flat(ended.err)


# ---- mixes of one's own --------------------------------------------------------------------------------------------

GOOD = {"dataset": "allenai/c4", "config": "en", "split": "validation", "weight": 3}


REFUSED = [
    ({**GOOD, "config": "fr"}, "allenai/c4 has no config 'fr'. hint: Its configs: en, realnewslike."),
    ({**GOOD, "config": None}, "allenai/c4 has several configs, and the mix names none. hint: Its configs: en,"),
    ({**GOOD, "split": "test"}, "allenai/c4 (en) has no split 'test'. hint: Its splits: train, validation."),
    (
        {**GOOD, "column": ["text", "title"]},
        "allenai/c4 (en) has no text column 'title'. hint: Its columns: text, timestamp, url.",
    ),
    ({"dataset": "GAIR/lima", "file": "gone.jsonl", "weight": 1}, "GAIR/lima (GAIR/lima, train) cannot be read"),
    ({"dataset": "GAIR/lima", "file": "lima.py", "weight": 1}, "lima.py is none of .jsonl, .json, .parquet, .txt"),
    ({"dataset": "allenai/c5", "weight": 1}, "The calibration data set allenai/c5 cannot be read"),
    ({**GOOD, "revision": "0" * 40}, "The calibration data set allenai/c4 cannot be read"),
]


def test_a_mix_that_names_what_is_not_there_is_refused_before_anything_is_downloaded(scores, files):
    for number, (subset, _) in enumerate(REFUSED):
        (files / f"{number}.yaml").write_text(yaml.safe_dump({"subsets": [GOOD, subset], "num_samples": 4}))
    found = scores(*((f"{number}.yaml",) for number in range(len(REFUSED))))
    for (_, said), ended in zip(REFUSED, found, strict=True):
        assert ended.code == 1
        assert said in flat(ended.err)
    assert not list((files / "hf").rglob("model*.safetensors"))


@pytest.mark.slow
def test_a_mix_of_ones_own_joins_columns_packs_and_weighs_as_it_likes(score, files):
    code = {"dataset": "sahil2801/CodeAlpaca-20k", "column": ["instruction", "output"], "weight": 1}
    mix = {"subsets": [GOOD, code], "num_samples": 8, "max_tokens": 16, "packed": True}
    (files / "own.yaml").write_text(yaml.safe_dump(mix))
    record = calibration_of(score("own.yaml", "--json"))
    assert [source["documents"] for source in record["sources"]] == [6, 2]
    assert [source["weight"] for source in record["sources"]] == [0.75, 0.25]
    assert [source["tokens"] for source in record["sources"]] == [96, 32]


# ---- again ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_published_packed_recipe_draws_the_same_tokens_again(hubprune, score, files):
    del score  # its data sets are needed
    first = hubprune(
        "publish", BASE, "--attn-drop", 1, "--calibration", "c4", "--num-samples", 5, "--max-tokens", 64,
        "--tasks", "none", "--prompts", "prompts.txt", "--seed", 3, "--out", "first", "--repo-id", "local/packed",
        "--dry-run", "--json",
    )  # fmt: skip
    assert first.code == 0, first.err
    record = json.loads(first.out)["scores"]["calibration"]
    card = flat((files / "first" / "README.md").read_text())
    assert f"Mix c4: 5 sequences, 320 tokens, {record['sources'][0]['texts']} documents joined and cut" in card
    recipe = yaml.safe_load((files / "first" / "recipe.yaml").read_text())
    assert recipe["calibration"]["packed"] is True
    assert recipe["calibration"]["subsets"][0]["revision"] == record["sources"][0]["commit"]

    command = reproducing(files / "first" / "README.md")
    shutil.copy(files / "first" / "recipe.yaml", files)
    again = hubprune(*command, "--dry-run", "--json", HUBPRUNE_HOME=str(files / "other"))
    assert again.code == 0, again.err
    assert json.loads(again.out)["scores"] == json.loads(first.out)["scores"]


def reproducing(card: Path) -> list[str]:
    """The arguments of the command that a card prints for doing it again."""
    _, _, after = card.read_text().partition("hubprune publish ")
    return ["publish", *shlex.split(after.partition("```")[0].replace("\\\n", " "))]


def flat(text: str) -> str:
    """Text without line breaks, which a narrow terminal puts anywhere."""
    return " ".join(text.split())
