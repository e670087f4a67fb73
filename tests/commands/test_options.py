"""Flags are made of the fields of requests: their panels, their types, and the request that comes of what was typed."""

from __future__ import annotations

from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

from hubprune.cli import app
from hubprune.commands.options import EVERYDAY, add_command
from hubprune.core import memory, requests
from hubprune.core.errors import PlanError
from hubprune.core.options import Request, as_typed, options_of
from hubprune.core.requests import PublishRequest, ReproduceRequest, ScoreRequest, SweepRequest
from hubprune.workflows.recipes import budget

REQUESTS = sorted(
    (kind for kind in vars(requests).values() if isinstance(kind, type) and issubclass(kind, Request)), key=str
)


def asked(kind, *arguments):
    """What a command of a request makes of some arguments."""
    seen = []

    def body(request, reporter, *, as_json):
        seen.append((request, as_json))

    body.__annotations__ = {"request": kind}
    made = typer.Typer()
    add_command(made, body, epilog="")
    ended = CliRunner().invoke(made, [*arguments])
    assert ended.exit_code == 0, ended.output
    return seen[0]


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_every_field_is_an_option_with_a_sentence_of_help(kind):
    options = options_of(kind)
    assert {option.name for option in options} == {field.name for field in fields(kind)} - {"quiet"}
    assert all(option.option.help.strip().endswith(".") for option in options)


def test_the_help_of_a_publish_begins_with_what_is_needed_every_day():
    publish = typer.main.get_command(app).commands["publish"]
    first = [option.name for option in publish.params if getattr(option, "rich_help_panel", None) == EVERYDAY]
    assert first == ["attn_drop", "tasks", "repo_id", "private", "dry_run", "recipe"]
    shown = CliRunner().invoke(app, ["publish", "--help"], env={"COLUMNS": "120", "TERM": "dumb"}).output
    panels = [line.split()[1] for line in shown.splitlines() if line.startswith("╭")]
    assert panels == [
        "Arguments", "Everyday", "What", "Scoring", "Measuring", "Where", "Beside", "The", "Where", "How"
    ]  # fmt: skip


def test_healing_is_asked_for_and_taken_back_by_a_flag():
    told = [asked(PublishRequest, "a/b", *more)[0].heal for more in ((), ("--heal",), ("--no-heal",))]
    assert told == [None, True, False]


def test_what_was_typed_becomes_a_request():
    typed = ("a/b", "--attn-layers", "1,2", "--no-primer", "--private", "--out", "x", "--json")
    request, as_json = asked(PublishRequest, *typed)
    assert as_json is True
    assert (request.base, request.attn_layers, request.primer, request.private, str(request.out)) == (
        "a/b", "1,2", False, True, "x",
    )  # fmt: skip
    assert asked(PublishRequest) == (PublishRequest(), False)
    assert asked(ScoreRequest, "a/b", "--num-samples", "4,8")[0].num_samples == "4,8"
    again = asked(ReproduceRequest, "x", "--calibration", "a", "--calibration", "b")[0]
    assert [path.name for path in again.calibration] == ["a", "b"]


def test_what_is_a_list_may_be_given_piece_by_piece():
    made, _ = asked(
        PublishRequest, "a/b", "--drop-attn", "3", "--drop-attn", "5,7", "--max-loss", "3", "--max-loss", "loops=5",
        "--target", "kv=-30%", "--target", "params=-9%",
    )  # fmt: skip
    assert (made.attn_layers, made.target, made.max_loss) == ("3,5,7", "kv=-30%,params=-9%", "3,loops=5")
    assert budget(made.max_loss) == {"mean": 3.0, "loops": 5.0}
    assert asked(SweepRequest, "a/b")[0] == SweepRequest("a/b")


def test_options_are_written_as_one_types_them():
    request = SweepRequest("a/b", protect=[0, 1], tasks=(), num_fewshot={"piqa": 5}, seed=0)
    assert list(as_typed(request, "protect", "tasks", "num_fewshot", "seed", "device")) == [
        "--protect", "0,1", "--tasks", "none", "--num-fewshot", "piqa=5", "--seed", "0",
    ]  # fmt: skip


def test_what_a_body_raises_is_two_lines_and_an_exit_code():
    def body(request, reporter):
        raise PlanError("Too many.", hint="Drop less.")

    body.__annotations__ = {"request": ScoreRequest}
    made = typer.Typer()
    add_command(made, body, epilog="")
    ended = CliRunner().invoke(made, ["a/b"])
    assert (ended.exit_code, ended.stderr) == (2, "error: Too many.\nhint:  Drop less.\n")
    assert "--json" not in CliRunner().invoke(made, ["--help"]).output


def test_the_memory_that_was_asked_for_is_kept_to_while_a_command_runs_and_no_longer():
    seen = []

    def body(request, reporter):
        seen.append(memory.told_limit())

    body.__annotations__ = {"request": ScoreRequest}
    made = typer.Typer()
    add_command(made, body, epilog="")
    assert CliRunner().invoke(made, ["a/b", "--max-memory", "8GB"]).exit_code == 0
    assert CliRunner().invoke(made, ["a/b"]).exit_code == 0
    refused = CliRunner().invoke(made, ["a/b", "--max-memory", "much"])
    assert refused.exit_code == 2
    assert "--max-memory 'much' is no size of memory." in refused.output
    assert seen == [8 * 10**9, None]
    assert memory.told_limit() is None


def test_whatever_computes_can_be_told_how_much_memory_it_may_take():
    commands = typer.main.get_command(app).commands
    told = {name for name, command in commands.items() if any(p.name == "max_memory" for p in command.params)}
    assert told == {
        "publish", "score", "prune", "verify", "reproduce", "sweep", "speed", "doctor", "quantize", "heal", "adopt",
    }  # fmt: skip


def test_an_option_is_known_by_the_name_it_had_once_and_the_note_names_todays():
    ended = CliRunner().invoke(app, ["prune", "./nowhere", "--drop-attn", "1", "--drop-mlp", "2", "--out", "x"])
    assert "--drop-attn is called --attn-layers now" in ended.output
    assert "--drop-mlp is called --mlp-layers now" in ended.output
    assert "./nowhere" in ended.output
    assert ended.exit_code == 1
    twice = CliRunner().invoke(app, ["prune", "./nowhere", "--drop-attn", "1", "--attn-layers", "2", "--out", "x"])
    assert "both were given" in twice.output
    assert "--drop-attn" not in CliRunner().invoke(app, ["prune", "--help"]).output
