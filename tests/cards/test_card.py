"""The card says what the artifacts say, in Markdown that every reader parses the same way."""

from __future__ import annotations

import re
from pathlib import Path

import made
import pytest
from card_text import card, check_golden, check_structure, context, fences, headings, matter, parse, split

from hubprune.cards import front_matter
from hubprune.cards.card import Pictures, render, skeleton
from hubprune.cards.free_text import shown_pairs
from hubprune.cards.manifest import checkpoint_tag
from hubprune.cards.provenance import notice_text
from hubprune.core.artifacts import BaseCard, DroppedSublayer, Margin, TaskComparison
from hubprune.core.recipe import CalibrationMix, CalibrationSubset, EvaluationSpec, TargetSpec
from hubprune.core.specs import DropSpec
from hubprune.evaluation.repetition import pair_texts

PICTURE = Pictures(importance="assets/importance.png")


@pytest.mark.parametrize(("name", "changes"), [("scored", {}), ("by_hand", made.BY_HAND)])
def test_the_card_is_the_golden_one(name, changes):
    text = card(**changes)
    check_golden(name, text)


def test_a_picture_of_the_scores_is_linked_with_what_it_shows_in_words():
    images = [t for token in parse(card(pictures=PICTURE)) for t in token.children or () if t.type == "image"]
    assert [(image.attrs["src"], image.content) for image in images] == [
        (
            "assets/importance.png",
            "Bars of the scores of every layer's attention, MLP and whole block; the attention of layers 4, 5 and 6 "
            "marked as dropped",
        )
    ]
    assert "![" not in card() + card(**{**made.BY_HAND, "pictures": PICTURE})


def test_sections_come_in_their_order():
    assert headings(card()) == [
        "At a glance", "When to use it", "Use it", "What was removed", "Calibration", "Benchmarks", "Generation check",
        "Limits", "Reproduce", "Licence and attribution", "Citation",
    ]  # fmt: skip


def test_a_section_without_data_is_absent():
    assert headings(card(**made.BY_HAND)) == [
        "At a glance", "When to use it", "Use it", "What was removed", "Limits", "Reproduce", "Licence and attribution",
        "Citation",
    ]  # fmt: skip
    assert "EleutherAI" not in card(**made.BY_HAND)
    assert "eval-harness" not in card(**made.BY_HAND)


def test_metadata_is_a_whitelist_in_a_fixed_order():
    base = made.base(card=BaseCard(language=("en",), license="other", license_name="llama3.2", license_link="LICENSE"))
    assert list(matter(base=base)) == [
        "language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model",
        "base_model_relation", "datasets", "tags", "metrics", "model-index",
    ]  # fmt: skip


def test_metadata_names_what_the_model_is():
    values = matter()
    assert values["base_model"] == "meta-llama/Llama-3.2-3B"
    assert values["base_model_relation"] == "finetune"
    assert values["tags"] == ["hubprune", "pruned", "attention-drop", "reproducible", "custom_code"]
    assert values["language"] == ["en", "no"]
    assert values["datasets"] == ["HuggingFaceTB/cosmopedia"]


def test_custom_code_is_said_only_where_code_ships():
    plain = made.checkpoint(files=made.checkpoint().files[:2])
    assert "custom_code" not in matter(checkpoint=plain)["tags"]
    assert "trust_remote_code" not in card(checkpoint=plain)
    assert "trust_remote_code=True" in card()
    assert "e" * 64 in card()


def test_model_index_has_this_models_values_only():
    (model,) = matter()["model-index"]
    found = [(r["dataset"]["type"], m["type"], m["value"]) for r in model["results"] for m in r["metrics"]]
    assert found == [
        ("allenai/ai2_arc", "accuracy", 0.7104), ("EleutherAI/lambada_openai", "accuracy", 0.6189),
        ("EleutherAI/lambada_openai", "perplexity", 5.11),
    ]  # fmt: skip
    assert model["results"][0]["dataset"]["revision"] == made.DATA_COMMIT
    assert "500 of 2376 documents" in model["results"][0]["metrics"][0]["name"]


def test_points_and_relative_change_have_columns_of_their_own():
    rows = [line for line in card().splitlines() if line.startswith("| lambada") or line.startswith("| arc")]
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
    assert [[c[4] for c in cells[:3]], [c[4] for c in cells[3:]]] == [
        ["−0.76 points (−2.96 to +1.44)", "−7.80 points (−11.00 to −4.60)", "+30.03 % (+26.10 to +34.08)"],
        ["−1.06", "−11.19", "+30.03 (+26.10 to +34.08)"],
    ]  # fmt: skip
    assert [c[1] for c in cells[:3]] == ["not distinguishable", "worse", "worse"]
    assert "| Task and metric | Verdict | Base | This model | Change |" in card()


def test_the_base_is_linked_and_cited_where_it_is():
    text = card(endpoint="https://hub.example.org")
    assert f"(https://hub.example.org/meta-llama/Llama-3.2-3B/tree/{made.BASE_COMMIT})" in text
    assert "\\url{https://hub.example.org/meta-llama/Llama-3.2-3B}" in text
    assert "huggingface.co" not in text
    assert "https://huggingface.co/meta-llama/Llama-3.2-3B/tree" in card()


def test_the_kv_cache_is_counted_at_the_dtype_of_the_base():
    config = {"model_type": "llama", "torch_dtype": "float16"}
    assert "| KV cache, bytes per token at float16 | 32,768 | 20,480 |" in card(base=made.base(config=config))


def test_a_card_says_why_all_was_computed_in_another_dtype_than_that_of_the_files():
    older = made.benchmarks(dtype="float16", device="cuda:0")
    row = "| Computed in | float16: the GPU has no units for bfloat16 |"
    assert row in card(benchmarks=older)
    assert "Computed in" not in card()
    assert "Computed in" not in card(benchmarks=older, recipe=made.recipe(dtype="float16"))  # as it was asked for


def test_the_mean_change_has_an_interval_where_all_tasks_have_one():
    assert "| −4.28 points (−6.22 to −2.34) |" in card()
    assert "−4.28 points on average over 2 benchmarks (95 % interval −6.22 to −2.34)." in card()
    first, *others = made.benchmarks().tasks
    unknown = made.benchmarks(tasks=(first.model_copy(update={"paired": None}), *others))
    assert "| −4.28 points |" in card(benchmarks=unknown)
    assert "−4.28 points on average over 2 benchmarks." in card(benchmarks=unknown)
    assert "Not tested, for want of values per document that vary: arc_easy (acc_norm)." in card(benchmarks=unknown)


def test_results_of_before_changes_were_tested_make_a_card_without_verdicts():
    bare = tuple(row.model_copy(update={"paired": None}) for row in made.benchmarks().tasks)
    text = card(benchmarks=made.benchmarks(tasks=bare))
    rows = [row.split(" | ") for row in text.splitlines() if re.match(r"\| (arc|lambada)", row)]
    assert [row[1] for row in rows[:3]] == ["–"] * 3
    assert "two-sided" not in text
    assert "got worse" not in text


def test_a_task_at_chance_is_named_in_the_limits_with_whose_chance_it_is():
    guessed = made.right_or_wrong(20, 18, points=-0.4, error=1.2, at_chance=("base", "pruned"))
    fallen = made.right_or_wrong(140, 20, points=-24.0, error=2.3, at_chance=("pruned",))
    tasks = (
        made.task("winogrande", "acc", (0.495, 0.035), (0.49, 0.035), chance=0.5, paired=guessed),
        made.task("piqa", "acc", (0.75, 0.01), (0.51, 0.01), chance=0.5, paired=fallen),
        *made.benchmarks().tasks,
    )
    text = card(benchmarks=made.benchmarks(tasks=tasks))
    assert "winogrande (acc): the base itself is no better than guessing (49.5 ± 3.5 %, chance 50.0 %)." in text
    assert "piqa (acc): this model, unlike the base, is no better than guessing (51.0 ± 1.0 %, chance 50.0 %)." in text
    assert "arc_easy (acc_norm): the base" not in text
    rows = [row.split(" | ") for row in text.splitlines() if re.match(r"\| (wino|piqa|arc|lambada)", row)]
    assert [row[-1] for row in rows[5:]] == ["50.00 |", "50.00 |", "25.00 |", "– |", "– |"]
    assert [row[1] for row in rows[:2]] == ["at chance", "worse"]


def test_the_card_tells_of_the_tests_that_were_used_and_of_no_others():
    text = card()
    assert "McNemar's exact test" in text
    assert "paired t-test of the documents' log-likelihoods" in text
    assert "documents' values" not in text
    assert "every task counts the same" not in text
    first, *others = made.benchmarks().tasks
    text = card(benchmarks=made.benchmarks(tasks=others))
    assert "At chance:" not in text
    group = first.paired.model_copy(update={"test": "normal"})
    assert "every task counts the same" in card(
        benchmarks=made.benchmarks(tasks=(first.model_copy(update={"paired": group}),))
    )


def test_the_card_says_what_computed_the_log_likelihoods():
    said = {
        "shared": "Log-likelihoods were computed for both in one pass, which runs once what they have in common",
        "layers": "computed for both in one pass, layer by layer from their files, which runs once what they have in",
        "hf": "Log-likelihoods are from lm-eval's own Hugging Face backend.",
    }
    for backend, words in said.items():
        assert words in card(benchmarks=made.benchmarks(backend=backend))


def test_an_answer_that_was_read_out_of_a_text_says_how():
    row = made.benchmarks().tasks[0].model_copy(update={"metric": "exact_match", "filter": "strict-match"})
    text = card(benchmarks=made.benchmarks(tasks=(row,)))
    assert "| exact_match (strict-match), % ↑ |" in text
    (model,) = split(text)[0]["model-index"]
    assert model["results"][0]["metrics"][0]["name"] == "exact_match (strict-match, 0-shot, 500 of 2376 documents)"


def test_a_subset_of_one_document_is_said_to_have_no_error():
    scores = made.scores()
    single = scores.calibration.sources[0].model_copy(update={"documents": 1})
    record = scores.calibration.model_copy(update={"sources": (single, *scores.calibration.sources[1:])})
    said = "Subsets with one document add nothing to the standard errors."
    assert said in card(scores=scores.model_copy(update={"calibration": record}))
    assert said not in card()


def test_packed_sequences_are_called_so_and_said_to_be_made_of_documents():
    scores = made.scores()
    sources = tuple(source.model_copy(update={"texts": 700}) for source in scores.calibration.sources)
    packed = {"packed": True, "max_tokens": 2048, "sources": sources}
    text = card(scores=scores.model_copy(update={"calibration": scores.calibration.model_copy(update=packed)}))
    assert "1,400 documents joined and cut into sequences of exactly 2,048 tokens; seed" in text
    assert "| Subset | Data set | Weight | Sequences | Tokens | Commit |" in text
    assert "S is averaged over a sequence's tokens, then over a subset's sequences" in text
    assert "each document cut off" not in text


def test_the_logits_are_said_to_differ_in_the_dtype_they_were_compared_in():
    assert "a logit is 1.2e-06 in float32" in card()
    narrow = made.verification().model_copy(update={"dtype": "bfloat16"})
    assert "a logit is 1.2e-06 in bfloat16" in card(verification=narrow)


def test_the_score_table_has_all_layers_ascending_with_the_dropped_marked():
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) .* \| ([a-z, ]+) \|$", card(), re.M)
    assert [int(layer) for _, layer, _, _ in rows] == sorted(range(8), key=lambda i: made.ATTN[i])
    assert [int(layer) for _, layer, _, outcome in rows if outcome == "dropped"] == [4, 6, 5]
    assert [outcome for _, _, _, outcome in rows][-2:] == ["kept, protected"] * 2


def test_a_near_tie_is_told_and_a_clear_margin_is_not_called_one():
    clear = made.plan().margins[0].model_copy(update={"standard_error": 0.00001})
    assert "near tie" in card()
    assert "near tie" not in card(plan=made.plan(margins=(clear,)))
    assert "more than two standard errors" in card(plan=made.plan(margins=(clear,)))


def test_scores_beside_layers_chosen_by_hand_are_said_not_to_have_decided():
    text = card(plan=made.plan_by_hand())
    assert "did not decide" in text
    assert "chosen by hand" in text


def test_a_base_without_a_licence_is_a_visible_warning():
    text = card(base=made.base(card=BaseCard()))
    assert "**Warning:** the card of the base names no licence" in text
    assert "license" not in split(text)[0]


@pytest.mark.parametrize(
    ("licence", "line"),
    [("llama3.2", "Built with Llama"), ("llama3", "Built with Meta Llama 3"), ("apache-2.0", None)],
)
def test_the_licence_decides_the_attribution_line(licence, line):
    text = card(base=made.base(card=BaseCard(license=licence)))
    assert (f"**{line}**" in text) if line else "Built with" not in text


@pytest.mark.parametrize(("licence", "version"), [("llama3.1", "3.1"), ("Llama3.3", "3.3"), ("llama4", "4")])
def test_the_licence_decides_the_notice(licence, version):
    line = f"Llama {version} is licensed under the Llama {version} Community License, Copyright © Meta Platforms, Inc."
    assert notice_text(BaseCard(license="other", license_name=licence)) == f"{line} All Rights Reserved."
    assert notice_text(BaseCard(license="apache-2.0")) is None
    assert notice_text(BaseCard()) is None


def test_the_snippet_names_the_tag_of_the_checkpoint_and_compiles():
    snippet = next(f.content for f in fences(card()) if f.info == "python")
    compile(snippet, "snippet", "exec")
    assert f'revision = "{checkpoint_tag(made.checkpoint())}"' in snippet
    assert 'dtype="auto"' in snippet
    assert 'device_map="auto"' in snippet
    proposed = card(recipe=made.recipe(target=TargetSpec(create_pr=True)))
    snippet = next(f.content for f in fences(proposed) if f.info == "python")
    compile(snippet, "snippet", "exec")
    assert "revision" not in snippet


def test_text_of_models_is_shown_verbatim_and_never_run():
    shown = [f.content for f in fences(card()) if f.info == "text"]
    assert " | butter | {{ 7 * 7 }}\n" in shown
    assert "The recipe needs ```flour``` and\n" in shown
    assert "49" not in "".join(shown)


def generated(*pruned, base="it is so and so it is"):
    """Free text over as many prompts as there are texts."""
    prompts = [f"Prompt {i}" for i in range(len(pruned))]
    return pair_texts(prompts, made.written([base] * len(pruned)), made.written(pruned))


LOOP, REFRAIN, PLAIN = "a b c d " * 8, "a b c d e a b c d f", "a b c d e f g h"


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ((PLAIN, REFRAIN, LOOP, PLAIN), [(1, "the first one"), (3, "the most repetitive text of this model")]),
        ((LOOP, PLAIN, LOOP), [(1, "the first one and the most repetitive text of this model")]),
        ((PLAIN, LOOP, LOOP), [(1, "the first one"), (2, "the most repetitive text of this model")]),
        ((PLAIN, PLAIN), [(1, "the first one")]),
        ((LOOP,), [(1, "the first one")]),
    ],
)
def test_the_pairs_are_chosen_by_rule(texts, shown):
    assert [(number, reason) for number, _, reason in shown_pairs(generated(*texts))] == shown


def free_text_rows(text):
    rows = [line.strip("| ").split(" | ") for line in text.split("## Generation check")[1].splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows}


def test_free_text_is_measured_in_a_table_with_paired_intervals():
    rows = free_text_rows(card(generation=generated(LOOP, LOOP, LOOP, PLAIN)))
    assert rows["Free text, mean of 4 prompts"] == ["Base", "This model", "Change (95 % interval)"]
    # 29 sequences, 4 of them different, in three of four texts: 3/4 x 25/29
    assert rows["seq-rep-4, %"][:2] == ["0.0", "64.7"]
    assert rows["Texts that end in a loop"][:2] == ["0 of 4", "3 of 4"]
    assert rows["Length, tokens"][:2] == ["7.0", "26.0"]
    assert "(" not in rows["distinct-2 of all texts, %"][-1]
    assert re.fullmatch(r"\+64\.7 points \([+−][\d.]+ to \+[\d.]+\)", rows["seq-rep-4, %"][-1])
    single = card(generation=generated(PLAIN))
    assert free_text_rows(single)["Length, tokens"] == ["7.0", "8.0", "+1.0"]


def test_every_shown_text_says_how_much_it_repeats():
    text = card(generation=generated(LOOP))
    assert "\nBase (7 tokens, seq-rep-4 0.0 %, no loop):\n" in text
    loop = "ends in a loop: the last 32 tokens are the same 4 tokens over and over"
    assert f"\nThis model (32 tokens, seq-rep-4 86.2 %, {loop}):\n" in text
    stuck = card(generation=generated("so " * 20))
    assert "the last 20 tokens are one and the same token" in stuck


def test_loops_above_the_bases_are_a_limit_with_their_numbers():
    many = card(generation=generated(*[LOOP] * 9, *[PLAIN] * 3))
    assert "More of its texts end in a loop: 9 of 12, against 0 of the base's.\n" in many
    told = "64.7 % of a text's 4-token sequences occurred in it before, against 0.0 %: +64.7 points (95 % interval"
    assert f"It repeats itself more than the base: {told}" in many
    few = card(generation=generated(LOOP, *[PLAIN] * 11))
    assert re.search(r"in a loop: 1 of 12, against 0 of .* \(not distinguishable from chance\)", few)
    assert "repeats itself more" not in few
    for text in (PLAIN, LOOP):
        no_more = card(generation=generated(text, base=LOOP))
        assert "texts end in a loop:" not in no_more
        assert "repeats itself more" not in no_more


def test_free_text_of_before_it_was_measured_is_still_shown():
    generation = made.generation()
    bare = {"base_repetition": None, "pruned_repetition": None}
    old = generation.model_copy(
        update={
            "continuations": tuple(pair.model_copy(update=bare) for pair in generation.continuations),
            "repetition": None,
            "batch_size": None,
        }
    )
    read = type(old).model_validate_json(old.model_dump_json(exclude_none=True))
    assert read == old
    text = card(generation=read)
    assert "<summary>Prompt 1, the first one</summary>\n" in text
    assert "The other 2 pairs are" in text
    assert "The free text was not measured" in text
    check_structure(text)


def test_limits_follow_from_numbers():
    text = card()
    last = "predicting the last word of a passage"
    assert f"lambada_openai (acc), {last}, got worse: −7.80 points, adjusted p &lt; 0.001." in text
    assert "lambada_openai (perplexity) got worse: +30.03 %, adjusted p &lt; 0.001." in text
    assert "arc_easy (acc_norm) got worse" not in text
    assert "No benchmark was run" in card(benchmarks=None)
    assert "No free text" in card(generation=None)
    assert "nothing was scored" in card(scores=None, plan=made.plan_by_hand())


def test_no_token_home_folder_or_local_path_gets_in():
    home, token = Path.home(), "hf_" + "a1B2" * 8
    subset = CalibrationSubset(dataset=f"{home}/secret/mine.jsonl", weight=1)
    recipe = made.recipe(
        calibration=CalibrationMix(name="mine", subsets=(subset,)),
        evaluation=EvaluationSpec(tasks=("own",), include_path=f"{home}/secret"),
    )
    scores = made.scores()
    source = scores.calibration.sources[0].model_copy(update={"dataset": f"{home}/secret/mine.jsonl", "commit": None})
    record = scores.calibration.model_copy(update={"sources": (source,)})
    check = made.verification().checks[0].model_copy(update={"detail": f"{home}/x {token}"})
    text = card(
        recipe=recipe,
        scores=scores.model_copy(update={"calibration": record}),
        verification=made.verification().model_copy(update={"checks": (check,)}),
    )
    assert "secret" not in text
    assert f"{home}/" not in text
    assert token not in text
    assert "--include-path tasks" in text
    assert "datasets" not in split(text)[0]
    assert "reproducible" not in split(text)[0]["tags"]
    assert "files that are not published (mine\\.jsonl)" in text


def test_a_whole_benchmark_is_not_called_limited():
    tasks = tuple(TaskComparison(**{**t.model_dump(), "documents": 2376}) for t in made.benchmarks().tasks)
    text = card(benchmarks=made.benchmarks(tasks=tasks, limit=None))
    assert "Limited to" not in text
    assert "at most" not in text.split("## Limits")[1].split("##")[0]


def test_the_skeleton_has_the_same_kind_of_metadata():
    values = split(skeleton(made.recipe(), base=made.base(), name="x"))[0]
    assert values["base_model"] == "meta-llama/Llama-3.2-3B"
    assert "model-index" not in values


def test_a_template_of_the_users_own_wins(tmp_path):
    (tmp_path / "citation.md.jinja").write_text("## Mine\n")
    assert headings(render(context(), overrides=tmp_path))[-1] == "Mine"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:9"])
def test_a_card_from_a_loopback_hub_links_nowhere(endpoint):
    text = card(endpoint=endpoint)
    assert endpoint not in text
    assert "This is [" not in text


# ---- other methods -----------------------------------------------------------------------------------------------


def planned(*sublayers, methods, **changes):
    """A plan that drops some sublayers by score."""
    dropped = tuple(DroppedSublayer(kind=kind, layer=layer, score=0.1, rank=1) for kind, layer in sublayers)
    return made.plan(dropped=dropped, methods=methods, margins=(), protected=(), **changes)


def score_rows(text):
    head = next(line for line in text.splitlines() if line.startswith("| Rank |"))
    rows = [line.strip("| ").split(" | ") for line in text.split(head)[1].splitlines()[2:10]]
    return head.strip("| ").split(" | "), rows


def test_an_mlp_drop_is_ranked_by_the_mlp_scores():
    columns, rows = score_rows(card(plan=planned(("mlp", 2), methods=("mlp-drop",))))
    assert columns == ["Rank", "Layer", "Attention S", "MLP S", "± SE", "Block S", "MLP"]
    assert [float(row[3]) for row in rows] == sorted(float(row[3]) for row in rows)
    assert [row[1] for row in rows if row[-1] == "dropped"] == ["2"]


def test_a_block_drop_is_ranked_by_the_block_scores_and_shows_both_outcomes():
    plan = planned(("attn", 3), ("mlp", 3), methods=("block-drop",))
    text = card(plan=plan)
    columns, rows = score_rows(text)
    assert columns == ["Rank", "Layer", "Attention S", "MLP S", "Block S", "± SE", "Attention", "MLP"]
    assert [row[1] for row in rows if row[-2:] == ["dropped", "dropped"]] == ["3"]
    assert "Removed: layer 3, counted from 0 in the base, with both sublayers; later layers moved up." in text


def test_a_joint_ranking_names_the_kinds_of_its_neighbours():
    margin = Margin(
        ranking="joint", kinds=("mlp", "attn"), last_dropped=1, first_kept=4, difference=0.2, standard_error=0.01
    )
    plan = planned(("attn", 5), ("mlp", 1), methods=("joint-drop",)).model_copy(update={"margins": (margin,)})
    assert "Between the MLP of layer 1, the last one dropped, and the attention of layer 4, the first" in card(
        plan=plan
    )


def test_every_method_has_its_tag():
    for method, tag in front_matter.METHOD_TAGS.items():
        assert f"- {tag}\n" in card(plan=planned(("attn", 5), methods=(method,)))


def test_what_was_named_and_what_was_ranked_are_told_apart():
    recipe = made.recipe(drop=DropSpec(attn_drop=1, mlp_layers=(2,)))
    text = card(recipe=recipe, plan=planned(("attn", 5), ("mlp", 2), methods=("attn-drop", "mlp-drop")))
    assert "The layers that lose their MLP were given by hand; the others were chosen by score, lowest first." in text


def test_a_near_tie_of_a_joint_ranking_names_both_kinds_among_the_limits():
    margin = Margin(
        ranking="joint", kinds=("mlp", "attn"), last_dropped=7, first_kept=7, difference=0.1, standard_error=0.1
    )
    plan = planned(("attn", 5), ("mlp", 7), methods=("joint-drop",)).model_copy(update={"margins": (margin,)})
    told = "The choice between the MLP of layer 7 (dropped) and the attention of layer 7 (kept) was a near tie."
    assert told in card(plan=plan)


def test_a_random_choice_is_not_called_one_by_hand():
    text = card(scores=None, plan=planned(("attn", 5), methods=("attn-drop",), metric="random"))
    assert "The layer was chosen by no score and nothing was scored" in text


def test_long_lines_of_text_are_broken_at_spaces_and_nothing_else_changes():
    words = "The lamp and the lake lie behind the hill. " * 9
    text = card(generation=generated(words, base=f"{words}\n  def f():\n{'x' * 200} y"))
    shown = [f.content for f in fences(text) if f.info == "text"]
    assert max(len(line) for part in shown for line in part.splitlines() if "x" * 200 not in line) <= 88
    assert any("\n  def f():\n" in part for part in shown)
    assert any(part.replace("\n", " ").strip() == words.strip() for part in shown)
    assert "Lines of more than 88 characters are broken at spaces." in text
    assert "characters are broken" not in card(generation=generated(PLAIN))
