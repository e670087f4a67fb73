"""The record of a publish lists every file, holds nothing private, and is the same for the same result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import made
import pytest
from on_hub import finish, make_folder

from hubprune.cards.commands import publish_command
from hubprune.cards.manifest import checkpoint_tag, files_digest, read_manifest, write_manifest, write_recipe
from hubprune.core.artifacts import RepoFile
from hubprune.core.errors import VerificationError
from hubprune.core.files import list_files
from hubprune.core.privacy import public_recipe, scrub
from hubprune.core.recipe import (
    CalibrationMix,
    CalibrationSubset,
    DropSpec,
    EvaluationSpec,
    Recipe,
    TargetSpec,
    parse,
    read_recipe,
)
from hubprune.core.requests import PublishRequest
from hubprune.workflows.recipes import recipe_of


def manifest(folder):
    return json.loads((folder / "hubprune.json").read_text())


@pytest.fixture
def private_recipe():
    """A recipe with local paths in all places that may hold one."""
    subset = CalibrationSubset(dataset=f"{Path.home()}/secret/mine.jsonl", weight=1)
    return made.recipe(
        calibration=CalibrationMix(name="mine", subsets=(subset,)),
        evaluation=EvaluationSpec(tasks=("own",), include_path=f"{Path.home()}/secret/tasks"),
    )


def git_oid(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def test_every_file_but_the_manifest_itself_is_listed_with_its_hash(tmp_path):
    folder = make_folder(tmp_path / "a")
    on_disk = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del on_disk["hubprune.json"]
    listed = manifest(folder)["files"]
    assert listed == {
        path: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "git_oid": git_oid(data)}
        for path, data in on_disk.items()
    }
    assert {"README.md", "recipe.yaml", "tasks/own.yaml"} <= set(listed)


def test_the_same_result_gives_the_same_bytes(tmp_path):
    slower = made.report(benchmarks=made.benchmarks(seconds=1.0))
    a, b = make_folder(tmp_path / "a"), make_folder(tmp_path / "b")
    finish(b, card="# Card\n", report=slower)
    assert (a / "hubprune.json").read_bytes() == (b / "hubprune.json").read_bytes()


def test_another_machine_hour_and_owner_leave_the_digest_of_the_content(tmp_path):
    elsewhere = made.environment().model_copy(update={"machine": "Sixty-Core CPU", "threads": 60})
    again = made.report(seconds={"score": 9.0}, environment=elsewhere, repo_id="other/name")
    a, b = make_folder(tmp_path / "a"), make_folder(tmp_path / "b")
    finish(b, card="# Card\n", report=again)
    assert manifest(a)["content_sha256"] == manifest(b)["content_sha256"]
    assert manifest(a)["run"] != manifest(b)["run"]


def test_another_card_leaves_the_digest_of_the_content(tmp_path):
    a, b = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", card="# Other\n")
    assert manifest(a)["content_sha256"] == manifest(b)["content_sha256"]
    assert manifest(a)["files"]["README.md"] != manifest(b)["files"]["README.md"]
    c = make_folder(tmp_path / "c", plan=made.plan(protected=()))
    assert manifest(a)["content_sha256"] != manifest(c)["content_sha256"]


def test_all_files_are_returned_as_they_lie_there(tmp_path):
    folder = make_folder(tmp_path / "a")
    assert finish(folder, card="# Card\n", report=made.report()) == list_files(folder)


@pytest.mark.parametrize(("change", "said"), [("write_bytes", "was changed"), ("unlink", "has gone")])
def test_a_file_that_was_changed_after_it_was_verified_is_named(tmp_path, change, said):
    folder = make_folder(tmp_path / "a")
    verified = tuple(f for f in list_files(folder) if f.path == "model.safetensors")
    report = made.report(checkpoint=made.checkpoint(files=verified))
    write_manifest(folder, report=report, template_hash="0" * 64)
    getattr(folder / "model.safetensors", change)(*([b"other"] if change == "write_bytes" else []))
    with pytest.raises(VerificationError, match=rf"model\.safetensors {said} since it was verified\. Remove "):
        write_manifest(folder, report=report, template_hash="0" * 64)


def test_it_holds_what_the_run_saw_but_no_single_documents(tmp_path):
    values = manifest(make_folder(tmp_path / "a"))
    assert (values["base"]["repo_id"], values["base"]["commit"]) == ("meta-llama/Llama-3.2-3B", made.BASE_COMMIT)
    assert values["recipe"]["base"]["revision"] == made.BASE_COMMIT
    assert values["scores"]["mean"]["attn"] == list(made.ATTN)
    assert "per_document" not in values["scores"]
    assert values["scores"]["calibration"]["sources"][0]["commit"] == made.DATA_COMMIT
    assert len(values["generation"]["continuations"]) == 3
    assert {"plan", "verification", "benchmarks", "versions", "checkpoint"} <= set(values)
    assert "seconds" not in values["benchmarks"]


def test_a_recipe_is_published_without_local_paths(tmp_path, private_recipe):
    base = made.base(name="owner/base")
    public = public_recipe(private_recipe, base=base)
    assert str(Path.home()) not in public.to_yaml()
    assert public.calibration.subsets[0].dataset == "mine.jsonl"
    assert public.evaluation.include_path == "tasks"
    assert (public.base.repo_id, public.base.revision) == ("owner/base", made.BASE_COMMIT)


def test_whoever_runs_the_published_recipe_publishes_as_themselves():
    public = public_recipe(
        made.recipe(target=TargetSpec(repo_id="author/name", private=True, create_pr=True)), base=made.base()
    )
    assert public.target == TargetSpec(repo_id="name", private=True)


def test_the_published_recipe_is_read_back_as_the_same_recipe(tmp_path):
    write_recipe(tmp_path, recipe=made.recipe(), report=made.report())
    assert read_recipe(tmp_path / "recipe.yaml") == public_recipe(made.recipe(), base=made.base())


def test_local_paths_and_tokens_are_scrubbed_wherever_they_hide(tmp_path, private_recipe):
    token = "hf_" + "a1B2" * 8
    check = made.verification().checks[0].model_copy(update={"detail": f"{Path.home()}/x with {token}"})
    folder = make_folder(
        tmp_path / "a",
        verification=made.verification().model_copy(update={"checks": (check,)}),
        recipe=private_recipe.model_dump(mode="json"),
    )
    text = (folder / "hubprune.json").read_text()
    assert token not in text
    assert f"{Path.home()}/" not in text
    assert scrub(f"see {Path.home()}/a") == "see ~/a"


JOB = f"eyJ{'a' * 20}.eyJ{'b' * 20}.{'c' * 20}"


@pytest.mark.parametrize("before", ["", "my_", "x", "0", "é", "Bearer ", "token="])
@pytest.mark.parametrize("token", ["hf_" + "a1B2" * 8, "api_org_" + "a1B2" * 8, "hf_jwt_" + "a.b-" * 8, JOB])
def test_a_token_is_scrubbed_whatever_it_is_stuck_to(before, token):
    assert scrub(f"{before}{token} after") == f"{before}hf_… after"


def test_the_tag_depends_on_the_checkpoint_alone():
    files = made.checkpoint().files
    assert checkpoint_tag(made.checkpoint()) == f"hubprune-{files_digest(files)[:8]}"
    assert checkpoint_tag(made.checkpoint(files=tuple(reversed(files)))) == checkpoint_tag(made.checkpoint())
    other = (*files[:1], files[1].model_copy(update={"sha256": "f" * 64}), *files[2:])
    assert checkpoint_tag(made.checkpoint(files=other)) != checkpoint_tag(made.checkpoint())


def test_a_name_that_looks_like_two_files_is_another_digest():
    a = [RepoFile(path="a", size=1, sha256="b")]
    b = [RepoFile(path="a\0b", size=1, sha256="")]
    assert files_digest(a) != files_digest(b)


def test_hashes_are_those_of_sha256_and_of_git(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"hello\n")
    (file,) = list_files(tmp_path)
    assert file.git_oid == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert file.sha256 == hashlib.sha256(b"hello\n").hexdigest()
    assert file.size == 6


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"files": 3}', b'{"files": {"a": 1}}', b"[" * 100_000])
def test_a_manifest_that_makes_no_sense_counts_as_empty(data):
    read = read_manifest(data)
    assert read.files == {}
    assert read.content_sha256 is None


def test_the_command_is_rebuilt_from_the_recipe():
    recipe = made.recipe(
        drop=DropSpec(attn_layers=(21, 18)),
        aggregation="token",
        evaluation=EvaluationSpec(tasks=("a b", "c"), include_path="tasks"),
        dtype="float32",
    )
    assert publish_command(recipe).split(" \\\n    ") == [
        "hubprune publish meta-llama/Llama-3.2-3B", "--recipe recipe.yaml", "--base-revision main",
        "--attn-layers 18,21", "--aggregation token", "--tasks 'a b,c'", "--include-path tasks",
        "--seed 0", "--dtype float32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        (("quick",), "--num-fewshot 0"),
        (("paper",), "--num-fewshot boolq=0,rte=0,openbookqa=0,piqa=0,mmlu=5,winogrande=5,gsm8k=5,hellaswag=10,"
                     "arc_challenge=25"),
        (("quick", "boolq"), "--num-fewshot lambada_openai=0,piqa=0,winogrande=0"),
        (("boolq",), None),
    ],
)  # fmt: skip
def test_the_command_gives_the_tasks_and_examples_that_the_recipe_has(tasks, told, tmp_path):
    spec = EvaluationSpec(tasks=tasks)
    command = publish_command(made.recipe(evaluation=spec))
    words = dict(line.split(" ", 1) for line in command.split(" \\\n    ")[1:])
    assert words.get("--num-fewshot") == (told and told.split(" ", 1)[1])
    (tmp_path / "recipe.yaml").write_text(made.recipe(evaluation=spec).to_yaml())
    options = {"base": "acme/base", "recipe": tmp_path / "recipe.yaml", "tasks": words["--tasks"]}
    assert recipe_of(PublishRequest(**options, num_fewshot=words.get("--num-fewshot"))).evaluation == spec


def test_the_recipe_of_a_report_is_the_recipe():
    assert parse(Recipe, made.report().recipe) == made.recipe()
