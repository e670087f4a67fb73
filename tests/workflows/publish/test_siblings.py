"""Siblings are looked at before anything is computed, and follow the pruned repo; what fails leaves it, and goes on."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import made_siblings
import pytest
from as_published import again, recipe_of
from on_hub import safetensors

from hubprune.cards.manifest import write_sibling
from hubprune.core.artifacts import LoadedBack
from hubprune.core.errors import (
    EditedError,
    MissingDependencyError,
    PermissionDeniedError,
    RecipeError,
    UnsupportedArchitectureError,
    VerificationError,
)
from hubprune.core.files import list_files
from hubprune.core.recipe import Recipe, TargetSpec
from hubprune.core.requests import PublishRequest
from hubprune.core.specs import HealSpec, QuantizationSpec
from hubprune.workflows import recipes
from hubprune.workflows.card import AS_SHIPPED
from hubprune.workflows.publish import siblings
from hubprune.workflows.publish.making import SiblingProduct

pytestmark = pytest.mark.usefixtures("stages")


@pytest.fixture
def making(monkeypatch, tmp_path):
    """Siblings that are made in a moment; `fails` names the kind that cannot be."""
    seen = SimpleNamespace(kinds=[], fails=None)

    @contextmanager
    def make(run, pruned, folder, place, *, choices, depends_on):
        seen.kinds.append(place.kind)
        if seen.fails == place.kind:
            raise VerificationError("It computes something else.")
        own = tmp_path / f"{place.kind}-{len(seen.kinds)}"
        own.mkdir()
        (own / ("a-Q8_0.gguf" if place.kind == "gguf" else "model.safetensors")).write_bytes(safetensors(9))
        files = list_files(own)
        parts = {"quantized": made_siblings.quantized(files)}
        if place.kind == "healed":
            parts = {"healed": made_siblings.healed(files)}
        if place.kind == "gguf":
            parts = {"exports": (made_siblings.export(file=files[0].path, size=files[0].size, sha256=files[0].sha256),)}
            parts["carried"] = ()
        told = {part: dict(values) for part, values in depends_on.items()}
        report = made_siblings.report(
            place.kind, repo_id=place.repo_id, pruned=pruned.repo_id, beside=place.others, fingerprint=told, **parts
        )
        (own / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n# {', '.join(o.told for o in place.others)}\n")
        yield SiblingProduct(own, write_sibling(own, report=report, template_hash="0" * 64), report)

    monkeypatch.setattr(siblings, "made", make)
    monkeypatch.setattr(siblings, "check_fit", lambda run: None)
    monkeypatch.setattr(siblings, "_checkpoint", lambda run, report, stack: tmp_path)
    loaded = LoadedBack(prompt="a", text="b", parameters=1)
    monkeypatch.setattr(siblings, "_load_back", lambda run, published, report: loaded)
    return seen


def both(user, **changes):
    return recipe_of(user, quantize=QuantizationSpec(group_size=32), gguf=("q8_0",), **changes)


def committed(hub, start=0):
    """Names of the repos that got a commit, in order."""
    sent = [r.path for r in hub.log[start:] if r.method == "POST" and "/commit/" in r.path]
    return [path.split("/")[4] for path in sent]


def card_of(admin, repo_id):
    return Path(admin.hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")


def test_siblings_follow_the_pruned_repo_which_gets_a_new_card_and_no_weights(
    published, run_of, user, admin, hub, making
):
    _, first = published()
    start = len(hub.log)
    told = []
    report = again(run_of(both(user)), told=told.append)
    assert committed(hub, start) == ["pruned", "pruned-W4A16", "pruned-GGUF"]
    assert making.kinds == ["quantized", "gguf"]
    assert [len(seen.siblings) for seen in told][-3:] == [0, 1, 2]
    kinds = {sibling.kind: sibling for sibling in report.siblings}
    assert kinds["quantized"].loaded_back
    assert kinds["gguf"].loaded_back is None
    before, now = (
        {s.rfilename: s.blob_id for s in admin.model_info(first.repo_id, revision=at, files_metadata=True).siblings}
        for at in (first.commit, "main")
    )
    assert {path for path in now if now[path] != before[path]} == {"README.md", "hubprune.json"}
    for suffix in ("-W4A16", "-GGUF"):
        assert f"{first.repo_id}{suffix}" in card_of(admin, first.repo_id)
    [tag] = admin.list_repo_refs(f"{first.repo_id}-W4A16").tags
    assert tag.name == kinds["quantized"].published.tag

    start = len(hub.log)
    done = again(run_of(both(user)))
    assert committed(hub, start) == []
    assert making.kinds == ["quantized", "gguf"]
    assert [sibling.published.created for sibling in done.siblings] == [False, False]
    assert done.siblings[0].benchmarks.together == kinds["quantized"].benchmarks.together


def test_a_healed_one_comes_first_and_is_trained_again_only_where_its_training_changed(
    published, run_of, user, admin, hub, making
):
    published()
    start = len(hub.log)
    report = again(run_of(both(user, heal=HealSpec(steps=9))))
    assert committed(hub, start) == ["pruned", "pruned-healed", "pruned-W4A16", "pruned-GGUF"]
    assert report.siblings[0].loaded_back
    assert "trained for 9 steps" in card_of(admin, f"{user[0]}/pruned")
    start = len(hub.log)
    done = again(run_of(both(user, heal=HealSpec(steps=9))))
    assert committed(hub, start) == []
    assert done.siblings[0].healing == report.siblings[0].healing
    before = len(making.kinds)
    again(run_of(both(user, heal=HealSpec(steps=9, learning_rate=0.1))))
    assert making.kinds[before:] == ["healed"]


def test_a_sibling_that_fails_leaves_the_pruned_repo_and_the_same_command_goes_on_with_it(
    published, run_of, user, admin, hub, making
):
    published()
    making.fails = "gguf"
    with pytest.raises(VerificationError) as failed:
        again(run_of(both(user)))
    name = f"{user[0]}/pruned"
    assert f"{name} is published. The same command leaves it as it is and goes on with {name}-GGUF" in failed.value.hint
    assert not admin.repo_exists(f"{name}-GGUF")
    making.fails, start = None, len(hub.log)
    report = again(run_of(both(user)))
    assert committed(hub, start) == ["pruned-GGUF"]
    assert making.kinds == ["quantized", "gguf", "gguf"]
    assert [sibling.published.created for sibling in report.siblings] == [False, True]


def test_a_sibling_that_does_not_load_is_named_as_published(published, run_of, user, making, monkeypatch):
    published()

    def refuse(run, published, report):
        raise VerificationError("it loads with 5 parameters instead of 6.")

    monkeypatch.setattr(siblings, "_load_back", refuse)
    with pytest.raises(VerificationError, match="pruned-W4A16 is published, but: it loads with 5 parameters"):
        again(run_of(both(user)))


def test_what_changed_for_one_sibling_is_made_again_and_the_other_is_left(published, run_of, user, hub, making):
    published()
    again(run_of(both(user)))
    start = len(hub.log)
    again(run_of(both(user).model_copy(update={"quantize": QuantizationSpec(group_size=64)})))
    # The cards of the others name its scheme.
    assert committed(hub, start) == ["pruned", "pruned-W4A16", "pruned-GGUF"]
    start = len(hub.log)
    again(run_of(both(user).model_copy(update={"quantize": QuantizationSpec(group_size=64), "seed": 0})))
    assert committed(hub, start) == []


def test_a_dry_run_makes_siblings_and_sends_nothing(published, run_of, user, admin, hub, making, tmp_path):
    published()
    again(run_of(both(user)))
    report = again(run_of(both(user, seed=0)), dry_run=True, only_if_changed=True)
    assert [sibling.published.created for sibling in report.siblings] == [False, False]
    start = len(hub.log)
    request = siblings.SiblingDelivery(
        replaces="nothing", tell=lambda told: None, dry_run=True, force=True, out=tmp_path / "out"
    )
    run = run_of(both(user))
    beside = siblings.look(
        run, SimpleNamespace(out=None, replaces="nothing", healed=None), target_of(run, user), excuse=None
    )
    done = siblings.publish_all(run, report, beside, request, choices=AS_SHIPPED, folder=tmp_path)
    assert committed(hub, start) == []
    assert [sibling.upload.repo_id for sibling in done.siblings[-2:]] == [each.target.repo_id for each in beside]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out-GGUF", "out-W4A16"]


def target_of(run, user):
    return siblings.Target(
        repo_id=f"{user[0]}/pruned", revision="main", exists=True, branch_exists=True, parent=None, private=False,
        create_pr=False, user=user[0],
    )  # fmt: skip


# ---- before anything is computed -----------------------------------------------------------------------------------


def test_the_repo_of_a_sibling_is_looked_at_like_that_of_the_pruned_model(run_of, user, inputs, admin, making):
    name = f"{user[0]}/pruned"
    admin.create_repo(f"{name}-W4A16")
    admin.upload_file(path_or_fileobj=b"mine", path_in_repo="model.safetensors", repo_id=f"{name}-W4A16")
    with pytest.raises(EditedError, match=r"model\.safetensors"):
        again(run_of(both(user)))
    long = TargetSpec(repo_id=f"{user[0]}/{'x' * 92}")
    with pytest.raises(RecipeError, match="xx-W4A16, which has 98 characters"):
        again(run_of(both(user, target=long)))
    elsewhere = TargetSpec(repo_id="somebody-else/pruned")
    with pytest.raises(PermissionDeniedError):
        again(run_of(both(user, target=elsewhere)))
    assert making.kinds == []


def test_what_cannot_be_made_of_a_base_is_refused_with_what_can(run_of, user, inputs, monkeypatch):
    shapes = {"model.layers.0.mlp.down_proj.weight": (64, 96), "model.norm.weight": (64,)}
    monkeypatch.setattr(siblings, "stored_shapes", lambda base, *, session: shapes)
    with pytest.raises(RecipeError, match="has 96 columns, which groups of 128 do not divide") as odd:
        siblings.check_fit(run_of(recipe_of(user, quantize=QuantizationSpec())))
    assert odd.value.hint.startswith("Pass --group-size 32")
    assert "--quantize fp8" in odd.value.hint
    monkeypatch.setattr(siblings, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="llama-cpp-python is not installed"):
        siblings.check_fit(run_of(recipe_of(user, gguf=("q8_0",))))
    monkeypatch.setattr(siblings, "find_spec", lambda name: True)
    with pytest.raises(RecipeError, match="q9"):
        siblings.check_fit(run_of(recipe_of(user, gguf=("q9",))))

    def refuse(config, *, name):
        raise UnsupportedArchitectureError(f"{name} is of the family mamba.")

    monkeypatch.setattr(siblings, "read_layers", refuse)
    with pytest.raises(UnsupportedArchitectureError, match="family mamba"):
        siblings.check_fit(run_of(recipe_of(user, gguf=("q8_0",))))


def test_a_type_that_is_named_twice_is_written_once(user):
    values = recipe_of(user).model_dump(mode="json", exclude_none=True)
    assert Recipe.model_validate({**values, "gguf": ["q8_0", "f16", "q8_0"]}).gguf == ("q8_0", "f16")


def test_a_recipe_of_the_pruned_repo_says_nothing_of_its_siblings(run_of, user, inputs):
    run = run_of(both(user))
    assert (run.pinned_recipe.quantize, run.pinned_recipe.gguf) == (None, None)
    assert run.sibling_recipe("gguf").quantize is None
    pinned = run.sibling_recipe("quantized").calibration.subsets[0].revision
    assert pinned == run.data_commits[0]


def test_how_it_is_healed_is_in_the_recipe_and_options_win_over_it(tmp_path):
    def told(**options):
        return recipes.recipe_of(PublishRequest("a/b", recipe=tmp_path / "recipe.yaml", **options)).heal

    mix = "{name: m, num_samples: 9, max_tokens: 9, subsets: [{dataset: a/b, weight: 1}]}"
    (tmp_path / "recipe.yaml").write_text(f"base: {{repo_id: a/b}}\ncalibration: {mix}\ndrop: {{attn_drop: 1}}\n")
    assert told() is None
    assert told(heal=True) == HealSpec(steps=200, method="lora", loss="kl")
    with pytest.raises(RecipeError, match="--heal-steps is for what is healed"):
        told(heal_steps=9)
    with (tmp_path / "recipe.yaml").open("a") as file:
        file.write("heal: {method: full, loss: kl+hidden}\n")
    assert told(heal_steps=9) == HealSpec(steps=9, method="full", loss="kl+hidden")
    assert told(heal=True) == HealSpec(method="full", loss="kl+hidden")
    assert told(heal=False) is None
    with pytest.raises(RecipeError, match="--healed publishes what was trained elsewhere"):
        told(healed="folder")
    assert told(heal=False, healed="folder") is None
