"""The matrix: what a cell says, what runs where, and that a modeling file with a bug makes it fail."""

from __future__ import annotations

import io
import json
import runpy
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cases
import environments
import pytest
from folders import make_folders
from inside import matching, read_cases
from kinds import FIVE_LAYERS, KINDS, NEWEST, OLDER, Kind, all_versions
from rich.console import Console
from table import Result, any_failed, cell, show

from hubprune.core.architectures import ARCHITECTURES


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Llama without its first attention, and one whose MLPs differ in width."""
    kind = replace(KINDS[0], drops={name: FIVE_LAYERS[name] for name in ("first", "widths")})
    return {case.drops: case for case in read_cases(make_folders([kind], tmp_path_factory.mktemp("folders")))}


@pytest.fixture(autouse=True)
def nothing_known_of_classes():
    """Forget what transformers found out of the stock class in other tests: a subclass would be taken for the same."""
    from transformers import LlamaForCausalLM

    for known in LlamaForCausalLM.__mro__:
        if "_can_set_attn_implementation_cached_value" in vars(known):
            del known._can_set_attn_implementation_cached_value


# ---- a modeling file with a bug ----------------------------------------------------------------------------------


def spoiled(case, tmp_path, old, new):
    """A copy of a folder with another text in its code or its config.json."""
    folder = tmp_path / f"spoiled-{abs(hash((old, new)))}"
    folder.mkdir()
    found = False
    for path in Path(case.folder).iterdir():
        content = path.read_bytes()
        found |= old.encode() in content
        (folder / path.name).write_bytes(content.replace(old.encode(), new.encode()))
    assert found
    return replace(case, folder=str(folder))


BUGS = {
    "cache slots keep the numbers of their layers": (
        "getattr(layer, ATTN).layer_idx = slots[number]", "pass", ["left-padded batch", "resume from a cache"],
    ),
    "slots that nobody fills stay in the cache": (
        "model.register_forward_pre_hook(", "dict(module=", ["cache size"],
    ),
    "a stand-in adds something": (
        "hidden_states.new_zeros(()), None", "hidden_states, None", ["logits, eager", "beam 3", "bf16"],
    ),
    "a norm stays": ("setattr(layer, norm, nn.Identity())", "pass", ["load: no missing or unexpected keys"]),
    "a class is called Attention": ("NoAttn", "NoAttention", ["set_attn_implementation"]),
    "config.json does not name the code": ('"auto_map"', '"map"', ["load: no missing or unexpected keys", "pipeline"]),
    "config.json names the stock class": ('"pruned_llama"', '"llama"', ["loud failure without trust"]),
    "a list that does not fit is passed over": (
        "not listed or not all(", "False and not all(",
        ["a wrong key in config.json is named", "a layer number out of range is named"],
    ),
    "gradients do not come back": (
        "hidden_states.new_zeros(()), None", "hidden_states.detach() - hidden_states, None",
        ["training step lowers the loss"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_fails(published, tmp_path, name):
    old, new, checks = BUGS[name]
    case = spoiled(published["first"], tmp_path, old, new)
    assert {check: cases.judge(cases.CHECKS[check], case)[0] for check in checks} == dict.fromkeys(checks, "FAIL")


def test_widths_that_are_not_read_fail(published, tmp_path):
    case = spoiled(published["widths"], tmp_path, "narrow.intermediate_size = widths[number]", "pass")
    assert cases.judge(cases.CHECKS["per-layer MLP widths"], case)[0] == "FAIL"


def test_without_a_bug_the_same_checks_pass(published):
    names = {name for _, _, checks in BUGS.values() for name in checks}
    assert {name: cases.judge(cases.CHECKS[name], published["first"]) for name in names} == dict.fromkeys(
        names, ("ok", "")
    )


# ---- what a cell says --------------------------------------------------------------------------------------------

CASE = cases.Case(kind="llama", drops="first", folder="/pruned", base="/base", trust=True)


def status(run):
    return cases.judge(cases.Check("a check", run, None), CASE)[0]


def fails(text):
    """Raise an error in code that is not the matrix's own."""
    json.loads(text)


def test_what_the_unpruned_model_cannot_do_either_is_refused():
    assert status(lambda case: fails("[")) == "refused"


def test_what_only_the_pruned_model_cannot_do_fails():
    assert status(lambda case: case.trust and fails("[")) == "FAIL"


def test_another_error_of_the_unpruned_model_excuses_nothing():
    assert status(lambda case: fails("[" if case.trust else "{")) == "FAIL"


def test_a_wrong_result_is_never_refused():
    assert status(lambda case: cases.same(1, 2, "tokens")) == "FAIL"


def test_a_check_that_calls_what_there_is_not_fails():
    assert status(lambda case: case.nothing()) == "FAIL"


def test_what_a_version_does_not_have_is_refused():
    def run(case):
        raise cases.AbsentError("no such method")

    assert status(run) == "refused"


def test_a_number_that_is_none_is_not_close():
    import torch

    with pytest.raises(cases.MismatchError):
        cases.close(torch.tensor([float("nan")]), torch.tensor([0.0]), "logits")


# ---- the table ---------------------------------------------------------------------------------------------------


def result(status, *, drops="first", version="4.48.3", message=""):
    return Result(version, "llama", "a check", drops, status, message)


@pytest.mark.parametrize(
    ("statuses", "text"),
    [(["ok", "ok"], "ok"), (["ok", "refused"], "refused"), (["refused", "FAIL", "ok"], "FAIL"), ([], "")],
)
def test_a_cell_says_the_worst_of_its_drop_sets(statuses, text):
    assert cell(map(result, statuses)) == text
    assert any_failed(map(result, statuses)) == (text == "FAIL")


def printed(results, **options):
    console = Console(file=io.StringIO(), width=120)
    show(results, ["4.48.3", "5.23.0"], console, **options)
    return console.file.getvalue()


def test_messages_stand_below_the_table_with_where_they_were_seen():
    text = printed([result("ok"), result("refused", drops="last", version="5.23.0", message="ValueError: no [crop]")])
    assert "│ a check │ ok     │ refused │" in text
    assert "Refused by transformers" in text
    assert "a check: ValueError: no [crop]\n    5.23.0: llama (last)" in text


def test_a_brief_report_has_tables_of_failures_only():
    assert "│" not in printed([result("ok")], brief=True)
    assert "│ a check │ FAIL" in printed([result("FAIL")], brief=True)


# ---- what runs where ---------------------------------------------------------------------------------------------


def test_a_kind_runs_from_its_floor_on():
    kind = Kind("new", {}, floor="4.53.3")
    assert [v for v in ("4.48.3", "4.53.3", "5.0.0", NEWEST) if kind.runs_on(v)] == ["4.53.3", "5.0.0", NEWEST]
    ends = replace(kind, everywhere=False)
    assert [v for v in ("4.48.3", "4.53.3", "5.0.0", NEWEST) if ends.runs_on(v)] == ["4.53.3", NEWEST]
    assert kind.runs_on(OLDER)
    assert ends.runs_on(OLDER)


def test_with_a_transformers_that_is_too_old_only_its_message_is_checked(published, monkeypatch):
    older = [name for name, one in cases.CHECKS.items() if one.older]
    assert len(older) == 1
    assert not cases.CHECKS[older[0]].takes(published["first"])
    monkeypatch.setattr(cases, "OLDER", True)
    assert [name for name, one in cases.CHECKS.items() if one.takes(published["first"])] == older
    status, message = cases.judge(cases.CHECKS[older[0]], published["first"])
    assert (status, message.split(" [")[0]) == ("FAIL", "MismatchError: it loads")


def test_a_folder_is_saved_again_for_older_versions_to_load(published):
    assert Path(published["first"].saved, "model.safetensors").is_file()


def test_every_floor_is_among_the_versions():
    assert {kind.floor for kind in KINDS} <= set(all_versions())


def test_every_family_runs_on_its_oldest_version():
    oldest = {}
    for kind in KINDS:
        floor = tuple(int(part) for part in kind.floor.split(".")[:2])
        oldest[kind.config["model_type"]] = min(floor, oldest.get(kind.config["model_type"], floor))
    assert oldest == {name: family.floor for name, family in ARCHITECTURES.items()}


def test_a_process_that_dies_is_a_failure(tmp_path):
    runner = runpy.run_path(str(Path(environments.__file__).with_name("__main__.py")))
    (found,) = runner["results_of"](Path(sys.executable), tmp_path / "nothing.json", [], NEWEST)
    assert (found.status, found.check) == ("FAIL", runner["DIED"])
    assert "exit status 1: FileNotFoundError" in found.message


def test_the_newest_version_is_the_one_that_the_tests_have():
    assert version("transformers") == NEWEST


def test_checks_are_chosen_by_a_part_of_their_name():
    assert matching(["LOGITS"]) == ["logits, eager", "logits, sdpa"]
    assert matching([]) == list(cases.CHECKS)
    with pytest.raises(SystemExit, match="No check is called like nonsense"):
        matching(["nonsense"])


def test_an_environment_whose_installation_was_interrupted_is_made_again(tmp_path, monkeypatch):
    asked = []

    def install(python, wanted):
        asked.append(wanted[0])
        if len(asked) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_install", install)
    with pytest.raises(KeyboardInterrupt):
        environments.python_of("1.0.0", folder=tmp_path, say=lambda _: None)
    python = environments.python_of("1.0.0", folder=tmp_path, say=lambda _: None)
    assert environments.python_of("1.0.0", folder=tmp_path, say=lambda _: None) == python
    assert asked == ["transformers==1.0.0"] * 2
    assert python.exists()
