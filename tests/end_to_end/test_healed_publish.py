"""A pruned model is published, and healed beside it; what is there is left as it is."""

from __future__ import annotations

import json

RECIPE = """
base: {repo_id: meta/tiny}
drop: {attn_layers: [1, 3]}
calibration:
  name: little-mix
  num_samples: 12
  max_tokens: 24
  subsets:
    - {dataset: meta/texts, config: plain, weight: 2}
    - {dataset: meta/texts, config: other, weight: 1}
heal: {batch_size: 2, held_out: 4, rank: 4}
"""


def test_a_healed_repo_stands_beside_the_pruned_one_and_is_made_once(hubprune, api, files):
    (files / "recipe.yaml").write_text(RECIPE)
    asked = (
        "publish", "--recipe", "recipe.yaml", "--repo-id", "local/ill", "--heal", "--heal-steps", "3", "--include-path",
        "tasks", "--tasks", "little", "--prompts", "prompts.txt",
    )  # fmt: skip
    made, again, seen, verified = hubprune.each(
        (*asked, "--out", "ill"), asked, ("compare", "ill", "ill-healed"), ("verify", "local/ill-healed")
    )
    assert made.code == 0, made.err
    assert "loading it back from the Hub" in made.err
    card, pruned = ((files / name / "README.md").read_text() for name in ("ill-healed", "ill"))
    assert "## How it was healed" in card
    assert "base_model: local/ill\nbase_model_relation: finetune" in card
    assert "| little | acc" in card
    assert "local/ill-healed" in pruned
    assert (files / "ill-healed" / "assets" / "training.png").is_file()
    manifest = json.loads((files / "ill-healed" / "hubprune.json").read_text())
    assert manifest["recipe"]["heal"]["steps"] == 3
    assert manifest["sibling"]["healing"]["steps"] == 3
    names = set(api.list_repo_files("local/ill-healed"))
    assert "healing.json" not in names
    assert {"model.safetensors", "tasks/little.yaml"} <= names
    assert again.code == 0, again.err
    assert again.err.count("up to date: ") == 2
    assert "healed: lora, 3 steps, loss kl" in seen.out
    row = next(line for line in seen.out.splitlines() if line.startswith("weight files"))
    assert row.endswith("differs")
    assert verified.code == 0, verified.err
    assert "untrained tensors are the base's, byte for byte" in verified.out
