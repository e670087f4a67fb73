"""The end of the card: how to reproduce it, whose terms apply, what to cite.

What a base's licence asks of a model that is built from it is done before: its name, and the line in a NOTICE file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from hubprune.cards.commands import publish_command, reproduce_command
from hubprune.cards.context import Licence, Link, Reproduction, Table
from hubprune.cards.markdown import listing
from hubprune.core.artifacts import BaseCard, BaseCheckpoint, DropPlan, Environment, PublishReport, Refreshed
from hubprune.core.console import duration
from hubprune.core.devices import why_cast
from hubprune.core.errors import RecipeError
from hubprune.core.files import write_atomically
from hubprune.core.privacy import is_license, page
from hubprune.core.recipe import Recipe

STAGES: Mapping[str, str] = {
    "rounds": "scores of later rounds",
    "checkpoint": "pruning and verification",
    "benchmarks": "benchmarks of both",
    "base-text": "free text of the base",
    "generation": "free text of this model",
    "snippet": "the code under Use it",
    "generation-healed": "free text of this model",
    "snippet-healed": "the code under Use it",
    "snippet-quantized": "the code under Use it",
    "snippet-gguf": "the code under Use it",
    "runtimes": "the same in other runtimes",
    "quantize": "quantizing and verification",
    "control": "the base quantized, as a control",
    "four": "benchmarks of both, quantized",
    "heal": "training and verification",
    "taken": "what was trained elsewhere, written and verified",
    "three": "benchmarks of this model",
}
"""Stage of a run -> what the card calls it."""
TIMES = ("Stage", "Time")
TIMES_TABLE = re.compile(rb"^\| Stage \| Time \|\n(?:\|.*\n?)*", re.MULTILINE)
"""That table as the card has it."""


def reproduction(report: PublishReport, *, recipe: Recipe, tag: str | None) -> Reproduction:
    """Collect commands, versions, hardware and times."""
    return Reproduction(
        check=reproduce_command(recipe, repo_id=report.repo_id, tag=tag),
        command=publish_command(recipe),
        needs_tasks=recipe.evaluation.include_path is not None,
        refreshed=_told_refreshes(report.refreshed) if report.refreshed else None,
        environment=circumstances(report.base, report.environment, endpoint=report.endpoint, cast=_cast(report)),
        seconds=times(report.seconds),
    )


def circumstances(
    base: BaseCheckpoint, environment: Environment, *, endpoint: str, cast: Iterable[tuple[str, str]] = ()
) -> Table:
    """List base, hardware and versions; `cast` says in which dtype everything was computed, where that needs saying."""
    rows = (
        ("Base", base.name),
        *([("Base commit", base.commit[:8])] if base.commit else []),
        ("Hardware", f"{environment.machine}, {environment.threads} thread{'s'[: environment.threads - 1]}"),
        ("Platform", environment.platform),
        *cast,
        ("hubprune", environment.hubprune),
        ("Python", environment.python),
        *sorted(environment.versions.items()),
    )
    url = page(quote(base.name, errors="replace"), endpoint=endpoint) if base.commit else None
    links = {base.commit[:8]: f"{url}/tree/{base.commit}"} if url and base.commit else {}
    return Table(columns=("", "Value"), align="ll", rows=rows, links=links)


def times(seconds: Mapping[str, float]) -> Table | None:
    """List what every stage took; None where nothing was timed."""
    names = {stage: STAGES.get(stage, stage.replace("gguf-", "writing and comparing ")) for stage in seconds}
    rows = tuple((names[stage], duration(taken)) for stage, taken in seconds.items())
    return Table(columns=TIMES, align="lr", rows=rows) if rows else None


def _cast(report: PublishReport) -> Iterator[tuple[str, str]]:
    """Say in which dtype everything was measured, where the files have another and nobody asked for it."""
    measured = report.benchmarks or report.generation or report.scores
    if measured is None or report.recipe.get("dtype", "auto") != "auto":
        return
    if why := why_cast(report.base.config, computed=measured.dtype, device=measured.device):
        yield "Computed in", f"{measured.dtype}: {why}"


def _told_refreshes(refreshed: tuple[Refreshed, ...]) -> str:
    """Say in one line which files are those of a later version, and with which ones everything was measured."""
    first, last = refreshed[0], refreshed[-1]
    paths = sorted({file.path for refresh in refreshed for file in refresh.files})
    there = f"tag {first.tag}" if first.tag else f"commit {first.commit[:12]}"
    return (
        f"Refreshed with hubprune {last.to_version}, which wrote {listing(paths)} anew and computed nothing: the"
        " weights are the same, and all that this card tells of was measured with the files of hubprune"
        f" {first.from_version}, {there}."
    )


def without_times(card: bytes) -> bytes:
    """Leave the table of wall-clock times out of a card: two runs of the same never take the same seconds."""
    return TIMES_TABLE.sub(b"", card)


# ---- terms -------------------------------------------------------------------------------------------------------


NOTICE_NAMES = ("NOTICE", "NOTICE.base-licence")
"""Where the line of a licence goes: into the first of these that the base does not fill itself."""


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What one licence wants to see, to the letter."""

    name: str
    attribution: str = ""
    """The line to show prominently."""
    notice: str = ""
    """The line of the NOTICE file."""
    prefix: str = ""
    """How the name of the model has to begin."""
    copy: bool = True
    """Whether the text of the licence has to travel with the model."""


def _llama(version: str) -> _Terms:
    name = f"Llama {version} Community License"
    notice = f"Llama {version} is licensed under the {name}, Copyright © Meta Platforms, Inc. All Rights Reserved."
    return _Terms(name=f"{name} Agreement", attribution="Built with Llama", notice=notice, prefix="Llama")


TERMS: Mapping[str, _Terms] = {
    "llama2": _Terms(
        name="LLAMA 2 Community License Agreement",
        notice="Llama 2 is licensed under the LLAMA 2 Community License,"
        " Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    ),
    "llama3": _Terms(
        name="Meta Llama 3 Community License Agreement",
        attribution="Built with Meta Llama 3",
        notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License,"
        " Copyright © Meta Platforms, Inc. All Rights Reserved.",
        prefix="Llama 3",
    ),
    **{f"llama{version}": _llama(version) for version in ("3.1", "3.2", "3.3", "4")},
    "gemma": _Terms(
        name="Gemma Terms of Use",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
    "apache-2.0": _Terms(name="Apache License 2.0"),
    "mit": _Terms(name="MIT License"),
}
"""Licence id on the Hub -> its terms."""
UNKNOWN = _Terms(name="", copy=False)
NOT_NAMED = ("", "unknown")


def card_in_force(base: BaseCheckpoint, *, given: str | None) -> BaseCard:
    """Return the base's card with its licence; where it names none, with the one that the publisher gave."""
    return base.card if given is None or license_name(base.card) else base.card.model_copy(update={"license": given})


def license_name(card: BaseCard) -> str | None:
    """Return the licence by its most telling name: `license_name` where `license` only says `other`."""
    name = card.license_name if card.license in (None, "other") and card.license_name else card.license
    return None if (name or "").lower() in NOT_NAMED else name


def _terms(card: BaseCard) -> _Terms:
    return TERMS.get((license_name(card) or "").lower(), UNKNOWN)


def check_license(recipe: Recipe, *, base: BaseCheckpoint) -> None:
    """Refuse a licence that is not the one that the base's card names.

    Raises:
        RecipeError: with both.
    """
    given, named = recipe.target.license, license_name(base.card)
    if given and named and given.lower() not in (named.lower(), str(base.card.license).lower()):
        raise RecipeError(
            f"--license {given} is not the licence of {base.name}, whose card says {named}.",
            hint="Leave --license out: a pruned model has its base's licence.",
        )


def check_name(repo_id: str, *, card: BaseCard, allowed: bool = False) -> None:
    """Refuse a name, with a namespace or without, that the licence does not allow; case and hyphens do not count.

    Raises:
        RecipeError: with a name that is allowed.
    """
    namespace, slash, name = repo_id.rpartition("/")
    prefix, bare = _terms(card).prefix, bare_name(name, card=card)
    if allowed or _begins(name, prefix):
        return
    example = bare if _begins(bare, prefix) else f"{prefix.replace(' ', '-')}-{name}"
    raise RecipeError(
        f"Under the licence {license_name(card)}, {name!r} has to begin with {prefix!r}.",
        hint=f"Pass --repo-id {namespace}{slash}{example}, for example, or --allow-name where the owner allows yours.",
    )


def bare_name(name: str, *, card: BaseCard) -> str:
    """Return a name without the Meta- before it that the licence of the base does not allow there."""
    prefix, bare = _terms(card).prefix, name.removeprefix("Meta-")
    return bare if prefix and _begins(bare, prefix) else name


def _begins(name: str, prefix: str) -> bool:
    name, prefix = (text.lower().replace("-", "").replace("_", "").replace(" ", "") for text in (name, prefix))
    return name.startswith(prefix)


def attribution_line(card: BaseCard) -> str | None:
    """Return the line that the base's licence asks for, or None."""
    return _terms(card).attribution or None


def notice_text(card: BaseCard) -> str | None:
    """Return the one line that the base's licence wants in a NOTICE file, or None."""
    return _terms(card).notice or None


def add_notice(folder: Path, *, card: BaseCard) -> None:
    """Write the line that the licence asks for into a NOTICE file, unless one of the base's own has it."""
    line = notice_text(card)
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("NOTICE*"))
    if line and not any(line in text for text in texts):
        name = next(name for name in NOTICE_NAMES if not (folder / name).exists())
        write_atomically(folder / name, f"{line}\n")


def license_files(base: BaseCheckpoint) -> tuple[str, ...]:
    """List the base's licence files, which are copied at the pinned commit."""
    return tuple(sorted(file.path for file in base.files if is_license(file.path)))


def license_warnings(base: BaseCheckpoint, *, given: str | None) -> Iterator[str]:
    """Say on top of the card where nobody but the publisher, or nobody at all, names a licence."""
    if license_name(base.card):
        return
    if given:
        yield f"the card of the base names no licence; {given} was given by whoever published this model."
    else:
        yield "the card of the base names no licence. Find out what its owner allows before you use this model."


def licence(base: BaseCheckpoint, *, plan: DropPlan, name: str, given: str | None, then: str = "") -> Licence:
    """Say whose terms apply, what they ask for, and where something of that is missing; no licence gets no guess.

    `then` is what was done to the files after the removal, as in "then its matrices were quantized".
    """
    card, copied = card_in_force(base, given=given), license_files(base)
    named, terms = license_name(card), _terms(card)
    told = f"{terms.name} ({named})" if terms.name else named
    where = f"for the pruned model, {then}" if then else "as described above"
    sentences = [f"The files of {base.name} were changed: {plan.parts} were removed {where}."]
    if named is None:
        sentences.append("The base's card names no licence, so none is given here.")
    elif license_name(base.card) is None:
        by = "The base's card names no licence; whoever published this model gave this one"
        sentences.append(f"{by}: {told}.")
    else:
        sentences.append(f"The licence of the base applies: {told}.")
    if terms.notice:
        sentences.append(f"A NOTICE file holds the line that it asks for: “{terms.notice}”")
    if not _begins(name, terms.prefix):
        sentences.append(f"The licence asks for a name that begins with “{terms.prefix}”, which this one does not.")
    if copied:
        sentences.append("Copied from the base at its commit, byte for byte: the files below.")
    elif terms.copy:
        missing = "the base's repo holds none that could be copied"
        sentences.append(f"It asks for a copy of its text with the model; {missing}.")
    links = tuple(Link(name=path, url=quote(path)) for path in copied)
    return Licence(name=named, sentences=tuple(sentences), files=links)


# ---- citations ---------------------------------------------------------------------------------------------------


def citations(
    base: BaseCheckpoint, plan: DropPlan, *, endpoint: str, measured: bool, also: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return BibTeX entries for the base at its endpoint, the methods, the benchmarks if any were run, and hubprune."""
    owner, _, name = (part.replace("_", r"\_") for part in base.name.rpartition("/"))
    url = page(base.name, endpoint=endpoint) if base.commit else None
    fields = {
        "title": name,
        "author": f"{{{owner}}}" if owner else "",
        "howpublished": f"\\url{{{url}}}" if url else "",
        "note": f"Commit {base.commit}" if base.commit else "",
    }
    lines = [f"  {key} = {{{value}}}" for key, value in fields.items() if value]
    cited = ["@misc{base,\n" + ",\n".join(lines) + "\n}"]
    cited += [PAPER] if plan.dropped else []
    cited += [WIDTH_PAPER] if plan.widths else []
    return (*cited, *also, *([LM_EVAL] if measured else []), HUBPRUNE)


PAPER = """\
@article{he2024matters,
  title = {What Matters in Transformers? Not All Attention is Needed},
  author = {He, Shwai and Sun, Guoheng and Shen, Zheyu and Li, Ang},
  journal = {arXiv preprint arXiv:2406.15786},
  year = {2024}
}"""

WIDTH_PAPER = """\
@article{martra2025fragile,
  title = {Fragile Knowledge, Robust Instruction-Following: The Width Pruning Dichotomy in Llama-3.2},
  author = {Martra, Pere},
  journal = {arXiv preprint arXiv:2512.22671},
  year = {2025}
}"""

GPTQ = """\
@article{frantar2022gptq,
  title = {GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers},
  author = {Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan},
  journal = {arXiv preprint arXiv:2210.17323},
  year = {2022}
}"""

GPTAQ = """\
@inproceedings{li2025gptaq,
  title = {GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration},
  author = {Li, Yuhang and Yin, Ruokai and Lee, Donghyun and Xiao, Shiting and Panda, Priyadarshini},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  year = {2025}
}"""

LORA = """\
@article{hu2021lora,
  title = {LoRA: Low-Rank Adaptation of Large Language Models},
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and
            Wang, Lu and Chen, Weizhu},
  journal = {arXiv preprint arXiv:2106.09685},
  year = {2021}
}"""

LM_EVAL = """\
@misc{eval-harness,
  title = {The Language Model Evaluation Harness},
  author = {Gao, Leo and Tow, Jonathan and Abbasi, Baber and Biderman, Stella and Black, Sid and DiPofi, Anthony and
            Foster, Charles and Golding, Laurence and Hsu, Jeffrey and Le Noac'h, Alain and Li, Haonan and
            McDonell, Kyle and Muennighoff, Niklas and Ociepa, Chris and Phang, Jason and Reynolds, Laria and
            Schoelkopf, Hailey and Skowron, Aviya and Sutawika, Lintang and Tang, Eric and Thite, Anish and
            Wang, Ben and Wang, Kevin and Zou, Andy},
  publisher = {Zenodo},
  year = {2024},
  doi = {10.5281/zenodo.12608602}
}"""

HUBPRUNE = """\
@software{hubprune,
  title = {hubprune: prune a language model, measure what it cost, publish the result},
  author = {{The hubprune authors}}
}"""
