"""What a notebook calls: the commands as functions, with the same names, defaults and errors, and artifacts as results.

A function makes the same request as its command and hands it to the same workflow.  It talks on stderr, or in the page
of a notebook, raises `HubpruneError`s instead of exiting, and prints nothing on stdout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING
from functools import wraps
from inspect import Parameter, Signature, getdoc
from pathlib import PurePath
from textwrap import fill
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hubprune.core import requests
from hubprune.core.console import Reporter
from hubprune.core.errors import RecipeError
from hubprune.core.extras import missing, require
from hubprune.core.memory import at_most, budget_of
from hubprune.core.options import Asked, OnHub, options_of, renamed

if TYPE_CHECKING:
    from hubprune.core.artifacts import (
        Adoption,
        CheckpointComparison,
        Checkup,
        Frontier,
        GgufExport,
        HealedCheckpoint,
        LayerScores,
        PrunedCheckpoint,
        PublishReport,
        QuantizedCheckpoint,
        Reproduction,
        ScoreStudy,
        SpeedReport,
        SweepReport,
        Verification,
    )

P = ParamSpec("P")
AnyRequest = TypeVar("AnyRequest", bound=OnHub)
Result = TypeVar("Result")
QUIET = "Leave stages and progress out of stderr; warnings are shown."
WIDTH = 116


def _taking(kind: Callable[P, AnyRequest]) -> Callable[[Callable[[AnyRequest, Reporter], Result]], Callable[P, Result]]:
    """Let a function of a request and a reporter take the options of the request themselves."""
    asked = options_of(kind)  # type: ignore[arg-type] # what is passed is the class
    positional = {name for name, field in kind.__dataclass_fields__.items() if not field.kw_only}  # type: ignore[attr-defined]
    parameters = [
        Parameter(
            option.name,
            Parameter.POSITIONAL_OR_KEYWORD if option.name in positional else Parameter.KEYWORD_ONLY,
            default=Parameter.empty if option.default is MISSING else option.default,
            annotation=option.type,
        )
        for option in asked
    ]
    parameters.append(Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=bool))
    parameters.sort(key=lambda parameter: parameter.kind)
    helps = {**{option.name: option.option.help for option in asked}, "quiet": QUIET}

    def decorate(body: Callable[[AnyRequest, Reporter], Result]) -> Callable[P, Result]:
        """Give the function the parameters of the request, and a help for each."""
        signature = Signature(parameters, return_annotation=body.__annotations__["return"])

        @wraps(body)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            """Make the request, and a reporter for it."""
            named, used = renamed(asked, kwargs)
            given = signature.bind(*args, **named).arguments  # whose TypeError names what does not fit
            read = {option.name: _read(option, given[option.name]) for option in asked if option.name in given}
            request = kind(**read, quiet=given.get("quiet", False))  # type: ignore[call-arg] # by name, all of them
            from hubprune import notebook  # noqa: F401 - it makes the results show themselves

            reporter = Reporter(quiet=request.quiet)
            for old, name in used.items():
                reporter.note(f"{old} is called {name} now")
            require(request.needs, doing=body.__name__)
            try:
                with at_most(budget_of(request)):
                    return body(request, reporter)
            except ModuleNotFoundError as error:
                raise missing(error) or error from error

        lines = (f"{parameter.name}: {helps[parameter.name]}" for parameter in parameters)
        told = "\n".join(fill(line, WIDTH, initial_indent="    ", subsequent_indent="        ") for line in lines)
        text, _, rest = str(getdoc(body)).partition("\n\nReturns:")
        call.__doc__ = f"{text}\n\nArgs:\n{told}\n\nReturns:{rest}\n"
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


def _read(asked: Asked, value: Any) -> Any:
    """Take a value as its option has it; of numpy, torch and paths, what the command line would be told.

    Raises:
        RecipeError: it is of another type, or out of bounds.
    """
    from pydantic import TypeAdapter, ValidationError

    if hasattr(value, "tolist"):
        value = value.tolist()
    elif isinstance(value, PurePath) or type(value).__module__ == "torch":
        value = str(value)
    elif isinstance(value, (set, frozenset, range)):
        value = sorted(value)
    option = asked.option
    try:
        read = TypeAdapter(asked.type).validate_python(value)
    except ValidationError as error:
        raise RecipeError(f"{asked.name} cannot be {value!r:.80}.", hint=option.help) from error
    low, high = option.least, option.most
    if isinstance(read, (int, float)) and ((low is not None and read < low) or (high is not None and read > high)):
        bounds = " and ".join(f"at {word} {end:g}" for word, end in (("least", low), ("most", high)) if end is not None)
        raise RecipeError(f"{asked.name} is {read}, and has to be {bounds}.", hint=option.help)
    return read


@_taking(requests.ScoreRequest)
def score(request: requests.ScoreRequest, reporter: Reporter) -> LayerScores | ScoreStudy | Frontier:
    """Score attention, MLP and block importance of every layer of a base: once, or side by side.

    Returns:
        The scores; where revisions, mixes or numbers of samples are several, a study of them; the frontier where that
        is asked for.
    """
    from hubprune.workflows.score import conduct

    return conduct(request, reporter=reporter).value


@_taking(requests.SweepRequest)
def sweep(request: requests.SweepRequest, reporter: Reporter) -> SweepReport:
    """Measure what every number of drops costs, without writing a checkpoint, and recommend one.

    Returns:
        All points, and one recommendation per method.
    """
    from hubprune.workflows import sweep as sweeping

    return sweeping.sweep(request, reporter=reporter)


@_taking(requests.PruneRequest)
def prune(request: requests.PruneRequest, reporter: Reporter) -> PrunedCheckpoint:
    """Write a pruned and verified checkpoint into a folder; publish nothing.

    Returns:
        What was written, and how it was verified.

    Raises:
        VerificationError: it does not compute what it should; nothing is left of it then.
    """
    from hubprune.workflows import prune as workflow

    return workflow.prune(request, reporter=reporter)


@_taking(requests.AdoptRequest)
def adopt(request: requests.AdoptRequest, reporter: Reporter) -> Adoption:
    """Read what others published pruned, and write it anew so that it loads where a folder is asked for.

    Returns:
        What of its base is left in it, whether that is the base's as it was, and what was written.

    Raises:
        BaseNotFoundError: there is no such folder or repo, or it names no base.
        CheckpointError: it is nothing that can be adopted.
        UnsupportedFormatError: its weights are quantized or pickled.
        VerificationError: the result does not compute what it should; nothing is left of it then.
    """
    from hubprune.workflows import adopt as workflow

    return workflow.adopt(request, reporter=reporter)


@_taking(requests.HealRequest)
def heal(request: requests.HealRequest, reporter: Reporter) -> HealedCheckpoint:
    """Train a pruned folder or repo until it says again what its base does, and write it, verified, into a folder.

    Returns:
        What was written, how it was trained, and how much came back.

    Raises:
        HealingError: the loss is no number any more, or the memory is too small.
        VerificationError: the result does not compute what it should; nothing is left of it then.
    """
    from hubprune.workflows import heal as healing

    return healing.heal(request, reporter=reporter)


@_taking(requests.QuantizeRequest)
def quantize(request: requests.QuantizeRequest, reporter: Reporter) -> QuantizedCheckpoint:
    """Write a checkpoint, pruned or not, in fewer bits into a folder, and verify it; publish nothing.

    Returns:
        What was written, how far its next tokens are from those before, and how it was verified.

    Raises:
        UnsupportedFormatError: it is quantized already.
        VerificationError: it does not compute what it should; nothing is left of it then.
    """
    from hubprune.workflows import quantize as workflow

    return workflow.quantize(request, reporter=reporter)


@_taking(requests.VerifyRequest)
def verify(request: requests.VerifyRequest, reporter: Reporter) -> Verification:
    """Check a pruned folder or repo against its base: files, loading, logits, KV cache.

    Returns:
        All checks, each of them passed.

    Raises:
        VerificationError: a check failed, or it ships code that is not trusted.
    """
    from hubprune.workflows.verify import check, require_passed

    seen = check(request, reporter=reporter)
    require_passed(seen)
    return seen


@_taking(requests.PublishRequest)
def publish(request: requests.PublishRequest, reporter: Reporter) -> PublishReport:
    """Score, prune, verify, benchmark and publish a base in one commit, then load it back.

    Returns:
        All that was found, and where it is; of a dry run, what would be sent.

    Raises:
        OverBudgetError: it lost more than was allowed; nothing was published.
        EditedError: somebody changed on the Hub what an earlier publish wrote.
        VerificationError: it does not compute what it should, or does not load afterwards.
    """
    from hubprune.workflows import publish as pipeline

    return pipeline.publish(request, reporter=reporter)


@_taking(requests.PushRequest)
def push(request: requests.PushRequest, reporter: Reporter) -> PublishReport:
    """Publish what a dry run made, on another machine and with another token if need be; nothing is computed again.

    Returns:
        The report of the dry run, with where it is now.

    Raises:
        VerificationError: a file was changed since, or it does not load afterwards.
    """
    from hubprune.workflows import push as pushing

    return pushing.push(request, reporter=reporter)


@_taking(requests.DoctorRequest)
def doctor(request: requests.DoctorRequest, reporter: Reporter) -> Checkup:
    """Look at this machine and the Hub, and at what every stage of a publish of a base would need; compute nothing.

    Returns:
        All that was found, each with what to do about it, and the needs; `failed` says whether something is in the way.
    """
    from hubprune.workflows import doctor as looking

    return looking.doctor(request, reporter=reporter)


@_taking(requests.CompareRequest)
def compare(request: requests.CompareRequest, reporter: Reporter) -> CheckpointComparison:
    """Compare two pruned folders, repos, reports or plans: what went, what is left, what was measured.

    Returns:
        Both sides, and what of them is different.
    """
    from hubprune.workflows import compare as comparison

    return comparison.compare(request)


@_taking(requests.ReproduceRequest)
def reproduce(request: requests.ReproduceRequest, reporter: Reporter) -> Reproduction:
    """Run the recipe of a published result again, publish nothing, and say what is equal and what differs.

    Returns:
        All parts, each with its differences; `equal` says whether there are any.
    """
    from hubprune.workflows import reproduce as again

    return again.reproduce(request, reporter=reporter)


@_taking(requests.SpeedRequest)
def speed(request: requests.SpeedRequest, reporter: Reporter) -> SpeedReport:
    """Time a pruned folder or repo against its base in paired rounds, and measure the memory of both.

    Returns:
        Every measure of every depth with its interval, and the memory of both.
    """
    from hubprune.workflows.speed import measure_speed

    return measure_speed(request, reporter=reporter)


@_taking(requests.ExportRequest)
def export_gguf(request: requests.ExportRequest, reporter: Reporter) -> GgufExport:
    """Write a GGUF file for llama.cpp, and compare it with the checkpoint in transformers.

    Returns:
        What the file holds, where it is, and how close it is.

    Raises:
        VerificationError: llama.cpp computes something else; no file is kept.
    """
    from hubprune.workflows import export

    return export.export_gguf(request, reporter=reporter)


@_taking(requests.LoadRequest)
def load(request: requests.LoadRequest, reporter: Reporter) -> tuple[Any, Any]:
    """Load what hubprune wrote, as its card says: ready to generate, and no code but our own is run unless trusted.

    Returns:
        The model in evaluation mode, which generates greedily unless told otherwise, and its tokenizer.

    Raises:
        VerificationError: loading it would run code that this version of hubprune does not write.
    """
    from hubprune.workflows.verify import load_pruned

    return load_pruned(request, reporter=reporter)
