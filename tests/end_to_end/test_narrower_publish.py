"""Neurons go from the command line to a repo that a stock class loads, alone or with attentions."""

from __future__ import annotations

import json

import pytest


def test_a_published_narrower_model_is_a_stock_one_and_says_what_it_lost(publish, api, files):
    ended = publish("--neuron-drop", "60%", "--width-multiple", "4", "--repo-id", "local/narrow", "--out", "narrow")
    assert ended.code == 0, ended.err
    assert "keeping 20 of 48 neurons in the MLP of layers 0, 1, 2, 3" in ended.err
    card, config = (files / "narrow" / "README.md").read_text(), json.loads((files / "narrow/config.json").read_text())
    assert "with 58.33 % of the neurons of its MLPs removed (48 → 20 in each)" in card
    assert "hubprune publish" in card.partition("## Reproduce")[2]
    assert (config["model_type"], config["intermediate_size"]) == ("llama", 20)
    assert not [name for name in api.list_repo_files("local/narrow") if name.endswith(".py")]

    again = publish("--recipe", files / "narrow" / "recipe.yaml", "--repo-id", "local/narrow")
    assert again.code == 0, again.err
    assert "up to date" in again.out


@pytest.mark.slow
def test_attentions_by_score_and_neurons_go_together(publish, files):
    ended = publish("--attn-drop", "1", "--mlp-width", "48,20,17,20", "--tasks", "none", "--repo-id", "local/both",
                    "--out", "both")  # fmt: skip
    assert ended.code == 0, ended.err
    config = json.loads((files / "both" / "config.json").read_text())
    assert config["mlp_intermediate_sizes"] == [48, 20, 17, 20]
    card = (files / "both" / "README.md").read_text()
    assert "attention-drop" in card
    assert "width-pruning" in card
    assert "20 of 48 in layers 1 and 3; 17 of 48 in layer 2" in card


def test_a_repo_with_narrower_mlps_is_verified_from_what_it_says_of_itself(hubprune, base_folder, files):
    made, verified = hubprune.each(
        ("prune", base_folder, "--mlp-width", "48,20,17,20", "--width-metric", "pon", "--out", "pruned"),
        ("verify", "pruned", "--base", base_folder),
    )
    assert (made.code, verified.code) == (0, 0), made.err + verified.err
    assert "logits equal the base without the dropped neurons" in verified.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mlp-width", "49"], "Cannot keep 49 neurons: the MLP of layer 0"),
        (["--mlp-width", "20,20"], "--mlp-width lists 2 widths"),
        (["--attn-drop", "1", "--neuron-drop", "60%"], "rounded to a multiple of 64"),
        (["--attn-drop", "1", "--mlp-width", "20", "--layout", "nemotron-nas"], "no multiple of 256"),
    ],
)
def test_a_width_that_does_not_fit_is_refused_before_anything_is_downloaded(publish, files, options, said):
    ended = publish(*options, "--repo-id", "local/never", "--out", "never")
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not list(files.rglob("*.safetensors"))
