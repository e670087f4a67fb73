"""The top of the card: the sentence with the numbers, the table at a glance, and how to use the model.

The code of "Use it" is one text, which the card shows and which was run on the written files before they went out.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from hubprune.cards.context import Beside, CustomCode, Link, OtherRuntime, Printed, Table, Usage
from hubprune.cards.free_text import loop_rows, wrapped

# fmt: off
# isort: off
from hubprune.cards.markdown import (
    FILTERS, INTERVAL, NONE, change_percent, count, interval, plain, rounded, signed, size_change, visible,
    with_interval,
)
# isort: on
# fmt: on
from hubprune.cards.removal import NAMES, layers_named, width_rows, width_share
from hubprune.cards.timed import speed_rows
from hubprune.core import fresh
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import (
    BaseCheckpoint,
    BenchmarkComparison,
    DropPlan,
    Layout,
    PublishReport,
    RepoFile,
    RuntimeName,
    SiblingLink,
    SnippetRun,
    SublayerKind,
    Verification,
)
from hubprune.core.console import size
from hubprune.core.devices import last_words, run_to_end, stored_dtype
from hubprune.core.errors import VerificationError
from hubprune.core.files import scratch_folder
from hubprune.core.privacy import page, scrub
from hubprune.core.strict import parse_json
from hubprune.core.templates import environment as template_environment


def base_link(base: BaseCheckpoint, *, endpoint: str) -> Link:
    """Name the base, with its page at the pinned commit where it is on a Hub."""
    # The Hub's names need no quoting; a name that broke the link would break the card.
    url = page(quote(base.name, errors="replace"), endpoint=endpoint) if base.commit else None
    return Link(name=base.name, url=f"{url}/tree/{base.commit}" if url else None)


def beside(links: Sequence[SiblingLink], *, endpoint: str) -> tuple[Beside, ...]:
    """Name the repos that hold the same model otherwise, each with its page."""
    return tuple(Beside(link=Link(name=x.repo_id, url=page(x.repo_id, endpoint=endpoint)), told=x.told) for x in links)


def summary(report: PublishReport) -> str:
    """Say in one sentence what was done, with its numbers; it follows "This is <base> with"."""
    checkpoint, benchmarks = report.checkpoint, report.benchmarks
    parameters, base_parameters = checkpoint.parameters, checkpoint.base_parameters
    cache, base_cache = checkpoint.kv_bytes_per_token, checkpoint.base_kv_bytes_per_token
    parts = [
        f"{count(parameters)} parameters ({change_percent(base_parameters, parameters)})",
        f"an unchanged KV cache of {count(cache)} bytes per token"
        if base_cache == cache
        else f"a KV cache of {count(cache)} bytes per token ({change_percent(base_cache, cache)})",
    ]
    if benchmarks and (mean := benchmarks.mean_points):
        told = f" ({INTERVAL}{ends})" if (ends := interval(mean)) else ""
        parts.append(f"{signed(mean.value)} points on average over {_task_count(benchmarks)}{told}")
    return f"{' and '.join(_removed(report.plan))}: {', '.join(parts)}."


def _removed(plan: DropPlan) -> Iterator[str]:
    attn, mlp = plan.layers("attn"), plan.layers("mlp")
    if attn and attn == mlp and not any(plan.absent_layers.values()):
        yield f"{len(attn)} of its {plan.num_hidden_layers} layers removed ({layers_named(attn)}, counted from 0)"
    else:
        for kind, name in NAMES.items():
            if layers := plan.layers(kind):
                said = f"{len(layers)} of its {_present(plan, kind)} {name} sublayers removed"
                yield f"{said} ({layers_named(layers)}, counted from 0)"
    if share := width_share(plan):
        yield share


def _present(plan: DropPlan, kind: SublayerKind) -> int:
    """Count the sublayers of a kind that the base has."""
    return plan.num_hidden_layers - len(plan.absent_layers[kind])


def _task_count(benchmarks: BenchmarkComparison) -> str:
    tasks = [t for t in benchmarks.main_metrics() if t.is_share]
    return "1 benchmark" if len(tasks) == 1 else f"{len(tasks)} benchmarks"


# ---- at a glance -------------------------------------------------------------------------------------------------


def glance(report: PublishReport) -> Table:
    """Compare base and result in the figures that a reader asks for first."""
    checkpoint = report.checkpoint
    weights = checkpoint.base_weight_bytes, checkpoint.weight_bytes
    cache = checkpoint.base_kv_bytes_per_token, checkpoint.kv_bytes_per_token
    dtype = stored_dtype(report.base.config)
    rows = (
        (
            "Parameters",
            *map(rounded, (checkpoint.base_parameters, checkpoint.parameters)),
            change_percent(checkpoint.base_parameters, checkpoint.parameters),
        ),
        *_sublayer_rows(report.plan),
        *width_rows(report.plan),
        (f"Weights on disk ({', '.join(checkpoint.dtypes)})", *map(size, weights), size_change(*weights)),
        _count_row(f"KV cache, bytes per token at {dtype}", *cache),
        *speed_rows(report.speed),
        *_benchmark_rows(report.benchmarks),
        *loop_rows(report.generation),
    )
    return Table(columns=("", "Base", "This model", "Change (95 % interval)"), align="lrrr", rows=rows)


def _count_row(label: str, base: int, now: int) -> tuple[str, ...]:
    return label, count(base), count(now), change_percent(base, now)


def _sublayer_rows(plan: DropPlan) -> Iterator[tuple[str, ...]]:
    total, gone = plan.num_hidden_layers, len(plan.removed_layers)
    if gone:
        yield "Layers", str(total), str(total - gone), signed(-gone, digits=0)
    for kind, name in NAMES.items():
        n, there = len(plan.layers(kind)), _present(plan, kind)
        if there and (n or kind == "attn"):
            yield f"{name[0].upper()}{name[1:]} sublayers", str(there), str(there - n), signed(-n, digits=0)


def _benchmark_rows(benchmarks: BenchmarkComparison | None) -> Iterator[tuple[str, ...]]:
    """Compare the means, and the main metric that lost most points where any of several did."""
    if not benchmarks or not (mean := benchmarks.mean_points):
        return
    tasks = [t for t in benchmarks.main_metrics() if t.is_share]
    means = [sum(values) / len(values) for values in zip(*((t.base.value, t.pruned.value) for t in tasks), strict=True)]
    label = f"Mean of {_task_count(benchmarks)}, %"
    yield label, *_percentages(means), with_interval(mean, unit=" points")
    changes = [(t.points.value, i, t) for i, t in enumerate(benchmarks.main_metrics()) if t.points]
    loss, _, worst = min(changes, default=(0.0, 0, None))
    if len(tasks) > 1 and worst and loss < 0 and worst.points:
        values = _percentages([worst.base.value, worst.pruned.value])
        label = f"Largest loss: {worst.task}, {worst.metric}, %"
        yield label, *values, with_interval(worst.points, unit=" points")


def _percentages(shares: list[float]) -> tuple[str, ...]:
    return tuple(plain(100 * share, digits=2) for share in shares)


# ---- how to use it -----------------------------------------------------------------------------------------------


RUNTIMES: Mapping[Layout, str] = {
    "stock": "The files are those of an ordinary model of the base's family, which need no code of their own.",
    "nemotron-nas": "The layout is NVIDIA's nemotron-nas; transformers loads it with the modeling file of this repo."
    " For llama.cpp, use hubprune export gguf: llama.cpp's own converter takes this layout with Llama 3's vocabulary"
    " of 128,256 tokens only, and makes a file that cuts texts wrongly of one that is SentencePiece's.",
    "pruned": "transformers loads this layout with the modeling file of this repo.",
}
"""What a layout asks for; which runtimes take it besides, a card tells from runs alone."""


def usage(report: PublishReport, *, tag: str | None) -> Usage:
    """Show the snippet that was run, with what it printed; one for another place than this says nothing here.

    Of a refreshed repo it is the same code with the tag of the files that are there now.
    """
    base, plan, repo_id, run = report.base, report.plan, report.repo_id, report.snippet
    code, shown, label = custom_code(report.checkpoint.files, plan), None, ""
    chat = report.generation is not None and report.generation.chat is not None
    if run and (run.repo_id, run.revision) == (repo_id, tag):
        shown = run.code
        label = (
            "Exactly this code was run on these files in a fresh process before they were published, with transformers"
            f" {run.transformers}. It printed:"
        )
        if report.generation and report.generation.chat and report.generation.chat.date:
            label = f"The chat template writes the day into the prompt. {label}"
    elif run and report.refreshed and run.repo_id == repo_id and run.revision and tag:
        shown = run.code.replace(run.revision, tag)
        label = (
            f"Before this repo was refreshed, this code was run on the files at {run.revision}, with transformers"
            f" {run.transformers}. It printed:"
        )
    runtimes = [RUNTIMES[plan.layout]]
    if code:
        needed = ".".join(map(str, architecture_of(base.config, name=base.name).floor))
        # Some of those run the modeling file, and call a thing in the snippet otherwise.
        older = "before 4.56, from_pretrained takes torch_dtype for dtype"
        runtimes.append(f"The modeling file needs transformers {needed} or newer; {older}.")
    runtimes.append(ran_in(report.verification))
    return Usage(
        snippet=shown or Snippet(repo_id=repo_id, revision=tag, custom_code=code is not None, chat=chat).code(),
        printed=Printed(label=label, text=wrapped(run.output)) if run and label else None,
        code=code,
        runtimes=tuple(runtimes),
        others=other_runtimes(report.verification, plan, needs_file=code is not None, refreshed=bool(report.refreshed)),
        train=train_code(repo_id, tag=tag, custom_code=code is not None), quantize=f"hubprune quantize {repo_id}",
    )  # fmt: skip


def train_code(repo_id: str, *, tag: str | None, custom_code: bool) -> str:
    """Write the lines that put adapters on the model, to be trained."""
    made = template_environment("card", filters=FILTERS).get_template("train.py.jinja")
    return visible(made.render(repo_id=repo_id, revision=tag, custom_code=custom_code), keep="\n\t").rstrip("\n")


def ran_in(verification: Verification) -> str:
    """Say which runtimes the files were run in: those that computed the same, and no others."""
    seen = verification.in_runtimes
    ran = [f"transformers {verification.transformers}", *verification.runtimes]
    ran += [run.label for run in seen.runs if run.passed] if seen else []
    listed = " and ".join(filter(None, (", ".join(ran[:-1]), ran[-1])))
    return f"For this card, the files were run in {listed} and nowhere else."


RAN: Mapping[RuntimeName, str] = {
    "vllm": "ran these files",
    "llama.cpp": "ran the GGUF file that hubprune export gguf makes of these files",
    "mlx": "ran these files",
}


def other_runtimes(
    verification: Verification, plan: DropPlan, *, needs_file: bool, refreshed: bool = False
) -> tuple[OtherRuntime, ...]:
    """Tell which runtimes ran the files, how close each came, and the command that it was run with.

    `needs_file` says whether transformers needs the modeling file, `refreshed` whether files changed since.
    """
    told, seen = [], verification.in_runtimes
    for run in seen.runs if seen else ():
        if seen is None or not run.passed:
            continue
        there = [f"{name} {version}" for name, version in run.versions.items() if name in ("transformers", "mlx")]
        beside = f" (with {', '.join(there)})" if there else ""
        ties = f", apart from ties in {run.tied_texts}" if run.tied_texts else ""
        sentence = (
            f"{run.label}{beside} {RAN[run.runtime]} as {run.architecture} in {run.dtype}: all {run.texts} greedy texts"
            f" of {run.new_tokens} tokens are the same as in transformers {seen.transformers}{ties}, and no"
            f" token's log-probability differs by more than {run.largest_difference:.1e}."
        )
        if seen.quantized:
            sentence += f" With quantized weights and 16-bit arithmetic, up to {run.tolerance:g} is allowed."
        if run.kv_layers is not None and plan.gone("attn"):
            sentence += f" It keeps keys and values for {run.kv_layers} layers."
        if needs_file and run.runtime == "vllm":
            sentence += " It needs --trust-remote-code and the modeling file as well."
        if refreshed:
            sentence += " That was before this repo was refreshed."
        if run.command:
            sentence += " Run on these files before they were published:"
        told.append(OtherRuntime(sentence=sentence, command=run.command))
    return tuple(told)


def custom_code(files: Sequence[RepoFile], plan: DropPlan) -> CustomCode | None:
    """Tell of the modeling file among those of a checkpoint; None where it needs none."""
    for file in files:
        if file.path.startswith("modeling_") and file.path.endswith(".py"):
            shrinks = bool(plan.gone("attn"))
            return CustomCode(
                file=file.path, sha256=file.sha256 or NONE, without=plan.parts, shrinks_cache=shrinks
            )  # fmt: skip
    return None


# ---- its code ----------------------------------------------------------------------------------------------------


SNIPPET_TEMPLATE = "snippet.py.jinja"
DEFAULT_PROMPT = "Paris is the capital of"
NEW_TOKENS = 40
ORDINARY = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "min_p",
    "pad_token_id", "repetition_penalty", "temperature", "top_k", "top_p", "transformers_version", "typical_p",
    "use_cache",
}  # fmt: skip
"""Keys of a generation_config.json with which `generate` needs nothing else, and makes one text."""


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """What the code depends on."""

    repo_id: str
    revision: str | None
    """Tag of exactly this checkpoint; None where no tag will exist, as in a pull request."""
    prompt: str = DEFAULT_PROMPT
    custom_code: bool
    """Whether the repo ships a modeling file."""
    samples: bool = False
    """Whether the model's own settings would draw its words at random, so that the code has to say otherwise."""
    quantized: bool = False
    """Whether reading it takes compressed-tensors."""
    plain: bool = False
    """Whether the model's own settings ask for more than `generate` does alone, so that the code puts them aside."""
    chat: bool = False
    """Whether it asks through the tokenizer's chat template."""

    def code(self, *, overrides: Path | None = None) -> str:
        """Write the code, without a line break at its end, as the fence of the card leaves it."""
        made = template_environment("card", filters=FILTERS, overrides=overrides).get_template(SNIPPET_TEMPLATE)
        text = made.render(
            repo_id=self.repo_id, revision=self.revision, prompt=self.prompt, custom_code=self.custom_code,
            samples=self.samples and not self.plain, plain=self.plain, chat=self.chat, new_tokens=NEW_TOKENS,
            quantized=self.quantized,
        )  # fmt: skip
        return scrub(visible(text, keep="\n\t")).rstrip("\n")

    def run(self, folder: Path, *, gpu: bool, overrides: Path | None = None) -> SnippetRun:
        """Run the code as it stands, in a fresh process that finds the folder under the repo's id, and the Hub nowhere.

        Of what it imports, torch and transformers may be there already: see `fresh`.

        Raises:
            VerificationError: the code fails.
        """
        code = self.code(overrides=overrides)
        with scratch_folder(name="hubprune-snippet") as work:
            # from_pretrained takes a folder of that name for the repo, at whatever revision.
            link = work / "run" / self.repo_id
            link.parent.mkdir(parents=True)
            link.symlink_to(folder.resolve(), target_is_directory=True)
            variables = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules"), "PYTHONUTF8": "1"}
            variables = {**os.environ, **variables, **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})}
            done = run_to_end(
                fresh.python(["-c", code], variables), cwd=work / "run", env=variables,
                stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
            )  # fmt: skip
        if done.returncode:
            if done.returncode < 0:
                said, so = f"it was killed by signal {-done.returncode}", "The memory has to hold the whole model."
            else:
                said, so = last_words(done.stderr), "This is a bug worth reporting, with the name of the base."
            raise VerificationError(
                f"The code that the card would show does not run on the written files: {said}",
                hint=f"Nothing was published. {so}",
            )
        output, library = done.stdout.removesuffix("\n"), version("transformers")
        return SnippetRun(repo_id=self.repo_id, revision=self.revision, code=code, output=output, transformers=library)


def samples(folder: Path) -> bool:
    """Return whether `generate` draws words at random from a checkpoint that nothing else is asked of."""
    files = [folder / name for name in ("generation_config.json", "config.json")]
    settings = [parse_json(path.read_bytes(), where=str(path)) for path in files if path.is_file()]
    return any(values.get("do_sample") is True for values in settings)


def asks_for_more(folder: Path) -> bool:
    """Return whether a generation_config.json asks for what `generate` may refuse, or do otherwise, all by itself."""
    path = folder / "generation_config.json"
    given = parse_json(path.read_bytes(), where=str(path)) if path.is_file() else {}
    return any(key not in ORDINARY for key, value in given.items() if value not in (None, False))
