"""The card of a sibling: a pruned model in fewer bits, or as files for llama.cpp, and what that cost it.

It is rendered by the templates of other cards, from a context of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hubprune.cards import front_matter, healed, overview
from hubprune.cards.commands import publish_command, reproduce_command
from hubprune.cards.context import (
    Glance,
    Link,
    Made,
    Printed,
    Reproduction,
    SiblingContext,
    Table,
    Usage,
    VerificationSummary,
)
from hubprune.cards.free_text import wrapped
from hubprune.cards.limits import benchmark_limits, benchmark_verdict, retention, unwritten
from hubprune.cards.manifest import files_tag
from hubprune.cards.measured import adding, four_benchmarks

# fmt: off
# isort: off
from hubprune.cards.markdown import (
    NONE, change_percent, count, listing, plain, signed, size_change, with_error, with_interval,
)
# isort: on
# fmt: on
from hubprune.cards.provenance import (
    GPTAQ,
    GPTQ,
    LORA,
    attribution_line,
    card_in_force,
    circumstances,
    citations,
    licence,
    license_warnings,
    times,
)
from hubprune.cards.removal import calibration
from hubprune.core.artifacts import (
    Divergence,
    GgufExport,
    QuantizedCheckpoint,
    SiblingKind,
    SiblingReport,
)
from hubprune.core.console import size
from hubprune.core.privacy import page, public_recipe
from hubprune.core.recipe import Recipe, parse
from hubprune.core.specs import QuantizationSpec
from hubprune.core.weights import DTYPE_BITS

WEIGHTS = {"w4a16": "4-bit weights", "w8a16": "8-bit weights", "fp8": "8-bit floats"}
GIVEN = " \\\n    --healed FOLDER"
"""Names what was trained elsewhere, as far as anybody here knows it."""
METHODS = {"gptq": "GPTQ", "rtn": "each weight rounded to the nearest value"}


def told(recipe: Recipe, kind: str) -> str:
    """Say in some words what a sibling holds."""
    if kind == "healed":
        return healed.told(recipe.heal)
    if kind == "gguf":
        return f"GGUF files for llama.cpp ({listing(recipe.gguf or ())})"
    spec = recipe.quantize or QuantizationSpec()
    return f"{WEIGHTS[spec.scheme]} ({_scheme(spec.scheme, spec.columns)}), {METHODS[spec.method]}"


def _scheme(scheme: str, group: int | None) -> str:
    return f"{scheme.upper()}, {f'groups of {group}' if group else 'one scale per row'}"


def context_of(report: SiblingReport, *, template_hash: str, curve: str | None = None) -> SiblingContext:
    """Build what the card of a sibling is rendered from, of the report of the run or as the manifest keeps it.

    `curve` is the path of the picture of a training among the published files.
    """
    recipe, base, plan = parse(Recipe, report.recipe), report.base, report.plan
    name, given, made = report.repo_id.rsplit("/", 1)[-1], recipe.target.license, report.quantized
    terms = card_in_force(base, given=given)
    url, tag = page(report.pruned, endpoint=report.endpoint), report.pruned_tag
    then = "then its matrices were quantized" if made else "then it was written as GGUF files"
    if report.kind == "healed":
        then, summary, glance = healed.then(report), healed.summary(report), healed.glance(report)
        limits = tuple(healed.limits(report))
        told_made = healed.made(report, curve=curve)
        benchmarks, adds = healed.benchmarks(report.recovered), healed.came_back(report.recovered)
    else:
        summary, limits = _summary(report), tuple(_limits(report))
        glance = _quantized_glance(report, made) if made else _gguf_glance(report)
        told_made = _quantized(made, mix=recipe.calibration.name, endpoint=report.endpoint) if made else _files(report)
        benchmarks, adds = four_benchmarks(report.benchmarks), adding(report.benchmarks)
    published = public_recipe(recipe, base=base)
    also = [GPTQ, GPTAQ] if made and made.record.method == "gptq" else []
    also += [LORA] if report.healing and report.healing.method == "lora" else []
    return SiblingContext(
        front_matter=front_matter.dump(metadata(report)),
        title=name,
        base=Link(name=report.pruned, url=f"{url}{f'/tree/{tag}' if tag else ''}" if url else None),
        summary=summary,
        beside=overview.beside(report.beside, endpoint=report.endpoint),
        attribution=attribution_line(terms),
        warnings=tuple(license_warnings(base, given=given)),
        glance=glance,
        usage=_usage(report),
        made=told_made,
        benchmarks=benchmarks,
        adding=adds,
        free_text=healed.texts(report),
        limits=limits,
        reproduction=Reproduction(
            check=None
            if report.elsewhere
            else reproduce_command(published, repo_id=report.repo_id, tag=own_tag(report)),
            command=publish_command(published) + (GIVEN if report.elsewhere else ""),
            needs_tasks=recipe.evaluation.include_path is not None,
            refreshed=None,
            environment=circumstances(base, report.environment, endpoint=report.endpoint),
            seconds=times(report.seconds),
        ),
        licence=licence(base, plan=plan, name=name, given=given, then=then),
        citations=citations(
            base, plan, endpoint=report.endpoint, measured=benchmarks is not None, also=also,
        ),
        footer=f"Written by hubprune {report.environment.hubprune}, card template {template_hash[:8]}.",
    )  # fmt: skip


def own_tag(report: SiblingReport) -> str | None:
    """Return the tag of exactly these files; None where there will be none."""
    return files_tag(report.files) if report.pruned_tag else None


def metadata(report: SiblingReport) -> dict[str, Any]:
    """Build the card's metadata: that of a pruned model, of which this one is a quantization."""
    recipe, made = parse(Recipe, report.recipe), report.quantized
    compared = report.benchmarks or report.recovered
    both = compared.both if compared else None
    texts = made.record.calibration if made else report.healing.data if report.healing else None
    values = front_matter.metadata(
        report.base, terms=card_in_force(report.base, given=recipe.target.license),
        name=report.repo_id.rsplit("/", 1)[-1], methods=report.plan.methods,
        has_code=overview.custom_code(report.files, report.plan) is not None, scores=None, benchmarks=both,
        texts=texts,
    )  # fmt: skip
    return {**values, **relation(report.pruned, kind=report.kind, tags=values["tags"])}


def relation(pruned: str, *, kind: SiblingKind, tags: list[str]) -> dict[str, Any]:
    """Return the keys of the metadata that tell a sibling from the model that it was made of, in the place of others'.

    Its tags say in which format it is, and not that the scores can be reproduced, which it has none of.
    """
    own = {"healed": ["healed"], "quantized": ["compressed-tensors", "quantized"], "gguf": ["gguf", "llama.cpp"]}[kind]
    last = [tag for tag in tags if tag == front_matter.CUSTOM_CODE]
    kept = [tag for tag in tags if tag not in ("reproducible", front_matter.CUSTOM_CODE)]
    return {
        "library_name": "gguf" if kind == "gguf" else "transformers",
        "base_model": pruned, "base_model_relation": "finetune" if kind == "healed" else "quantized",
        "tags": [*kept, *own, *last],
    }  # fmt: skip


# ---- at the top --------------------------------------------------------------------------------------------------


def _summary(report: SiblingReport) -> str:
    if not (made := report.quantized):
        return f"its weights in GGUF files for llama.cpp: {listing([e.outtype for e in report.exports])}."
    record, before = made.record, report.checkpoint.weight_bytes
    parts = [
        f"{size(record.weight_bytes)} of weights instead of {size(before)}"
        f" ({change_percent(before, record.weight_bytes)})"
    ]
    if seen := record.divergence:
        parts.append(f"{_nats(seen)} to it, top-1 agreement at {_share(seen.top1)} of positions")
    return (
        f"{WEIGHTS[record.scheme]} ({_scheme(record.scheme, record.group_size)}, {METHODS[record.method]}):"
        f" {', '.join(parts)}."
    )


def _nats(seen: Divergence) -> str:
    return f"a KL divergence of {with_error(seen.kl, seen.kl_error)} nats per token"


def _share(value: float) -> str:
    return f"{plain(100 * value, digits=1)} %"


def _quantized_glance(report: SiblingReport, made: QuantizedCheckpoint) -> Glance:
    """Compare base, pruned and quantized in the figures that a reader asks for first."""
    record, before, compared = made.record, report.checkpoint, report.benchmarks
    bits = ", ".join(dict.fromkeys(str(DTYPE_BITS[dtype]) for dtype in before.dtypes if dtype in DTYPE_BITS))
    sizes = before.base_weight_bytes, before.weight_bytes, record.weight_bytes
    rows = [
        ("Weights on disk", *map(size, sizes), size_change(sizes[1], sizes[2])),
        ("Bits per quantized weight, scales included", bits, bits, plain(record.bits_per_weight, digits=3), NONE),
    ]
    if seen := record.divergence:
        rows += [
            ("KL divergence to the pruned model, nats per token", NONE, "0", with_error(seen.kl, seen.kl_error), NONE),
            ("Top-1 agreement with the pruned model", NONE, "100.0 %", _share(seen.top1), NONE),
            (
                f"Perplexity on {count(seen.documents)} texts", NONE, plain(seen.perplexity, digits=3),
                plain(seen.quantized_perplexity, digits=3),
                signed(100 * (seen.quantized_perplexity / seen.perplexity - 1), unit=" %"),
            ),
        ]  # fmt: skip
    if compared and (mean := compared.step.mean_points):
        shares = [row for row in compared.both.main_metrics() if row.is_share]
        pruned = [row for row in compared.step.main_metrics() if row.is_share]
        values = [[r.base.value for r in shares], [r.base.value for r in pruned], [r.pruned.value for r in shares]]
        means = (plain(100 * sum(column) / len(column), digits=2) for column in values)
        label = f"Mean of {len(shares)} benchmark{'s'[: len(shares) - 1]}, %"
        rows.append((label, *means, with_interval(mean, unit=" points")))
    columns = ("", "Base", "Pruned", "This model", "Change from pruned (95 % interval)")
    told = benchmark_verdict(compared.both) if compared else "Verdict: what it cost on benchmarks was not measured."
    adds = adding(compared)
    left = tuple(retention(compared.both)) if compared else ()
    verdict = (told, *left, *([adds.verdict] if adds else []))
    return Glance(table=Table(columns=columns, align="lrrrr", rows=tuple(rows)), verdict=verdict)


def _gguf_glance(report: SiblingReport) -> Glance:
    before = report.checkpoint.weight_bytes
    rows = tuple(
        (made.file, made.outtype, size(made.size), size_change(before, made.size), _agreed(made))
        for made in report.exports
    )
    columns = ("File", "Type", "Size", "Change from the pruned weights", "Same next token as transformers")
    return Glance(table=Table(columns=columns, align="llrrr", rows=rows), verdict=(_verdict(report.exports),))


def _agreed(made: GgufExport) -> str:
    seen = made.parity.model if made.parity else None
    return f"{count(seen.agreed)} of {count(seen.positions)} positions" if seen else NONE


def _verdict(exports: tuple[GgufExport, ...]) -> str:
    if all(made.parity and not made.parity.failures for made in exports):
        what, whose = ("The file does", "its") if len(exports) == 1 else ("All files do", "their")
        told = f"in llama.cpp what the pruned model does in transformers, within the precision of {whose} type"
        return f"Verdict: {what} {told}{'s' if len(exports) > 1 else ''}."
    return "Verdict: not every file was compared with transformers."


def _usage(report: SiblingReport) -> Usage:
    """Show the code that was run, with what it printed."""
    run, made = report.snippet, report.quantized
    code = overview.custom_code(report.files, report.plan) if made or report.healed else None
    runtimes = []
    if report.healed:
        runtimes += [overview.ran_in(report.healed.verification), healed.TRAIN_ON]
    elif made:
        runtimes.append("transformers needs the package compressed-tensors to read this format.")
        runtimes.append(overview.ran_in(made.verification))
    elif seen := next((e.parity for e in report.exports if e.parity), None):
        ran = f"llama.cpp (llama-cpp-python {seen.llama_cpp_python})"
        runtimes.append(f"For this card, the files were run in {ran} and nowhere else.")
    label = "Exactly this code was run on these files in a fresh process before they were published. It printed:"
    printed = Printed(label=label, text=wrapped(run.output)) if run else None
    others = made and overview.other_runtimes(made.verification, report.plan, needs_file=code is not None)
    return Usage(
        snippet=run.code if run else "", printed=printed, code=code, runtimes=tuple(runtimes), others=others or ()
    )


# ---- how it was made ---------------------------------------------------------------------------------------------


def _quantized(made: QuantizedCheckpoint, *, mix: str, endpoint: str) -> Made:
    """Say what was done to the matrices, on which texts, and how that was checked; `mix` is the recipe's."""
    record = made.record
    rows = [
        ("Scheme", _scheme(record.scheme, record.group_size)),
        ("Method", METHODS[record.method]),
        ("Matrices", f"{count(record.matrices)}, {count(record.quantized_parameters)} weights"),
        ("Kept as they were", listing(record.ignored) or NONE),
        ("Bits per quantized weight, scales included", plain(record.bits_per_weight, digits=3)),
        ("Weights", f"{size(record.weight_bytes)} instead of {size(record.source_bytes)}"),
        ("Format", f"compressed-tensors {record.compressed_tensors}"),
    ]
    sentences = ["The matrices of the decoder layers have fewer bits; embedding, norms and head are those of the pruned"
                 " model, byte for byte."]  # fmt: skip
    if record.method == "gptq":
        sentences.append(
            "GPTQ rounds one column of a matrix after the other and compensates the error of each in the columns not"
            " rounded yet, by the second moments of the matrix's inputs on the texts below. Every layer sees the"
            " outputs of the quantized layers before it, and each matrix aims at its output before anything was"
            " quantized (GPTAQ)."
        )
    if seen := record.divergence:
        texts = "the same mix that were not calibrated on" if record.calibration else f"the mix {mix}"
        sentences.append(
            "KL divergence, top-1 agreement (how often the most likely token is the same) and perplexity are of"
            f" {count(seen.documents)} texts of {texts} ({count(seen.tokens)} positions); ± is one standard error over"
            " the texts."
        )
    checks = Table(
        columns=("Check", "Result", "What was seen"), align="lll",
        rows=tuple((c.name, "passed" if c.passed else "failed", c.detail) for c in made.verification.checks),
    )  # fmt: skip
    sentence = f"A fresh process loaded the written files with transformers {made.verification.transformers}."
    return Made(
        title="How it was quantized", sentences=tuple(sentences),
        table=Table(columns=("", "Value"), align="ll", rows=tuple(rows)), folded="The quantization in figures",
        calibration=calibration(record.calibration, endpoint=endpoint),
        verification=VerificationSummary(sentence=sentence, checks=checks),
    )  # fmt: skip


def _files(report: SiblingReport) -> Made:
    """List the files with their digests, and how close llama.cpp comes to transformers with each."""
    columns = (
        "File", "Bytes", "SHA-256", "Same next token", "Largest Δ logit", "Δ, share of the spread", "Same greedy text",
        "Same tokens", "Unpruned base, same next token",
    )  # fmt: skip
    rows = []
    for made in report.exports:
        cells = [NONE] * 6
        if compared := made.parity:
            seen, control = compared.model, compared.control
            cells = [
                f"{count(seen.agreed)} of {count(seen.positions)}", plain(seen.max_logit_difference, digits=4),
                plain(seen.relative_difference, digits=4), f"{seen.equal_greedy_texts} of {seen.greedy_texts}",
                f"{seen.equal_tokenized_texts} of {seen.tokenized_texts}",
                f"{count(control.agreed)} of {count(control.positions)}" if control else NONE,
            ]  # fmt: skip
        rows.append((made.file, count(made.size), made.sha256, *cells))
    first = report.exports[0]
    sentences = [
        f"Each file holds the whole model for llama.cpp's architecture {first.architecture}: {first.layers} layers, a"
        f" context of {count(first.context_length)} tokens, and its tokenizer ({first.tokenizer})."
    ]
    if compared := first.parity:
        sentences.append(
            f"Each was run with llama-cpp-python {compared.llama_cpp_python} and compared with the pruned model in"
            f" transformers {compared.transformers} on the same texts, token by token; the unpruned base, written the"
            " same way, is the control."
        )
        rules: dict[str, list[str]] = {}
        for rule, outtype in ((e.parity.rule, e.outtype) for e in report.exports if e.parity):
            rules.setdefault(rule, []).append(outtype)
        sentences += [f"Required of {listing(types)}: {rule}." for rule, types in rules.items()]
    sentences += dict.fromkeys(f"{note[0].upper()}{note[1:].rstrip('.')}." for e in report.exports for note in e.notes)
    table = Table(columns=columns, align="lrlrrrrrr", rows=tuple(rows))
    return Made(
        title="Files", sentences=tuple(sentences), table=table, folded="File by file: SHA-256 and the comparison",
        calibration=None, verification=None,
    )  # fmt: skip


def _limits(report: SiblingReport) -> Iterator[str]:
    made, four = report.quantized, report.benchmarks
    if four:
        yield from benchmark_limits(four.both)
        yield from unwritten(four.both)
    elif made:
        yield "No benchmark was run: what it costs there is not known."
    else:
        removal = f"on the card of {report.pruned}" if parse(Recipe, report.recipe).evaluation.tasks else "not known"
        yield (
            f"No benchmark was run on these files: what the removal cost is {removal}; of what their types add, only"
            " the comparison above tells."
        )
    if made and made.record.calibration:
        yield "Texts unlike those of the calibration may lose more."
    yield "Nothing was trained."
    yield "Not measured: speed, safety and bias, long contexts, free text, other languages."
