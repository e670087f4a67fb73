"""Which requests there are to spoil, and how each can be spoiled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fault_world import PATIENCE_SECONDS, SILENCE_SECONDS, Case

from hubprune.localhub import RequestRecord

FATAL = (400, 401, 403, 404, 409, 412)
"""Statuses that no client asks again after, but for that of the Xet store."""
REVOKED = (401, 403)
"""Statuses that a token meets that was taken away in the middle of a run."""
PASSING = (429, 500, 503)
ALL_OF_IT = 1 << 40
COMMIT = re.compile(r"POST .*/commit/")


@dataclass(frozen=True)
class Request:
    """One request of an undisturbed publish, without the names and hashes that only one case has."""

    line: str
    nth: int
    """How many of the same line came before."""
    bytes_in: int
    bytes_out: int

    @property
    def label(self) -> str:
        """Return the request in a few words."""
        return f"{self.line} (#{self.nth + 1})" if self.nth else self.line

    @property
    def is_commit(self) -> bool:
        """Whether it is the one request that makes the commit."""
        return bool(COMMIT.match(self.line))

    def pattern(self, case: Case) -> str:
        """Return a regular expression for the same request of a case."""
        text = re.escape(self.line).replace("COMMIT", "[0-9a-f]{40}").replace("HASH", "[0-9a-f]{64}")
        return f"^{text.replace('REPO', re.escape(case.repo_id))}$"


@dataclass(frozen=True)
class Kind:
    """One way in which a request can go wrong."""

    name: str
    fault: Callable[[Request], dict[str, Any] | None]
    """Fields of the fault; None where that cannot happen to a request."""
    lasting: bool = False
    """Whether every try from that request on goes wrong; else only the first."""
    kills: bool = False
    """Whether the publisher dies while the Hub holds the request."""

    @property
    def patience(self) -> float:
        """How long the clients wait for an answer, in seconds."""
        return SILENCE_SECONDS if self.name.startswith("slow") else PATIENCE_SECONDS


def _status(code: int) -> Callable[[Request], dict[str, Any]]:
    headers = {"Retry-After": "2"} if code == 429 else {}
    return lambda request: {"do": "status", "status": code, "headers": headers}


def _mid_body(request: Request) -> dict[str, Any] | None:
    return {"do": "cut", "bytes": request.bytes_in // 2} if request.bytes_in > 1 else None


def _after_body(request: Request) -> dict[str, Any] | None:
    return {"do": "cut", "bytes": ALL_OF_IT} if request.bytes_in else None


def _truncated(request: Request) -> dict[str, Any] | None:
    has_body = request.bytes_out > 1 and not request.line.startswith("HEAD")
    return {"do": "truncate", "bytes": request.bytes_out // 2} if has_body else None


def _always(**fields: Any) -> Callable[[Request], dict[str, Any]]:
    return lambda request: dict(fields)


PASSING_KINDS = (
    *(Kind(f"{code} with Retry-After" if code == 429 else str(code), _status(code)) for code in PASSING),
    Kind("reset before", _always(do="reset")),
    Kind("reset mid-body", _mid_body),
    Kind("reset after the body", _after_body),
    Kind("answer truncated", _truncated),
    Kind("slow", _always(do="slow", seconds=2 * SILENCE_SECONDS)),
    Kind("done, answer lost", _always(do="lose")),
)
KINDS = (
    *(Kind(str(code), _status(code)) for code in FATAL),
    *PASSING_KINDS,
    *(Kind(f"{code}, always", _status(code), lasting=True) for code in REVOKED),
    *(Kind(f"{kind.name}, always", kind.fault, lasting=True) for kind in PASSING_KINDS),
    Kind("SIGKILL before the work", _always(do="stall"), kills=True),
    Kind("SIGKILL after the work", _always(do="withhold"), kills=True),
)


def requests_of(log: Iterable[RequestRecord], case: Case) -> list[Request]:
    """Return what a publish of a case asked for, in order."""
    seen: Counter[str] = Counter()
    found = []
    for record in log:
        line = _general(record.line, case)
        found.append(Request(line, seen[line], record.bytes_in, record.bytes_out))
        seen[line] += 1
    return found


def _general(line: str, case: Case) -> str:
    line = line.replace(case.repo_id, "REPO")
    line = re.sub(r"\b[0-9a-f]{64}\b", "HASH", line)
    return re.sub(r"\b[0-9a-f]{40}\b", "COMMIT", line)
