"""Decide from what a comparison saw whether a GGUF file is the same model.

Where nothing is rounded, all has to be equal.  Where something is, logits may differ by a share of their spread, and by
no more than a few times what the unpruned base loses in the same way; types of few bits are held to the base's
divergence and agreement too, since what rounding costs there depends on the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from hubprune.core.artifacts import PLAIN_TYPES, Outtype, Parity, ParityFigures
from hubprune.core.errors import VerificationError
from hubprune.exporting.parity import F32_TOLERANCE, ParitySeen
from hubprune.exporting.writing import GgufContent

ROUNDED: Mapping[Outtype, float] = {
    "f16": 0.01, "bf16": 0.04, "q8_0": 0.1, "q6_k": 0.25, "q5_k_m": 0.5, "q5_k_s": 0.5, "q5_1": 0.5, "q5_0": 0.5,
    "q4_k_m": 0.8, "q4_k_s": 0.8, "q4_1": 0.8, "q4_0": 0.8, "iq4_nl": 0.8, "iq4_xs": 0.8,
    "q3_k_l": 1.0, "q3_k_m": 1.0, "q3_k_s": 1.0, "q2_k": 1.1,
}  # fmt: skip
"""Largest allowed relative difference where values are rounded: several times what it costs a trained model, and at
few bits no less than what it costs one of random weights.  Logits that have nothing in common differ by 1.4."""
TIMES_CONTROL = 4.0
"""So many times the relative difference of the unpruned base is allowed as well, and no more."""
CONTROL_FLOOR = 0.1
"""Share of `ROUNDED` that is allowed even if the control is better still."""
TIMES_DIVERGENCE = 3.0
"""So many times the divergence of the unpruned base is allowed to types of few bits."""
DIVERGENCE_FLOOR = 0.01
"""Nats that are allowed even if the control is better still."""
LESS_AGREEMENT = 0.2
"""By so much the share of equal next tokens may be below the base's: it is counted on about two hundred tokens."""


def failures(
    outtype: Outtype, model: ParityFigures, control: ParityFigures | None, *, rough: bool = False
) -> tuple[str, ...]:
    """List what an export does not fulfil, given its figures and those of the unpruned base, where there is one.

    `rough` says that llama.cpp takes the family's activation from a table of float16 values.
    """
    found = []
    if (limit := _rounded(outtype, rough=rough)) is not None:
        if control is not None:
            limit = min(limit, max(TIMES_CONTROL * control.relative_difference, CONTROL_FLOOR * limit))
        if model.relative_difference > limit:
            found.append(f"logits differ by {model.relative_difference:.2%} of their spread, {limit:.2%} are allowed")
        if control is not None and outtype not in PLAIN_TYPES:
            found += _beside_control(model, control)
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
        found += [f"control: {line}" for line in failures(outtype, control, None, rough=rough)]
    return tuple(found)


def _rounded(outtype: Outtype, *, rough: bool) -> float | None:
    """Return the relative difference that rounding may cost, None where nothing is rounded."""
    return ROUNDED.get("f16" if rough and outtype == "f32" else outtype)


def _beside_control(model: ParityFigures, control: ParityFigures) -> list[str]:
    found = []
    allowed = max(TIMES_DIVERGENCE * (control.kl_divergence or 0.0), DIVERGENCE_FLOOR)
    if model.kl_divergence is not None and model.kl_divergence > allowed:
        found.append(f"next tokens diverge by {model.kl_divergence:.3f} nats, {allowed:.3f} are allowed")
    ours, theirs = (figures.agreed / max(1, figures.positions) for figures in (model, control))
    if ours < theirs - LESS_AGREEMENT:
        found.append(f"{ours:.0%} of next tokens are the same, and {theirs:.0%} of the control's")
    return found


def judge(content: GgufContent, seen: ParitySeen, *, control: ParitySeen | None, without_control: str | None) -> Parity:
    """Put both comparisons together."""
    outtype, rough = content.outtype, content.family.rough_activation
    rule = "texts cut into the same tokens"
    if (limit := _rounded(outtype, rough=rough)) is None:
        rule = f"logits within {F32_TOLERANCE:g}, the same next tokens, the same greedy texts, {rule}"
    else:
        if control is not None and outtype not in PLAIN_TYPES:
            share = f"{100 * LESS_AGREEMENT:g} points of its share of the same next tokens"
            rule = f"at most {TIMES_DIVERGENCE:g} times its divergence, within {share}, {rule}"
        beside = f" and within {TIMES_CONTROL:g} times what the control differs" if control is not None else ""
        rule = f"logits within {limit:.0%} of their spread (root mean square){beside}, {rule}"
    other = control.figures if control else None
    failed = failures(outtype, seen.figures, other, rough=rough)
    if seen.first_different_text is not None:
        failed = (*failed, f"the first is {seen.first_different_text!r:.80}")
    return Parity(
        model=seen.figures, control=other, without_control=without_control, rule=rule, failures=failed,
        transformers=seen.transformers, llama_cpp_python=seen.llama_cpp_python,
    )  # fmt: skip


def require_passed(parity: Parity) -> None:
    """Raise VerificationError that says what was not fulfilled, if anything."""
    if parity.failures:
        message = f"llama.cpp does not compute what transformers does: {'; '.join(parity.failures)}."
        hint = "No file was kept. This is a bug worth reporting, with the name of the base."
        raise VerificationError(message, hint=hint)
