"""A publish whose number is to be found: by a sweep of its own, or by one that was run before."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from hubprune.commands.measured_lines import picked_lines
from hubprune.core.artifacts import Recommendation, SweepReport
from hubprune.core.console import Reporter
from hubprune.core.errors import PlanError, RecipeError
from hubprune.core.options import as_typed
from hubprune.core.requests import PublishRequest
from hubprune.workflows import publish as publishing
from hubprune.workflows.publish import counting
from hubprune.workflows.publish.counting import open_ranking, with_count
from hubprune.workflows.recipes import recipe_of

BASE = "acme/base"


def report_of(tmp_path, *recommendations, points=()):
    environment = {"hubprune": "0", "python": "3", "platform": "x", "machine": "x", "versions": {}, "threads": 1}
    values = {
        "base": BASE, "commit": "c" * 40, "base_parameters": 9, "num_hidden_layers": 4, "absent": [],
        "metric": "cosine", "seed": 0, "mix": None, "tasks": [], "limit": None, "chance": None, "perplexity_on": None,
        "orders": [], "points": [*points], "rule": "", "environment": environment, "device": "cpu", "dtype": "float32",
        "recommendations": [row.model_dump() for row in recommendations],
    }  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps(values))
    return tmp_path


def row(method="attn", count=2, rest="", takes=None):
    command = f"hubprune publish {BASE} --{method}-drop {count} {rest}" if count else None
    return Recommendation(method=method, count=count, reason="mean −0.4 points", command=command, takes=takes)


def found(request):
    return with_count(request, reporter=Reporter(quiet=True))


def test_a_number_that_is_given_is_left_alone():
    request = PublishRequest(BASE, attn_drop=3)
    assert found(request) is request


def test_the_number_and_the_options_of_a_sweep_are_taken_over(tmp_path):
    folder = report_of(tmp_path, row(rest="--seed 7 --calibration c4 --tasks a,b --base-revision v1"))
    for place in (folder, folder / "sweep.json"):
        made = found(PublishRequest(from_sweep=place, tasks="c", private=True))
        assert made == PublishRequest(
            BASE, attn_drop=2, seed=7, calibration="c4", tasks="c", base_revision="v1", private=True
        )


def test_switches_of_a_sweep_are_taken_over(tmp_path):
    asked = PublishRequest(BASE, apply_chat_template=True, calibration_chat_template=False, seed=7)
    rest = shlex.join(as_typed(asked, "apply_chat_template", "calibration_chat_template", "seed"))
    assert rest == "--apply-chat-template --no-calibration-chat-template --seed 7"
    assert found(PublishRequest(from_sweep=report_of(tmp_path, row(rest=rest)))) == replace(asked, attn_drop=2)


def test_of_several_methods_one_is_named(tmp_path):
    folder = report_of(tmp_path, row(), row("joint", 4))
    assert found(PublishRequest(from_sweep=folder, joint_drop="auto")).joint_drop == 4
    with pytest.raises(RecipeError) as raised:
        found(PublishRequest(from_sweep=folder))
    said = "recommends --attn-drop 2, --joint-drop 4. Pass --attn-drop auto or --joint-drop auto beside it."
    assert said in str(raised.value)


def test_methods_that_come_to_the_same_drops_are_one(tmp_path):
    common = {"parameters": 9, "tasks": [], "mean": 50.0, "speed": None, "perplexity": None, "perplexity_change": None}
    common |= {"mean_change": {"value": 0.0}}
    same = [("attn", 1), ("attn", 3)]
    points = [{**common, "method": method, "count": 2, "dropped": same} for method in ("attn", "joint")]
    rows = row(), row("joint"), row("block", count=0)
    assert found(PublishRequest(from_sweep=report_of(tmp_path, *rows, points=points))).attn_drop == 2
    points[1]["dropped"] = [("attn", 1), ("mlp", 3)]
    with pytest.raises(RecipeError, match="recommends --attn-drop 2, --joint-drop 2"):
        found(PublishRequest(from_sweep=report_of(tmp_path, *rows, points=points)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"attn_drop": 3}, "--attn-drop is a number"),
        ({"base": "acme/other"}, "is of acme/base, not of acme/other"),
        ({"recipe": "recipe.yaml"}, "--from-sweep and --recipe do not go together"),
        ({"target": "kv=-30%"}, "and --target is there too"),
        ({"attn_drop": "auto", "neuron_drop": "30%"}, "--attn-drop auto finds .*, and --neuron-drop is there too"),
        ({"schedule": "iterative"}, "and --schedule iterative is there too"),
        ({"endpoint": "http://else"}, "was run against http://there"),
        ({"attn_drop": "auto", "mlp_drop": 2}, "--attn-drop auto finds one number, .* and --mlp-drop is there too"),
    ],
)
def test_what_leaves_nothing_to_find_is_refused(asked, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        found(PublishRequest(from_sweep=report_of(tmp_path, row(rest="--endpoint http://there")), **asked))


def test_where_not_even_one_keeps_to_the_limit_it_is_said_what_it_would_take(tmp_path):
    with pytest.raises(PlanError) as raised:
        found(PublishRequest(from_sweep=report_of(tmp_path, row(count=0, takes="It would need --max-loss 3.3."))))
    assert "Not even one drop of acme/base keeps to the limit" in raised.value.message
    assert raised.value.hint == "It would need --max-loss 3.3."


def test_a_sweep_that_recommends_nothing_names_the_methods_that_are_left(tmp_path):
    def told(*rows):
        return picked_lines(SweepReport.model_validate_json((report_of(tmp_path, *rows) / "sweep.json").read_bytes()))

    nothing = row(count=0, takes="It would need --max-loss 3.3.")
    assert "none fits" in told(nothing)[0]
    assert told(nothing)[1:] == ["Or try --method mlp,joint."]
    assert "Or try" not in "".join(told(nothing, row("joint")))


def test_a_file_that_is_no_sweep_is_told_apart(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RecipeError, match="it is no report of a sweep"):
        found(PublishRequest(from_sweep=tmp_path))
    with pytest.raises(RecipeError, match="Cannot read"):
        found(PublishRequest(from_sweep=tmp_path / "gone"))


def test_nothing_is_measured_for_a_job_on_another_machine():
    with pytest.raises(RecipeError, match="--joint-drop auto measures first, on this machine"):
        with_count(PublishRequest(BASE, joint_drop="auto"), reporter=Reporter(quiet=True), sweeps=False)


@pytest.mark.parametrize("limit", ["2.5", 2.5, "mean=2.5", {"mean": 2.5}])
def test_the_limit_is_that_of_the_mean(limit):
    assert counting._limit(PublishRequest(BASE, max_loss=limit)) == 2.5
    assert counting._limit(PublishRequest(BASE)) == 1.0
    with pytest.raises(RecipeError, match="one limit for the mean"):
        counting._limit(replace(PublishRequest(BASE), max_loss="piqa=3"))
    assert open_ranking(PublishRequest(BASE, block_drop="auto")) == "block"


def test_a_limit_of_ones_own_takes_fewer_than_the_sweep_recommends(tmp_path):
    common = {"method": "attn", "dropped": [], "parameters": 9, "tasks": [], "mean": 50.0, "speed": None}
    common |= {"perplexity": None, "perplexity_change": None}
    points = [{**common, "count": n, "mean_change": {"value": -1.0 * n}} for n in range(4)]
    folder = report_of(tmp_path, row(count=3), points=points)
    for limit, count in ((None, 3), (2.5, 2), (9, 3), ("piqa=1", 3)):
        assert found(PublishRequest(from_sweep=folder, max_loss=limit)).attn_drop == count
    with pytest.raises(PlanError) as raised:
        found(PublishRequest(from_sweep=folder, max_loss=0.5))
    assert raised.value.hint == "It would need --max-loss 1."


@pytest.mark.parametrize(
    ("change", "limit", "guesses", "said"),
    [
        ({"value": 0.0, "low": 0.0, "high": 0.0}, 4, False, ["± 37.5 points, and the limit is 1"]),  # 300 / (4 x 2)
        ({"value": -1.0, "low": -4.0, "high": 2.0}, 200, False, ["± 3.0 points, and the limit is 1"]),
        ({"value": -0.5, "low": -0.9, "high": -0.1}, 200, True, ["only guesses on a: "]),
        ({"value": 0.0, "low": 0.0, "high": 0.0}, 200, False, []),
    ],
)
def test_a_number_that_few_documents_found_is_told_to_be_unsure(change, limit, guesses, said, tmp_path):
    task = {"task": "a", "metric": "acc", "value": 0.5, "change_points": None, "at_chance": guesses}
    common = {"method": "attn", "dropped": [], "parameters": 9, "tasks": [task], "mean": 50.0, "speed": None}
    common |= {"perplexity": None, "perplexity_change": None}
    points = [{**common, "count": n, "mean_change": change} for n in range(2)]
    folder = report_of(tmp_path, row(count=1), points=points)
    report = SweepReport.model_validate_json((folder / "sweep.json").read_bytes())
    report = report.model_copy(update={"limit": limit, "tasks": ("a", "b")})
    told = list(counting.doubts(report, 1, limit=1.0))
    assert len(told) == len(said)
    assert all(part in line for part, line in zip(said, told, strict=True))


@pytest.mark.parametrize("rest", ["--seed x", "'"])
def test_a_command_that_somebody_changed_is_no_crash(rest, tmp_path):
    with pytest.raises(RecipeError):
        recipe_of(found(PublishRequest(from_sweep=report_of(tmp_path, row(rest=rest)))))


def test_what_would_stop_the_publish_is_said_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(publishing.counting.sweeping, "sweep_run", pytest.fail)
    with pytest.raises(RecipeError, match="notes"):
        publishing.publish(PublishRequest(BASE, attn_drop="auto", notes="gone.md"), reporter=Reporter(quiet=True))
    for other in ({"attn_layers": "1"}, {"per": "bytes"}, {"metric": "angular"}):
        with pytest.raises(RecipeError, match="is there too"):
            publishing.publish(PublishRequest(BASE, block_drop="auto", **other), reporter=Reporter(quiet=True))
