"""Every error that hubprune raises on purpose.

A `HubpruneError` is a mistake or a circumstance that the user can do something about: its message says what happened,
with which value, and its hint says what to do next.  Anything else that escapes is a bug and shows its traceback.

    HubpruneError
    ├── RecipeError                  the recipe or an option has a value that cannot be used
    │   └── PlanError                the requested drop does not fit the base
    ├── BaseError                    the base cannot be used
    │   ├── BaseNotFoundError        no repo or folder of that name, or no such revision
    │   ├── GatedBaseError           the repo exists, this token was not granted access
    │   ├── UnsupportedArchitectureError   no entry for the base's model_type
    │   └── UnsupportedFormatError   weights that are not safetensors
    ├── CheckpointError              a safetensors file, an index or a config.json that is broken or hostile
    ├── CalibrationError             a data set of the calibration mix that is missing, too small or not text
    ├── ScoringError                 NaN scores, or nothing to average
    ├── HealingError                 a pruned model that cannot be trained, or whose training came to nothing
    ├── VerificationError            the written checkpoint does not do what the plan says
    │   └── UnverifiedError          whether it does was not found out
    ├── EvaluationError              a benchmark that cannot be run
    ├── OverBudgetError              the result lost more than the recipe allows
    ├── HubError                     the Hub refused or did not answer
    │   ├── HubUnreachableError      no connection after several tries
    │   ├── AuthenticationError      no token, an expired one, or one the Hub does not know
    │   ├── PermissionDeniedError    the token is valid and may not do this
    │   ├── ConflictError            somebody else committed in between
    │   │   └── EditedError          somebody changed on the Hub what an earlier publish wrote
    │   ├── RemoteMismatchError      a remote file is not what was uploaded
    │   └── JobError                 a job on Hugging Face Jobs failed or was cancelled
    ├── DiskSpaceError               not enough room for what the run would write
    ├── OutputError                  stdout cannot be written
    └── MissingDependencyError       a program or an extra that this command needs is not installed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "AuthenticationError", "BaseError", "BaseNotFoundError", "CalibrationError", "CheckpointError", "ConflictError",
    "DiskSpaceError", "EditedError", "EvaluationError", "GatedBaseError", "HealingError", "HubError",
    "HubUnreachableError", "HubpruneError", "JobError", "MissingDependencyError", "OutputError", "OverBudgetError",
    "PermissionDeniedError", "PlanError", "RecipeError", "RemoteMismatchError", "ScoringError",
    "UnsupportedArchitectureError", "UnsupportedFormatError", "UnverifiedError", "VerificationError",
]  # fmt: skip


class HubpruneError(Exception):
    """Root of the tree: one clear sentence, and a hint that names the next step.

    Attributes:
        message: what happened, with the value it happened to.
        hint: what to do next, or None.
        exit_code: what the command line exits with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def advise(self, hint: str) -> None:
        """Add a sentence to the hint."""
        self.hint = f"{self.hint} {hint}" if self.hint else hint


class RecipeError(HubpruneError):
    """The recipe or an option has a value that cannot be used."""

    exit_code = 2


class PlanError(RecipeError):
    """The requested drop does not fit the base."""


class BaseError(HubpruneError):
    """The base cannot be used."""


class BaseNotFoundError(BaseError):
    """No repo or folder of that name exists, or no such revision."""


class GatedBaseError(BaseError):
    """The base exists and this token was not granted access to it."""


class UnsupportedArchitectureError(BaseError):
    """The base's model_type has no entry in `hubprune.core.architectures`."""


class UnsupportedFormatError(BaseError):
    """The base holds no safetensors files."""


class CheckpointError(HubpruneError):
    """A safetensors file, an index or a config.json is broken or hostile."""


class CalibrationError(HubpruneError):
    """A data set of the calibration mix is missing, too small, or has no such text column."""


class ScoringError(HubpruneError):
    """A score came out as NaN, or there was nothing to average."""


class HealingError(HubpruneError):
    """A pruned model cannot be trained, or its training came to nothing."""


class VerificationError(HubpruneError):
    """The written checkpoint does not do what the plan says."""


class UnverifiedError(VerificationError):
    """The process that verifies was ended from outside, or had too little room; nothing is known of the checkpoint."""


class EvaluationError(HubpruneError):
    """A benchmark does not exist or cannot be run."""


class OverBudgetError(HubpruneError):
    """The result lost more, or loops more, than the recipe's `max_loss` allows, so nothing was published."""

    exit_code = 4


class HubError(HubpruneError):
    """The Hub refused a request or answered something unexpected."""


class HubUnreachableError(HubError):
    """No connection to the Hub, after several tries."""


class AuthenticationError(HubError):
    """There is no token, it has expired, or the Hub does not know it."""


class PermissionDeniedError(HubError):
    """The token is valid and may not do what the run needs."""


class ConflictError(HubError):
    """Somebody else committed to the target between our reading of it and our commit."""


class EditedError(ConflictError):
    """Somebody changed on the Hub what an earlier publish wrote, or has files of their own where it would write.

    Attributes:
        commits: what they committed, as values for JSON; empty for files that no publish ever wrote.
    """

    exit_code = 5

    def __init__(self, message: str, *, hint: str | None = None, commits: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message, hint=hint)
        self.commits = tuple(commits)


class RemoteMismatchError(HubError):
    """A file on the Hub is not the file that was uploaded."""


class JobError(HubError):
    """A job on Hugging Face Jobs failed, or somebody cancelled it."""


class DiskSpaceError(HubpruneError):
    """There is not enough room on disk for what the run would write."""


class OutputError(HubpruneError):
    """Stdout cannot be written, on a full disk for example."""


class MissingDependencyError(HubpruneError):
    """A program or an optional extra that this command needs is not installed."""
