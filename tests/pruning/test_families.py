"""Every family is pruned to what its base does without the dropped sublayers, and scored as transformers runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bases import FAMILIES, family_tensors, plan, write_base, written

from hubprune.core.architectures import ARCHITECTURES, architecture_of
from hubprune.core.artifacts import BaseCheckpoint, CalibrationRecord, CalibrationSource
from hubprune.core.config import pruned_config
from hubprune.core.console import Reporter
from hubprune.core.errors import PlanError, UnsupportedArchitectureError
from hubprune.pruning import verify
from hubprune.pruning.calibration import CalibrationSet, Document
from hubprune.pruning.importance import Scoring, score
from hubprune.pruning.layouts import Runnable, choose_layout

PLANTED = 1
"""The layer of every base whose sublayers write only zeros."""


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A random base of every family, by name."""
    folder, made = tmp_path_factory.mktemp("families"), {}
    for name, config in FAMILIES.items():
        family, tensors = architecture_of(config), family_tensors(config)
        for output in (family.attn_output, family.mlp_output):
            tensors[f"{family.layers_prefix}{PLANTED}.{output}"].zero_()
        made[name] = write_base(folder / name, config, tensors)
    return made


def kinds_of(base):
    return architecture_of(base.config).attention_kinds(base.config)


def last_of_each_kind(base):
    kinds = kinds_of(base)
    return sorted(max(layer for layer, other in enumerate(kinds) if other == kind) for kind in set(kinds))


def drops(base):
    """Sets of attentions and MLPs to drop, by what is special about them."""
    layers = base.config["num_hidden_layers"]
    kept = last_of_each_kind(base)
    return {
        "first": ([0], []),
        "last": ([layers - 1], []),
        "joint": ([0, 3], [1, 3]),
        "all but one of each kind": ([layer for layer in range(layers) if layer not in kept], [0, 1, 2, 3]),
        "a whole layer too": ([0, 2], [0, 4]),
    }


@pytest.mark.parametrize("which", ["first", "last", "joint", "all but one of each kind", "a whole layer too"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_the_base_without_the_dropped_sublayers(in_process, bases, tmp_path, name, which):
    base = bases[name]
    attn, mlp = drops(base)[which]
    drop = plan(base.config["num_hidden_layers"], attn=attn, mlp=mlp)
    out = written(base, drop, tmp_path / "out")
    family = architecture_of(base.config)
    seen = verify.verify(Runnable(Path(base.folder)), out, plan=drop, config=base.config, architecture=family)
    assert {check.name: check.detail for check in seen.checks if not check.passed} == {}
    assert seen.max_logit_difference <= 1e-5


def test_every_family_is_tested():
    assert {config["model_type"] for config in FAMILIES.values()} | {"llama", "mistral"} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_model_that_is_saved_again_is_the_same(bases, tmp_path, name):
    from transformers import AutoModelForCausalLM

    base = bases[name]
    attn, mlp = drops(base)["joint"]
    first = written(base, plan(base.config["num_hidden_layers"], attn=attn, mlp=mlp), tmp_path / "first")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(first, trust_remote_code=True)
        expected = model(ids).logits
        model.save_pretrained(tmp_path / "second")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "second", trust_remote_code=True)
        assert torch.equal(again(ids).logits, expected)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_a_cache_with_an_empty_slot_in_its_middle_can_be_cropped(bases, tmp_path, name):
    from transformers import AutoModelForCausalLM

    base = bases[name]
    folder = written(base, plan(base.config["num_hidden_layers"], attn=[0]), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    ids = torch.arange(3, 30)[None]
    assisted = model.generate(ids, assistant_model=AutoModelForCausalLM.from_pretrained(base.folder), **options)
    assert torch.equal(assisted, model.generate(ids, **options))


# ---- scores ------------------------------------------------------------------------------------------------------


def calibration():
    """Documents of random tokens, the longest four windows long."""
    made = torch.Generator().manual_seed(7)
    rows = [torch.randint(3, 256, (length,), generator=made).tolist() for length in (40, 9, 17, 2, 33)]
    source = CalibrationSource(
        dataset="random", config=None, split="train", commit=None, weight=1.0, documents=5, tokens=sum(map(len, rows))
    )
    record = CalibrationRecord(
        mix="random", sources=(source,), max_tokens=40, seed=1, shuffle_buffer=1, token_sha256="0" * 64
    )
    return CalibrationSet(tuple(Document(0, tuple(row)) for row in rows), record)


def reference(folder):
    """Scores by a whole model in float64: what a sublayer adds is seen behind its last module, not before the next."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    share, seen = getattr(model.config, "residual_multiplier", 1.0), {}

    def note(key):
        return lambda _, inputs, output: seen.__setitem__(key, output[0] if isinstance(output, tuple) else output)

    layers = model.model.layers
    for number, layer in enumerate(layers):
        behind = hasattr(layer, "post_feedforward_layernorm")
        layer.register_forward_pre_hook(lambda _, inputs, n=number: seen.__setitem__((n, "in"), inputs[0]))
        layer.register_forward_hook(note((number, "out")))
        (layer.post_attention_layernorm if behind else layer.self_attn).register_forward_hook(note((number, "attn")))
    totals = []
    for document in calibration().documents:
        with torch.no_grad():
            model(torch.tensor([document.ids]), use_cache=False)
        rows = []
        for number in range(len(layers)):
            x, added, z = (seen[number, key] for key in ("in", "attn", "out"))
            y = x + share * added
            rows.append([1 - torch.cosine_similarity(a, b, dim=-1).mean() for a, b in ((x, y), (y, z), (x, z))])
        totals.append(torch.tensor(rows, dtype=torch.float64))
    return torch.stack(totals).mean(dim=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_what_hooks_see_in_float64_and_are_zero_for_what_does_nothing(bases, name):
    base = bases[name]
    how = Scoring(architecture=architecture_of(base.config), batch_size=2)
    found = score(Path(base.folder), calibration(), how, reporter=Reporter(quiet=True)).mean
    values = torch.tensor([found.attn, found.mlp, found.block], dtype=torch.float64).T
    assert (values - reference(base.folder)).abs().max() < 1e-6
    # The planted layer alone does nothing, to the last bit.
    assert [[layer for layer, s in enumerate(row) if s == 0.0] for row in (found.attn, found.mlp, found.block)] == [
        [PLANTED]
    ] * 3


# ---- kinds of attention ------------------------------------------------------------------------------------------

F, S = "full_attention", "sliding_attention"
KINDS = {
    "qwen2": [F, F, F, F, F],
    "qwen2, sliding": [F, F, S, S, S],
    "qwen3": [F, F, F, S, S],
    "smollm3": [F, S, F, S, F],
    "granite": [F, F, F, F, F],
    "phi3": [S, S, S, S, S],
    "olmo2": [F, F, F, F, F],
    "gemma2": [S, F, S, F, S],
    "gemma3_text": [S, S, F, S, S, F],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kinds_of_attention_are_those_of_transformers(bases, name):
    from transformers import AutoConfig

    assert kinds_of(bases[name]) == KINDS[name]
    config = AutoConfig.from_pretrained(bases[name].folder, trust_remote_code=False)
    lists = architecture_of(bases[name].config).lists_of(bases[name].config)
    for key, values in lists.items():
        assert getattr(config, key, values) == values


def published(name, drop, **changes):
    config = {**FAMILIES[name], **changes}
    return pruned_config(BaseCheckpoint(name="tiny", commit=None, config=config, files=()), drop)


@pytest.mark.parametrize(
    ("name", "removed", "expected"),
    [
        ("qwen2", 0, {}),
        ("qwen2, sliding", 0, {"layer_types": [F, S, S, S]}),
        ("qwen2, sliding", 4, {}),
        ("qwen3", 4, {}),
        ("smollm3", 0, {"layer_types": [S, F, S, F], "no_rope_layers": [0, 1, 0, 1]}),
        ("smollm3", 4, {}),
        ("gemma2", 1, {"layer_types": [S, S, F, S]}),
        ("gemma3_text", 5, {}),
        ("gemma3_text", 2, {"layer_types": [S, S, S, S, F]}),
    ],
)
def test_kinds_are_written_where_a_pattern_would_shift_them(name, removed, expected):
    found = published(name, plan(FAMILIES[name]["num_hidden_layers"], attn=[removed], mlp=[removed]))
    assert {key: found[key] for key in ("layer_types", "no_rope_layers") if key in found} == expected


@pytest.mark.parametrize(
    ("name", "removed", "layout"),
    [
        ("qwen2", 0, "stock"),
        ("qwen2, sliding", 0, "pruned"),
        ("qwen2, sliding", 4, "stock"),
        ("smollm3", 0, "stock"),
        ("gemma2", 1, "pruned"),
        ("gemma2", 4, "stock"),
        ("gemma3_text", 0, "pruned"),
    ],
)
def test_a_stock_layout_is_chosen_only_where_old_transformers_number_the_kinds_alike(name, removed, layout):
    config = FAMILIES[name]
    drop = plan(config["num_hidden_layers"], attn=[removed], mlp=[removed])
    assert choose_layout("auto", drop, config) == layout
    if layout == "pruned":
        with pytest.raises(PlanError, match=r"transformers before 4\.53 would mix up its full and sliding attentions"):
            choose_layout("stock", drop, config)


def test_a_plan_that_leaves_no_attention_of_a_kind_is_refused_with_the_layers_of_that_kind():
    config = FAMILIES["gemma3_text"]
    with pytest.raises(
        PlanError, match=r"No attention of the kind full_attention would be left: .* 2, 5 have one"
    ) as named:
        choose_layout("auto", plan(6, attn=[2, 5]), config)
    assert named.value.hint == "Leave 5 out of --attn-layers."
    ranked = plan(6, attn=[2, 5]).model_copy(update={"selected_by": "score"})
    with pytest.raises(PlanError, match=r"Keep one of them: --protect 5\."):
        choose_layout("auto", ranked, config)
    # Where layer 5 goes altogether, layer 2 is the last of its kind.
    with pytest.raises(PlanError, match=r"full_attention would be left: .* 2 have one"):
        choose_layout("auto", plan(6, attn=[2, 5], mlp=[5]), config)
    assert choose_layout("auto", plan(6, attn=[2, 5], mlp=[2, 5]), config) == "pruned"


# ---- the published config ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", [[], [2]])
def test_code_that_a_base_names_is_not_carried(removed):
    found = published("phi3", plan(5, attn=[2], mlp=removed))
    assert found.get("auto_map", {}).get("AutoModelForCausalLM") == (
        None if removed else "modeling_pruned_phi3.PrunedPhi3ForCausalLM"
    )


def test_both_rope_bases_are_written_for_transformers_4():
    per_kind = {
        "full_attention": {"factor": 8.0, "rope_theta": 1e6, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 100.0, "rope_type": "default"},
    }
    new = {k: v for k, v in FAMILIES["gemma3_text"].items() if not k.startswith("rope_")}
    config = {**new, "rope_parameters": per_kind}
    base = BaseCheckpoint(name="tiny", commit=None, config=config, files=())
    found = pruned_config(base, plan(6, attn=[0]))
    assert found["rope_parameters"] == per_kind
    assert found["rope_theta"] == 1e6
    assert found["rope_local_base_freq"] == 100.0
    assert found["rope_scaling"] == {"factor": 8.0, "rope_type": "linear"}


def test_a_model_with_other_inputs_is_refused_with_a_hint():
    with pytest.raises(UnsupportedArchitectureError) as caught:
        architecture_of({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    assert "its text part needs a repo of its own" in str(caught.value.hint)
    assert "gemma3_text, granite, llama" in str(caught.value.hint)
