"""Compare a written GGUF file with its checkpoint in transformers, and decide whether it is the same model.

Code of the checkpoint is never run: where a stock class cannot load it, transformers gets the modeling file that this
version of hubprune renders, whatever the folder itself ships.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubprune.core.config import Structure, stock_config, write_json
from hubprune.core.console import size
from hubprune.core.devices import available_bytes, run_to_end
from hubprune.core.errors import VerificationError
from hubprune.core.files import scratch_folder
from hubprune.core.privacy import is_carried
from hubprune.core.templates import link_model
from hubprune.core.weights import open_weights
from hubprune.exporting.artifact import Outtype, Parity, ParityFigures
from hubprune.exporting.parity_process import ParityRequest, ParitySeen
from hubprune.exporting.writing import INSTALL, GgufContent

F32_TOLERANCE = 1e-3
"""Largest allowed difference of a logit where the file holds float32."""
ROUNDED: Mapping[Outtype, float] = {"f16": 0.01, "bf16": 0.04, "q8_0": 0.1}
"""Largest allowed relative difference where it does not: a few times what rounding costs."""
TIMES_CONTROL = 4.0
"""So many times the relative difference of the unpruned base is allowed as well, and no more."""
CONTROL_FLOOR = 0.1
"""Share of `ROUNDED` that is allowed even if the control is better still."""
NEW_TOKENS = 24
TOKENIZER = "tokenizer"
"""Subfolder of the tokenizer, whose config.json is one of the family: nothing is trusted to read it."""
PROMPTS = (
    "Paris is the capital of",
    "One day, a little girl named Lily found a needle in her room. She knew it was difficult to play with it",
    "The river was high, and the bridge had been closed since the morning. People stood in small groups and waited",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))",
)
TEXTS = (
    *PROMPTS,
    "Hello world",
    "It's 2024, isn't it? They'll say WE'RE late; I'D not.",
    "tabs\tand\nnewlines\r\n\r\nand   three spaces   \n  at both ends",
    "Zażółć gęślą jaźń — naïve café, Straße, Ελληνικά, русский, 日本語, 한국어, العربية",
    "emoji 🙂🙃 👩‍👩‍👧, flags 🇪🇺, math ∑∀∂ and e\u0301",
    "1234567890 3.14159 1,000,000 0x1F $9.99 50%",
    "x=[{'a':1}];//**!!??...___---  <tag> </tag> <|x|> & \\n @user #1",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbb  cccc",
)


def obstacle(folder: Path) -> str | None:
    """Say why a comparison is impossible here, or None."""
    if importlib.util.find_spec("llama_cpp") is None:
        return f"llama-cpp-python is not installed ({INSTALL})"
    needed, there = 4 * open_weights(folder).parameters(), available_bytes()
    if needed > 0.8 * there:
        return f"transformers would need {size(needed)} of memory in float32, and {size(there)} are free"
    return None


def measure(
    file: Path, content: GgufContent, *, folder: Path, config: Mapping[str, Any], structure: Structure
) -> ParitySeen:
    """Run a file in llama.cpp and its checkpoint in transformers, both in one fresh process.

    Raises:
        VerificationError: one of the two does not load or run.
    """
    with _reference_folder(folder, config, structure) as reference:
        request = ParityRequest(
            folder=str(reference),
            tokenizer_folder=str(reference / TOKENIZER),
            custom_code=structure.layout != "stock",
            gguf=str(file.resolve()),
            texts=TEXTS,
            prompts=PROMPTS,
            new_tokens=max(1, min(NEW_TOKENS, content.sizes.context_length // 2)),
            context_length=content.sizes.context_length,
            tolerance=F32_TOLERANCE,
        )
        with scratch_folder(name="hubprune-modules") as modules:
            # transformers copies the modeling file into a cache of modules before it imports it; ours is thrown away.
            done = run_to_end(
                [sys.executable, "-m", "hubprune.exporting.parity_process"],
                input=request.model_dump_json(),
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "HF_MODULES_CACHE": str(modules)},
            )
    if done.returncode == -9:
        raise VerificationError(
            "The fresh process that compares the export was killed.", hint="Most likely the memory was too small."
        )
    try:
        return ParitySeen.model_validate_json(done.stdout.splitlines()[-1])
    except (IndexError, ValidationError) as error:
        raise VerificationError(f"The export could not be compared: {_reason(done.stderr)}") from error


@contextmanager
def _reference_folder(folder: Path, config: Mapping[str, Any], structure: Structure) -> Iterator[Path]:
    """Yield a folder with links to the weights and with code that is ours, if any; a subfolder has the tokenizer."""
    with scratch_folder(name="hubprune-parity") as made:
        model = made / "model"
        tokenizer = model / TOKENIZER
        tokenizer.mkdir(parents=True)
        link_model(config, structure, folder, model)
        write_json(stock_config(config, structure), tokenizer)
        for path in filter(Path.is_file, folder.iterdir()):
            if is_carried(path.name):
                (tokenizer / path.name).symlink_to(path.resolve())
        yield model


def _reason(text: str) -> str:
    """Return the line of a log that says most: llama.cpp's error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "GGML_ASSERT" in line]
    loading = [line for line in telling if "error loading model" in line or "GGML_ASSERT" in line]
    return (loading or telling[-1:] or lines[-1:] or ["it ended without a word."])[0]


def _rule(outtype: Outtype) -> str:
    texts = "texts cut into the same tokens"
    if outtype == "f32":
        return f"logits within {F32_TOLERANCE:g}, the same next tokens, the same greedy texts, {texts}"
    return (
        f"logits within {ROUNDED[outtype]:.0%} of their spread (root mean square) and within {TIMES_CONTROL:g} times "
        f"what the control differs, {texts}"
    )


def failures(outtype: Outtype, model: ParityFigures, control: ParityFigures | None) -> tuple[str, ...]:
    """List what an export does not fulfil, given its figures and those of the unpruned base, where there is one."""
    found = []
    if outtype != "f32":
        limit = ROUNDED[outtype]
        if control is not None:
            limit = min(limit, max(TIMES_CONTROL * control.relative_difference, CONTROL_FLOOR * limit))
        if model.relative_difference > limit:
            found.append(f"logits differ by {model.relative_difference:.2%} of their spread, {limit:.2%} are allowed")
    else:
        if model.max_logit_difference > F32_TOLERANCE:
            found.append(f"a logit differs by {model.max_logit_difference:.2e}")
        if other := model.positions - model.agreed - model.undecided:
            found.append(f"another next token at {other} of {model.positions} positions")
        if other := model.greedy_texts - model.equal_greedy_texts:
            found.append(f"{other} of {model.greedy_texts} greedy texts differ")
    if different := model.tokenized_texts - model.equal_tokenized_texts:
        found.append(f"{different} of {model.tokenized_texts} texts are cut into other tokens")
    if control is not None:
        found += [f"control: {line}" for line in failures(outtype, control, None)]
    return tuple(found)


def judge(outtype: Outtype, seen: ParitySeen, *, control: ParitySeen | None, without_control: str | None) -> Parity:
    """Put both comparisons together."""
    other = control.figures if control else None
    failed = failures(outtype, seen.figures, other)
    if seen.first_different_text is not None:
        failed = (*failed, f"the first is {seen.first_different_text!r:.80}")
    return Parity(
        model=seen.figures,
        control=other,
        without_control=without_control,
        rule=_rule(outtype),
        failures=failed,
        transformers=seen.transformers,
        llama_cpp_python=seen.llama_cpp_python,
    )


def require_passed(parity: Parity) -> None:
    """Raise VerificationError that says what was not fulfilled, if anything."""
    if parity.failures:
        raise VerificationError(
            f"llama.cpp does not compute what transformers does: {'; '.join(parity.failures)}.",
            hint="No file was kept. This is a bug worth reporting, with the name of the base.",
        )
