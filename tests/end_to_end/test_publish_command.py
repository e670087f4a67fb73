"""One publish from the first request to the loaded result, as a user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from little import SMALL, leftovers

from hubprune.cards.markdown import visible

TARGET = "local/tiny-attn-drop-2"
READER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, model.config.dropped_attn_layers, model.num_parameters())
print(tokenizer.decode(model.generate(**tokenizer("The birds", return_tensors="pt"), max_new_tokens=5)[0]))
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError as error:
    print("refused:", "trust_remote_code" in str(error))
"""


def read_as_a_stranger(hubprune, home, *, code, arguments=()):
    """A process that knows nothing but transformers, with a cache of its own."""
    environment = hubprune.environment({"HF_HOME": str(home), "PYTHONPATH": ""})
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, cwd=home.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fences(card, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def without_torch(folder):
    """A path for imports on which torch is there, for whoever asks, and cannot be imported."""
    (folder / "without" / "torch").mkdir(parents=True)
    (folder / "without" / "torch" / "__init__.py").write_text('raise AssertionError("torch was imported")\n')
    return os.pathsep.join(filter(None, [str(folder / "without"), os.environ.get("PYTHONPATH")]))


LONG = "Llama-3.1-8B-Instruct-abliterated-SFT-DPO-merged-slerp-NEO-CODE-Di-IMatrix-MAX-uncensored-v2.5-x"
HOST = "ip-172-31-45-123.eu-central-1.compute.internal.of-a-long-domain"
"""The longest name of a base, and of a machine."""


def test_the_longest_names_of_a_base_a_machine_and_a_folder_stop_nothing(hubprune, api, files, base_folder):
    from huggingface_hub import CommitOperationAdd

    assert (len(LONG), len(HOST)) == (96, 63)
    (files / "site").mkdir()
    (files / "site" / "sitecustomize.py").write_text(f"import socket\nsocket.gethostname = lambda: {HOST!r}\n")
    named = {"PYTHONPATH": os.pathsep.join(filter(None, [str(files / "site"), os.environ.get("PYTHONPATH")]))}
    api.create_repo(f"meta/{LONG}")
    adds = [CommitOperationAdd(path.name, path) for path in base_folder.iterdir()]
    api.create_commit(f"meta/{LONG}", adds, commit_message="Fill")
    command = ["publish", f"meta/{LONG}", "--attn-layers", 1, "--mlp-layers", 2, *SMALL]
    refused = hubprune(*command, **named)
    assert refused.code == 2, refused.err
    assert f"The result would be called {LONG}-attn-drop-1-mlp-drop-1, which has 119 characters" in refused.err
    assert "--repo-id" in refused.err
    assert "[2/6]" not in refused.err
    out = "-" * 50 + "." * 50 + "o" * 150
    done = hubprune(*command, "--repo-id", "local/short", "--out", out, **named)
    assert done.code == 0, done.err
    verified = hubprune("verify", f"./{out}", **named)
    assert verified.code == 0, verified.err
    assert leftovers(files) == []


def test_publish_leaves_a_repo_that_loads_and_a_second_run_changes_nothing(publish, hubprune, api, files, hub):
    first = publish("--attn-drop", 2, "--report", "report.json", "--out", "kept")

    assert first.code == 0, first.err
    assert [line[:5] for line in first.err.splitlines() if line.startswith("[")] == [f"[{n}/6]" for n in range(1, 7)]
    assert "published  " + TARGET in first.out
    report = json.loads((files / "report.json").read_text())
    assert report["plan"]["dropped"][0]["rank"] == 1
    assert hub.token not in first.out + first.err + (files / "report.json").read_text()

    info = api.model_info(TARGET, files_metadata=True)
    assert info.sha == report["published"]["commit"]
    names = {s.rfilename for s in info.siblings}
    assert {"README.md", "LICENSE", "config.json", "hubprune.json", "recipe.yaml", "tasks/little.yaml"} <= names
    assert "assets/importance.png" in names
    assert len(api.list_repo_commits(TARGET)) == 2  # the Hub's own first one, and ours
    assert [tag.target_commit for tag in api.list_repo_refs(TARGET).tags] == [info.sha]
    assert {p.relative_to(files / "kept").as_posix() for p in (files / "kept").rglob("*") if p.is_file()} == (
        names - {".gitattributes"}
    )

    card = (files / "kept" / "README.md").read_bytes()
    assert "unchanged" in hubprune("card", "kept").out
    (files / "kept" / "README.md").unlink()
    assert hubprune("card", "kept").code == 0
    assert (files / "kept" / "README.md").read_bytes() == card

    kind, *rest = read_as_a_stranger(hubprune, files / "reader", code=READER, arguments=[TARGET]).splitlines()
    dropped = sorted(d["layer"] for d in report["plan"]["dropped"])
    assert kind == f"PrunedLlamaForCausalLM {dropped} {report['checkpoint']['parameters']}"
    assert rest[-1] == "refused: True"

    card = (files / "kept" / "README.md").read_text()
    code, printed = fences(card, "python")[0], fences(card, "text")[0]
    assert f'revision = "{report["published"]["tag"]}"' in code
    said = read_as_a_stranger(hubprune, files / "reader", code=code)
    assert visible(said, keep="\n\t") == printed  # this base writes control characters too

    # What is published already, or needs another card alone, is done without torch.
    without = without_torch(files)
    second = publish("--attn-drop", 2, PYTHONPATH=without)
    assert second.code == 0, second.err
    assert "up to date" in second.out
    assert "[2/6]" not in second.err
    assert api.model_info(TARGET).sha == info.sha
    (files / "notes.md").write_text("Mind the *gap*.\n")
    third = publish("--attn-drop", 2, "--notes", "notes.md", PYTHONPATH=without)
    assert third.code == 0, third.err
    assert "changed since the last publish: card: new notes" in third.err
    now = {s.rfilename: s.blob_id for s in api.model_info(TARGET, files_metadata=True).siblings}
    changed = {s.rfilename for s in info.siblings if now[s.rfilename] != s.blob_id}
    assert (changed, now.keys()) == ({"README.md", "hubprune.json"}, names)
    assert len(api.list_repo_commits(TARGET)) == 3

    # Another machine of the same kind, which has computed nothing yet, measures again what changed, and only that.
    cold = publish("--attn-drop", 2, "--limit", 3, "--dry-run", "--json", HUBPRUNE_HOME=str(files / "cold"))
    assert cold.code == 0, cold.err
    assert "changed since the last publish: benchmarks: new limit 3; card: no notes any more" in cold.err
    taken = {line.strip().partition(":")[0] for line in cold.err.splitlines() if "taken from the last publish" in line}
    assert taken == {"scores", "generation", "snippet"}
    found = json.loads(cold.out)
    assert (found["plan"], found["scores"]) == (report["plan"], report["scores"])
    assert found["generation"] == report["generation"]
    assert found["benchmarks"]["limit"] == 3
    assert found["checkpoint"] == report["checkpoint"]
    assert leftovers(files) == []

    verified = hubprune("verify", TARGET)
    assert verified.code == 0, verified.err
    assert "files as in the manifest" in verified.out
    assert "FAILED" not in verified.out

    # Who works on the result on the Hub finds it as they left it, until somebody asks for the other.
    weights = bytearray((files / "kept" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    healed = api.upload_file(path_or_fileobj=bytes(weights), path_in_repo="model.safetensors", repo_id=TARGET).oid
    stopped = publish("--attn-drop", 2, "--only-if-changed", "--json", PYTHONPATH=without)
    assert stopped.code == 5, stopped.err
    named = f'{healed[:8]} "Upload model.safetensors with huggingface_hub" by local'
    assert f"model.safetensors of {TARGET} was changed or removed since the last publish: {named}." in stopped.err
    assert [row["paths"] for row in json.loads(stopped.out)["commits"]] == [["model.safetensors"]]
    assert api.model_info(TARGET).sha == healed
    taken_back = publish("--attn-drop", 2, "--overwrite")
    assert taken_back.code == 0, taken_back.err
    now = {s.rfilename: s.blob_id for s in api.model_info(TARGET, files_metadata=True).siblings}
    assert {s.rfilename for s in info.siblings if now[s.rfilename] != s.blob_id} <= {"README.md", "hubprune.json"}


def test_a_published_repo_can_be_pruned_and_published_again(hubprune, files):
    small = ("--calibration", "mix.yaml", "--tasks", "none", "--prompts", "prompts.txt", "--json")
    first = hubprune("publish", "meta/tiny", "--attn-layers", 1, *small, "--repo-id", "local/once")
    assert first.code == 0, first.err
    again = hubprune("publish", "local/once", "--attn-drop", 1, *small, "--repo-id", "local/twice", "--out", "twice")
    assert again.code == 0, again.err
    report = json.loads(again.out)
    [dropped] = report["plan"]["dropped"]
    assert dropped["layer"] != 1
    assert report["scores"]["mean"]["attn"][1] == 0
    config = json.loads((files / "twice" / "config.json").read_text())
    assert config["dropped_attn_layers"] == sorted([1, dropped["layer"]])
    assert "The base had lost the attention of layer 1 before." in (files / "twice" / "README.md").read_text()
    verified = hubprune("verify", "local/twice")
    assert verified.code == 0, verified.err
    # What a publish writes is what a refresh would write, so that it has nothing to do.
    refreshed = hubprune("refresh", "local/once", "local/twice", "--check")
    assert refreshed.code == 0, refreshed.out + refreshed.err


def test_a_dry_run_writes_nothing_to_the_hub_and_the_lines_that_it_prints_do(publish, hubprune, api, files):
    asked = ("--attn-layers", "1", "--repo-id", "local/dry", "--dry-run")
    (files / "kept-report.json").write_text("{}")
    ended = publish(*asked, "--show-card")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("README.md as it would be published:\n\n---\n")
    assert "local/dry, branch main, which does not exist yet:" in ended.out
    assert re.search(r"^new +model\.safetensors", ended.out, re.MULTILINE)
    assert re.search(r"of which about [\d.]+ kB \([\d.]+ %\) would be sent", ended.out)
    assert "nothing was published\n\nRun it again with --out kept-2, which" in ended.out
    refused = publish(*asked, "--out", "kept")
    assert (refused.code, (files / "kept-report.json").read_text()) == (2, "{}"), refused.err
    assert "kept-report.json exists already, and is no report of this version.\n" in refused.err
    again = publish(*asked, "--out", "kept-2")
    assert again.code == 0, again.err
    assert not api.repo_exists("local/dry")
    line = ended.out.splitlines()[-1]
    assert line == again.out.splitlines()[-1]
    pushed = hubprune(*line.partition("hubprune ")[2].split())
    assert pushed.code == 0, pushed.err
    assert api.repo_exists("local/dry")


def test_code_of_the_card_that_fails_stops_the_publish_before_anything_is_sent(publish, api, files):
    (files / "sitecustomize.py").write_text(
        "import sys\nif {'-c', 'serve'} & {*sys.orig_argv[1:4]}:\n    raise SystemExit('no reader could do this')\n"
    )
    path = os.pathsep.join([str(files), os.environ.get("PYTHONPATH", "")])
    ended = publish("--attn-layers", "1", "--tasks", "none", "--repo-id", "local/unused", PYTHONPATH=path)
    assert ended.code == 1
    assert "The code that the card would show does not run on the written files: " in ended.err
    assert "Traceback" not in ended.err
    assert not api.repo_exists("local/unused")


def test_prune_writes_a_folder_that_verifies_and_a_changed_byte_is_found(hubprune, base_folder, files):
    ended = hubprune("prune", base_folder, "--attn-layers", "0,3", "--out", "pruned", "--json")
    assert ended.code == 0, ended.err
    assert all(check["passed"] for check in json.loads(ended.out)["verification"]["checks"])
    assert oct((files / "pruned").stat().st_mode & 0o777) == oct(0o777 & ~umask())

    weights = files / "pruned" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 0x40
    weights.write_bytes(data)
    verified = hubprune("verify", "pruned", "--base", base_folder)
    assert verified.code == 1
    assert "FAILED  kept tensors are the base's, byte for byte" in verified.out
    assert "checks failed" in verified.err

    (files / "pruned" / "modeling_pruned_llama.py").write_text("raise SystemExit('must not run')\n")
    refused = hubprune("verify", "pruned", "--base", base_folder)
    assert refused.code == 1
    assert "must not run" not in refused.err
    assert "--trust-remote-code" in refused.err


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_score_prints_every_layer_in_the_order_of_its_score(hubprune, base_folder, files):
    command = ("score", base_folder, "--calibration", "mix.yaml", "--attn-drop", 2)
    ended, table = hubprune.each((*command, "--json"), command)
    assert ended.code == 0, ended.err
    scores = json.loads(ended.out)
    assert "per_document" not in scores
    order = sorted(range(4), key=scores["mean"]["attn"].__getitem__)

    rows = [line.split() for line in table.out.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == order
    assert [row[-1] == "dropped" for row in rows] == [True, True, False, False]


def test_a_recipe_file_and_an_option_that_wins_over_it(hubprune, files):
    ended = hubprune("publish", "meta/tiny", "--attn-layers", "2", "--calibration", "mix.yaml",
                     "--include-path", "tasks", "--tasks", "little",
                     "--prompts", "prompts.txt", "--repo-id", "local/a", "--out", "a")  # fmt: skip
    assert ended.code == 0, ended.err
    again = hubprune("publish", "--recipe", files / "a" / "recipe.yaml", "--repo-id", "local/b", "--tasks", "none",
                     "--out", "b")  # fmt: skip
    assert again.code == 0, again.err
    weights = [(files / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert "Benchmarks" not in Path(files / "b" / "README.md").read_text()


@pytest.mark.parametrize("command", ["publish", "score", "prune", "verify", "compare", "hub", "demo", "env"])
def test_every_command_explains_itself_with_an_example(command, hubprune):
    ended = hubprune(command, "--help")
    assert ended.code == 0
    assert "hubprune " + command in " ".join(ended.out.replace("python -m hubprune", "").split()) or command == "env"


def test_a_quantized_sibling_is_published_measured_and_left_alone_the_next_time(publish, api, files):
    pytest.importorskip("compressed_tensors")
    quantized = ("--attn-layers", 1, "--quantize", "w4a16", "--group-size", 16)
    done = publish(*quantized, "--repo-id", "local/four", "--report", "report.json")
    assert done.code == 0, done.err
    report = json.loads((files / "report.json").read_text())
    [sibling] = report["siblings"]
    assert sibling["repo_id"] == "local/four-W4A16"
    assert sibling["loaded_back"]["text"].startswith(sibling["loaded_back"]["prompt"])
    four = sibling["benchmarks"]
    assert four["both"]["backend"] == "shared"
    assert four["dropped"]["tasks"][0]["pruned"] == report["benchmarks"]["tasks"][0]["pruned"]
    assert [row["name"] for row in four["together"]] == ["little"]
    card = Path(api.hf_hub_download("local/four-W4A16", "README.md")).read_text()
    assert "base_model: local/four\nbase_model_relation: quantized" in card
    assert "local/four-W4A16" in Path(api.hf_hub_download("local/four", "README.md")).read_text()
    heads = [api.model_info(name).sha for name in ("local/four", "local/four-W4A16")]
    again = publish(*quantized, "--repo-id", "local/four", PYTHONPATH=without_torch(files))
    assert again.code == 0, again.err
    assert heads == [api.model_info(name).sha for name in ("local/four", "local/four-W4A16")]
