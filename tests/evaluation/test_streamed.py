"""Models that are read layer by layer from their files answer as they do in memory."""

from __future__ import annotations

import json
import random

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, plan, random_tensors, write_base, write_tensors, written
from safetensors.torch import load_file, save_file

from hubprune.core.errors import CheckpointError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import computing, harness, models, panel, streamed
from hubprune.evaluation.layer_tree import Variant
from hubprune.evaluation.requests import Request
from hubprune.evaluation.streamed import StreamedModels

NAS = {**LLAMA, "intermediate_size": 512}
KINDS = {
    "llama": (LLAMA, {"attn": (1, 3)}),
    "llama, a block": (LLAMA, {"attn": (2,), "mlp": (2,)}),
    "llama, joint": (LLAMA, {"attn": (0, 3), "mlp": (1, 3)}),
    "llama, nemotron-nas": (NAS, {"attn": (1, 3), "layout": "nemotron-nas"}),
    "mistral, window": (MISTRAL, {"attn": (2,)}),
    "mistral, window, a block": (MISTRAL, {"attn": (0,), "mlp": (0,)}),
    **{name: (config, {"attn": (1,), "mlp": (2,)}) for name, config in FAMILIES.items()},
}


def questions(documents=9, choices=3, seed=0):
    source = random.Random(seed)

    def words(most):
        return [source.randrange(256) for _ in range(source.randint(1, most))]

    contexts = [words(50) for _ in range(documents)]
    return [Request.of(context, words(9), max_length=60) for context in contexts for _ in range(choices)]


def folders_of(base, pruned, *, base_code=False):
    return {
        "base": harness.ModelFolder(base, own_code=base_code),
        "pruned": harness.ModelFolder(pruned, own_code=True),
    }


def write_pair(folder, config, **dropped):
    tensors = random_tensors(config) if config["model_type"] in ("llama", "mistral") else family_tensors(config)
    write_base(folder / "base", config, tensors)
    base = base_of(folder / "base")
    return folder / "base", written(base, plan(len(layers_of(tensors)), **dropped), folder / "pruned")


def layers_of(tensors):
    return {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}


def base_of(folder):
    from hubprune.core.artifacts import BaseCheckpoint

    config = json.loads((folder / "config.json").read_text())
    return BaseCheckpoint(name="tiny", commit=None, folder=str(folder), config=config, files=())


def answers(models, requests, names=("base", "pruned")):
    """Log-likelihoods and greedy flags of every variant."""
    found = {name: {} for name in names}
    for scored in models.score(names, requests):
        for name, some in scored.items():
            found[name] |= some
    return {n: [(a[i].log_likelihood, a[i].is_greedy) for i in range(len(requests))] for n, a in found.items()}


def in_memory(folders, requests):
    models = harness.load_folders(folders, "cpu", "auto", None)
    return answers(models, requests)


def assert_equal(ours, theirs):
    for name, expected in theirs.items():
        assert [value for value, _ in ours[name]] == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in ours[name]] == [greedy for _, greedy in expected]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), LLAMA, attn=(1, 3))


class Reads:
    """Counts the bytes that are read of each file, by its folder."""

    def __init__(self, monkeypatch):
        self.bytes = {}
        original = streamed.read_ahead

        def counted(loads, **options):
            for load in loads:
                for stored in load.tensors:
                    name = stored.path.parent.name
                    self.bytes[name] = self.bytes.get(name, 0) + stored.size
            return original(loads, **options)

        monkeypatch.setattr(streamed, "read_ahead", counted)


# ---- equal answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_layers_from_files_answer_as_those_in_memory(kind, tmp_path):
    config, dropped = KINDS[kind]
    folders, requests = folders_of(*write_pair(tmp_path, config, **dropped)), questions()
    found = answers(harness.open_folders(folders, "cpu", "auto", None), requests)
    assert_equal(found, in_memory(folders, requests))
    assert found["base"] != found["pruned"]


def test_a_head_in_blocks_and_states_in_many_chunks_change_nothing(pair, monkeypatch):
    folders, requests = folders_of(*pair), questions()
    monkeypatch.setattr(streamed, "HEAD_BYTES", 32 * 4 * 7)  # seven rows of the vocabulary
    monkeypatch.setattr(streamed, "CHUNK_WORK", 1)
    monkeypatch.setattr(streamed, "CPU_SLOTS", 128)
    monkeypatch.setattr(streamed, "TOKENS_AT_ONCE", 5)
    models = StreamedModels(folders, device="cpu", dtype="auto", batch_size=None)
    assert len(models.scorer(("base", "pruned")).plan(requests)) > 2
    assert_equal(answers(models, requests), in_memory(folders, requests))


def test_a_base_that_was_pruned_before_takes_part(tmp_path):
    _, once = write_pair(tmp_path, LLAMA, attn=(1,))
    both = plan(5, attn=(3,)).model_copy(update={"absent": (("attn", 1),)})
    twice = written(base_of(once), both, tmp_path / "twice")
    folders, requests = folders_of(once, twice, base_code=True), questions()
    found = answers(harness.open_folders(folders, "cpu", "auto", None), requests)
    assert_equal(found, in_memory(folders, requests))


def test_half_precision_and_weights_of_another_dtype_are_cast(pair):
    folders, requests = folders_of(*pair), questions(3)
    models = StreamedModels(folders, device="cpu", dtype="bfloat16", batch_size=None)
    loaded = harness.load_folders(folders, "cpu", "bfloat16", None)
    found, expected = ([v for v, _ in answers(of, requests)["pruned"]] for of in (models, loaded))
    assert found == pytest.approx(expected, abs=0.5)


# ---- what is read -------------------------------------------------------------------------------------------------


def test_nothing_of_the_base_is_read_a_second_time_for_the_pruned_model(pair, monkeypatch):
    reads, models = Reads(monkeypatch), harness.open_folders(folders_of(*pair), "cpu", "auto", None)
    answers(models, questions())
    tensors = load_file(pair[0] / "model.safetensors")
    del tensors["model.embed_tokens.weight"]  # of which single rows are read
    assert reads.bytes == {"base": sum(tensor.nbytes for tensor in tensors.values())}


def test_layers_that_the_pruned_model_shares_are_run_once_though_they_have_other_numbers(tmp_path):
    models = harness.open_folders(folders_of(*write_pair(tmp_path, LLAMA, attn=(2,), mlp=(2,))), "cpu", "auto", None)
    steps = models.scorer(("base", "pruned"))._program.steps
    assert [len(step.moves) for step in steps] == [1, 1, 1, 2, 2]


def test_a_tensor_that_looks_like_the_bases_and_is_another_is_read_itself(pair, tmp_path):
    """Only in one number in the middle, where nobody looks before the bytes are compared."""
    base, pruned = pair
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in pruned.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][30, 3] += 1.0
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    requests = questions()
    models = harness.open_folders(folders_of(base, changed), "cpu", "auto", None)
    found = answers(models, requests)
    assert_equal(found, in_memory(folders_of(base, changed), requests))
    assert found["pruned"] != answers(harness.open_folders(folders_of(*pair), "cpu", "auto", None), requests)["pruned"]


def test_a_weight_that_is_missing_is_refused(tmp_path):
    base, pruned = write_pair(tmp_path, LLAMA, attn=(1,))
    tensors = load_file(pruned / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    write_tensors(pruned, tensors)
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.2\.mlp\.up_proj\.weight'"):
        harness.open_folders(folders_of(base, pruned), "cpu", "auto", None)


def test_a_quantized_model_is_refused(tmp_path):
    base, pruned = write_pair(tmp_path, {**LLAMA, "quantization_config": {"quant_method": "awq"}}, attn=(1,))
    with pytest.raises(CheckpointError, match="cannot be run layer by layer: it is quantized"):
        harness.open_folders(folders_of(base, pruned), "cpu", "auto", None)


# ---- memory -------------------------------------------------------------------------------------------------------


def test_a_chunk_has_as_many_tokens_as_memory_holds_the_states_of(pair, monkeypatch):
    each = 2 * 32 * 4  # states of base and pruned
    sizes = []
    for free in (200 * 2**20, 400 * 2**20):
        monkeypatch.setattr(streamed, "available_bytes", lambda free=free: free)
        models = harness.open_folders(folders_of(*pair), "cpu", "auto", None)
        sizes.append(models.scorer(("base", "pruned")).chunk_tokens)
    assert sizes[1] - sizes[0] == pytest.approx(200 * 2**20 // each, abs=2)
    assert models.scorer(("base",)).chunk_tokens == pytest.approx(2 * sizes[1], rel=0.01)


def test_a_batch_that_does_not_fit_is_halved(pair, monkeypatch):
    folders, requests = folders_of(*pair), questions()
    models = harness.open_folders(folders, "cpu", "auto", None)
    enter, sizes = streamed.Trunk.enter, []

    def refuse(self, batch, states=None):
        sizes.append(batch.ids.numel())
        if states is not None and batch.ids.numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return enter(self, batch, states)

    expected = in_memory(folders, requests)
    monkeypatch.setattr(streamed.Trunk, "enter", refuse)
    assert_equal(answers(models, requests), expected)
    assert max(sizes) > 200


def test_progress_is_told_layer_by_layer_and_adds_up(pair):
    models, requests, told = harness.open_folders(folders_of(*pair), "cpu", "auto", None), questions(), []
    list(models.score(("base", "pruned"), requests, told.append))
    assert sum(told) == 2 * sum(len(request.read) for request in requests)
    assert len([amount for amount in told if amount]) > 5
    assert min(told) >= 0


def test_a_variant_alone_is_scored_too(pair):
    folders, requests = folders_of(*pair), questions()
    models = harness.open_folders(folders, "cpu", "auto", None)
    assert_equal(answers(models, requests, names=("pruned",)), {"pruned": in_memory(folders, requests)["pruned"]})
    assert Variant.of("", models.variants["base"].model).layers[0].mlp.up_proj.weight.is_meta


# ---- the whole way ------------------------------------------------------------------------------------------------


@pytest.fixture
def measure(base_folder, pruned_folder, task_folder, reporter, tmp_path, monkeypatch):
    """Run benchmarks of two small folders that read bytes."""

    def run(*tasks, memo=None, **spec):
        return harness.run(
            harness.ModelFolder(base_folder, identity="base"),
            harness.ModelFolder(pruned_folder, own_code=True, identity="pruned"),
            spec=EvaluationSpec(tasks=tasks, include_path=str(task_folder), **spec),
            seed=0, device="cpu", dtype="auto", reporter=reporter, memo=memo,
        )  # fmt: skip

    return run


def test_models_larger_than_memory_are_read_layer_by_layer_and_written_with_from_disk(measure, monkeypatch, reporter):
    in_memory = measure("pets", "answers")
    monkeypatch.setattr(models.memory, "available_bytes", lambda: 150_000)
    found = measure("pets", "answers")
    assert (in_memory.backend, found.backend, found.fallback) == ("shared", "layers", None)
    assert found.self_check.requests == 2
    assert found.self_check.largest_difference < 1e-4
    assert found.tasks == in_memory.tasks
    assert any("layer by layer from the files" in note and "read once" in note for note in reporter.notes)
    assert any("3 texts: the pruned model is read from disk up to 4 times" in note for note in reporter.notes)


def test_answers_of_a_finished_chunk_are_kept_whichever_way_the_next_run_takes(measure, monkeypatch, tmp_path):
    memo, answer, chunks = tmp_path / "answers.sqlite", streamed.Stream.answer, []

    def end_after_one(self, *arguments):
        if chunks:
            raise KeyboardInterrupt
        chunks.append(1)
        return answer(self, *arguments)

    monkeypatch.setattr(streamed, "CHUNK_WORK", 1)
    monkeypatch.setattr(streamed, "CPU_SLOTS", 60)
    monkeypatch.setattr(streamed.Stream, "answer", end_after_one)
    with pytest.raises(KeyboardInterrupt):
        measure("pets", memo=memo, backend="layers")
    asked, really = [], computing.Models.score

    def score(self, names, requests, *arguments):
        asked.append(len(requests))
        return really(self, names, requests, *arguments)

    monkeypatch.setattr(computing.Models, "score", score)
    assert measure("pets", memo=memo).tasks == measure("pets").tasks
    assert 0 < asked[1] < 15  # behind the few that are compared


@pytest.mark.parametrize("processes", [1, 2])
def test_a_difference_from_lm_evals_own_backend_is_noticed_in_the_first_chunk(measure, monkeypatch, processes):
    plain = measure("pets", backend="hf")
    enter, really, ended = streamed.Trunk.enter, StreamedModels.score, []

    def score(self, *arguments):
        yield from really(self, *arguments)
        ended.append(True)

    monkeypatch.setattr(StreamedModels, "score", score)
    monkeypatch.setattr(panel, "world_size", lambda: processes)

    def other(self, batch, states=None):
        found, calls = enter(self, batch, states)
        return found, [{**call, "attention_mask": None} for call in calls]

    monkeypatch.setattr(streamed.Trunk, "enter", other)
    found = measure("pets", backend="layers")
    assert found.backend == "hf"
    assert "differed by" in found.fallback
    assert found.tasks == plain.tasks
    # Several are in step to the end: what one leaves out, the others would wait for.
    assert bool(ended) == (processes > 1)
