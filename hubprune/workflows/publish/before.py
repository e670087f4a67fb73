"""What a publish depends on, what the last one left, and what of that it need not compute again.

That is what was measured, or all of it, here or in an open pull request.  Only what would come out again is taken: the
key of a stage stands for everything that its result depends on, the machine and the versions included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, Literal, TypeVar

from hubprune.cards.card import CARD_PART, Change, Fingerprint, card_part, changes, sha256, snippet_part, told
from hubprune.cards.manifest import CARD, MANIFEST, checkpoint_tag
from hubprune.cards.records import PublishRecord, SiblingRecord, parse_record, parse_sibling, read_record
from hubprune.core import __version__, templates
from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import DropPlan, LayerScores, PublishedCommit, PublishReport
from hubprune.core.console import Reporter
from hubprune.core.devices import library_versions
from hubprune.core.errors import CheckpointError, RecipeError
from hubprune.core.files import list_files, scratch_folder
from hubprune.core.privacy import public_name, scrub, scrub_all
from hubprune.core.requests import PublishRequest
from hubprune.core.specs import Settings
from hubprune.hub.commit import publish as send
from hubprune.hub.commit import tag_commit
from hubprune.hub.remote import (
    RECENT_PULL_REQUESTS,
    Overwrite,
    RemoteState,
    is_same,
    number_of,
    pull_request,
    pull_request_heads,
    read_remote,
    refs_of,
)
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.pruning.calibration import file_hashes
from hubprune.workflows.card import CardChoices, put_card, render_again
from hubprune.workflows.run import Run, scores_key
from hubprune.workflows.runtimes import Chosen

MOVE_BYTES = ("huggingface_hub", "hf-xet")
"""Libraries that change nothing in what they carry."""
MODELING_PART = "modeling file"
"""The part that a refresh brings up to date without computing."""
SCORES, ROUNDS = "scores", "rounds"
OFFERED = ("benchmarks", "generation", "speed", "snippet")
"""Stages whose whole result is in a manifest, each under the name of its part."""

# ---- what it depends on --------------------------------------------------------------------------------------------


def fingerprint(run: Run, *, repo_id: str, tagged: bool, choices: CardChoices) -> Fingerprint:
    """Say what a result depends on, part by part.

    The Hub is asked for the commits of the base and of all data sets; nothing else is read of them.  The card of the
    result names its `repo_id`, and with `tagged` a tag of its files.
    """
    recipe, target, texts = run.recipe, run.recipe.target, run.recipe.evaluation
    by_name = choices.runtimes.pythons if isinstance(choices.runtimes, Chosen) and choices.runtimes.by_name else ()
    libraries = {name: version for name, version in library_versions().items() if name not in MOVE_BYTES}
    parts = {
        "base": {"repo": run.base.name, "commit": str(run.base.commit)},
        "pruning": {
            **_settings(recipe.drop),
            # The settings of narrower MLPs have names of their own: a metric is among them, too.
            **{f"width {name}": value for name, value in _settings(recipe.width).items()},
            **{f"adopted {name}": value for name, value in _settings(recipe.adopted).items()},
            "metric": recipe.metric,
            "schedule": recipe.schedule,
            "aggregation": recipe.aggregation,
            "layout": recipe.layout,
            "dtype": recipe.dtype,
            "seed": str(recipe.seed),
        },
        "calibration": calibration_part(run) if recipe.needs_scores else {},
        "benchmarks": _benchmarks(run),
        "free text": {
            "prompts": sha256(_text(texts.prompt_texts())),
            "max_new_tokens": str(texts.max_new_tokens),
            **({"chat template": "left out"} if texts.apply_chat_template is False else {}),
        },
        "speed": {} if choices.timed in ("never", "if it fits") else {"timed": "yes"},
        # Which others this machine happens to have is no part of it.
        "runtimes": dict.fromkeys(by_name, "asked"),
        "target": {
            "repo": repo_id,
            "tag": "named" if tagged else "not named",
            **({"licence": target.license} if target.license else {}),
            **({"name": "allowed"} if target.allow_name else {}),
        },
        "versions": {"hubprune": __version__, **libraries},
        MODELING_PART: modeling_part(run.architecture),
        "snippet": snippet_part(choices.template),
        "pictures": {"drawn": "yes" if find_spec("matplotlib") else "no"},
        CARD_PART: card_part(notes=choices.notes, templates=choices.template, beside=choices.beside),
    }
    public: Fingerprint = scrub_all(parts)
    return public


def modeling_part(architecture: Architecture) -> dict[str, str]:
    """Say what the modeling file of a family depends on."""
    return {"template": sha256(templates.modeling_code(architecture))}


def _settings(settings: Settings | None, *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Write what was set, as JSON where it is no text."""
    values: Mapping[str, Any] = settings.model_dump(mode="json", exclude_defaults=True) if settings else {}
    return {name: _text(value) for name, value in values.items() if name not in without}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Collect values by their names, in their order: two files of one name are both part of it."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: ", ".join(found) for name, found in values.items()}


def calibration_part(run: Run) -> dict[str, str]:
    """Name mix, data sets and files; how a revision was spelled changes nothing, its commit does."""
    mix = run.recipe.calibration
    subsets = [
        {**subset.model_dump(mode="json", exclude={"revision"}), "dataset": public_name(subset.dataset)}
        for subset in mix.subsets
    ]
    pairs = zip(mix.subsets, run.data_commits, strict=True)
    commits = _joined((f"data set {subset.dataset}", commit) for subset, commit in pairs if commit)
    files = _joined((f"file {public_name(path)}", digest) for path, digest in file_hashes(mix).items())
    asked = mix.model_dump(mode="json", include={"name", "num_samples", "max_tokens", "packed", "shuffle_buffer"})
    asked |= {"chat_template": True} if mix.chat_template else {}
    return {name: _text(value) for name, value in asked.items()} | {"subsets": sha256(_text(subsets))} | commits | files


def _benchmarks(run: Run) -> dict[str, str]:
    """Name tasks, their settings, files and data sets."""
    spec = run.recipe.evaluation
    if not spec.tasks:
        return {}
    own = {"include_path", "prompts", "max_new_tokens", "tasks"}
    own |= set() if spec.apply_chat_template else {"apply_chat_template"}
    files = {f"file {name}": sha256(scrub(text)) for name, text in run.task_texts.items()}
    from hubprune.evaluation.sources import is_commit
    from hubprune.evaluation.tasks import local_data

    # The state of a data set is a commit, or the SHA-256 of local files, whose times mean nothing.
    sources = {public_name(name): s or "not known" for name, s in run.task_sources.items() if not s or is_commit(s)}
    local = _joined(local_data(spec)) if len(sources) < len(run.task_sources) else {}
    data = {f"data set {name}": state for name, state in (sources | local).items()}
    return {"tasks": ",".join(spec.tasks)} | _settings(spec, without=frozenset(own)) | files | data


# ---- what the last one left ------------------------------------------------------------------------------------------


Record = TypeVar("Record", PublishRecord, SiblingRecord)


@dataclass(frozen=True, kw_only=True)
class Before(Generic[Record]):
    """A repo as the last publish left it, beside the fingerprint of this one."""

    remote: RemoteState
    record: Record
    changes: tuple[Change, ...]
    """What a publish depends on and is another now."""
    strays: tuple[str, ...]
    """Files that are not there as they were published; the card is not among them."""

    @property
    def is_up_to_date(self) -> bool:
        """Whether nothing is left to do."""
        return self.only_the_card and not self.changes and self._card_is_as_written

    @property
    def only_the_card(self) -> bool:
        """Whether at most the card has to be rendered again."""
        return not self.strays and all(change.part == CARD_PART for change in self.changes)

    @property
    def _card_is_as_written(self) -> bool:
        listed = self.record.files.get(CARD)
        return listed is not None and listed.sha256 == self.remote.card_sha256

    @property
    def told(self) -> str:
        """What changed, in one line."""
        strays = f"not as published: {', '.join(self.strays)}" if self.strays else ""
        edited = "" if self._card_is_as_written else f"{CARD} was edited by hand"
        return "; ".join(filter(None, (told(self.changes), strays, edited)))


def last_publish(
    target: Target, now: Fingerprint, *, session: HubSession, reporter: Reporter
) -> Before[PublishRecord] | None:
    """Look at the branch that a publish goes to; None where nothing there can be compared with what it depends on."""
    if not target.branch_exists or target.parent is None:
        return None
    return publish_at(target.parent, target, now, session=session, reporter=reporter)


def last_sibling(
    target: Target, now: Fingerprint, *, session: HubSession, reporter: Reporter
) -> Before[SiblingRecord] | None:
    """Do the same with the branch that a sibling goes to."""
    if not target.branch_exists or target.parent is None:
        return None
    return _at(target.parent, target, now, parse_sibling, session=session, reporter=reporter)


def publish_at(
    commit: str, target: Target, now: Fingerprint, *, session: HubSession, reporter: Reporter
) -> Before[PublishRecord] | None:
    """Look at a commit of the target's repo; None where nothing there can be compared."""
    return _at(commit, target, now, parse_record, session=session, reporter=reporter)


def _at(
    commit: str, target: Target, now: Fingerprint, parse: Callable[..., Record], *, session: HubSession,
    reporter: Reporter,
) -> Before[Record] | None:  # fmt: skip
    remote = read_remote(target.repo_id, commit=commit, session=session)
    if remote.manifest is None:
        return None
    try:
        record = parse(remote.manifest.data, where=f"{MANIFEST} of {target.repo_id}")
    except (CheckpointError, RecipeError) as error:
        reporter.note(f"everything is run: {error.message}")
        return None
    strays = (path for path, file in record.files.items() if path != CARD and not is_same(file, remote.files.get(path)))
    return Before(
        remote=remote, record=record, changes=changes(record.report.fingerprint, now), strays=tuple(sorted(strays))
    )


# ---- what need not be computed again ------------------------------------------------------------------------------


def offer_results(before: Before[PublishRecord], run: Run) -> None:
    """Hold ready in the run's store what the last publish measured."""
    report = before.record.report
    if report.environment.machine != run.environment.machine:
        run.reporter.note(f"the last publish ran on {report.environment.machine}: nothing that it measured is taken")
        return
    for stage in OFFERED:
        key, value = report.stage_keys.get(stage), getattr(report, stage)
        if key and value is not None:
            run.store.offer(stage, key, value, seconds=report.seconds.get(stage, 0.0), on_take=_say(run))


def scores_before(
    before: Before[PublishRecord] | None, run: Run, now: Fingerprint
) -> tuple[LayerScores, DropPlan] | None:
    """Return scores and plan of the last publish where this run would find the same; None where it has to score.

    A manifest has no scores of single documents, without which no other plan could tell how sure it is.  So both are
    taken or neither.
    """
    report = before.record.report if before else None
    if report is None or report.scores is None or report.fingerprint.get("pruning") != now["pruning"]:
        return None
    key = scores_key(run)
    if run.store.has(SCORES, key) or report.stage_keys.get(SCORES) != key:
        return None
    for stage in (SCORES, ROUNDS):
        if stage in report.stage_keys:
            run.store.take(stage, report.stage_keys[stage], seconds=report.seconds.get(stage, 0.0))
            _say(run)(stage)
    return report.scores, report.plan


def _say(run: Run) -> Callable[[str], None]:
    return lambda stage: run.reporter.note(f"{stage}: taken from the last publish")


def without_computing(
    run: Run, before: Before[PublishRecord], choices: CardChoices, target: Target, request: PublishRequest
) -> PublishReport | None:
    """Do what a publish has to do where nothing has to be computed; None where something has, which is said.

    Who asks for the files, or for a dry run, gets them from the stages, unless only a change is of interest.

    Raises:
        HubpruneError: the card cannot be rendered or sent.
    """
    what = f"changed since the last publish: {before.told}" if before.told else "nothing changed since the last publish"
    run.reporter.note(what)
    if request.force or not before.only_the_card:
        return None
    needs_files = request.dry_run or request.out
    if before.is_up_to_date and (request.only_if_changed or not needs_files):
        missing: Literal["tag", "leave"] = "leave" if request.dry_run else "tag"
        left = leave_as_it_is(before, target=target, session=run.session, missing=missing)
        if left is None:
            run.reporter.note("but its tag is missing, which a publish has to make")
        return left
    if needs_files:
        return None
    return _publish_card(run, before, choices, target, overwrite=request.replaces)


def leave_as_it_is(
    before: Before[PublishRecord], *, target: Target, session: HubSession, missing: Literal["tag", "leave"] = "tag"
) -> PublishReport | None:
    """Report what is there, in the words of the publish that made it as far as its manifest tells.

    A missing tag is made, as after a publish that was killed before it came to that.  None where it is to be left
    missing: a publish still has something to do.

    Raises:
        HubError: the Hub refused or did not answer.
    """
    tag = checkpoint_tag(before.record.report.checkpoint) if target.is_tagged else None
    published = as_published(before, tag, target=target, session=session, missing=missing)
    return before.record.report.model_copy(update={"published": published}) if published else None


def as_published(
    before: Before[Any], tag: str | None, *, target: Target, session: HubSession, missing: Literal["tag", "leave"]
) -> PublishedCommit | None:
    """Say of what is there what its publish would; None where it lacks its tag and is to be left so.

    Raises:
        HubError: the Hub refused or did not answer.
    """
    commit = before.remote.commit
    if tag and tag not in {ref.name for ref in refs_of(target.repo_id, session=session).tags}:
        if missing == "leave":
            return None
        tag_commit(tag, repo_id=target.repo_id, commit=commit, session=session)
    manifest, there = before.remote.manifest, before.remote.files
    digests = {path: file.sha256 for path, file in before.record.files.items()}
    digests |= {MANIFEST: hashlib.sha256(manifest.data).hexdigest()} if manifest else {}
    files = (there[path].model_copy(update={"sha256": digest}) for path, digest in sorted(digests.items()))
    return PublishedCommit(
        repo_id=target.repo_id, commit=commit, parent=None, created=False, files=tuple(files),
        url=f"{session.endpoint}/{target.repo_id}/commit/{commit}", tag=tag,
    )  # fmt: skip


def _publish_card(
    run: Run, before: Before[PublishRecord], choices: CardChoices, target: Target, *, overwrite: Overwrite
) -> PublishReport:
    """Render the card of what is published again, and commit it with its manifest and nothing else."""
    record = before.record
    with scratch_folder(name="hubprune-card") as folder:
        put_card(folder, record, choices, text=render_again(record, choices))
        files = {**record.files, **{file.path: file for file in list_files(folder)}}
        published = send(
            folder, target=target, files=tuple(files[path] for path in sorted(files)),
            message="Render the card again", tag=checkpoint_tag(record.report.checkpoint), session=run.session,
            reporter=run.reporter, overwrite=overwrite,
        )  # fmt: skip
        return read_record(folder).report.model_copy(update={"published": published})


def proposed_before(run: Run, target: Target, now: Fingerprint, request: PublishRequest) -> PublishReport | None:
    """Report an open pull request of this user that proposes the same on top of the same commit; None without one.

    One that is to be merged is not looked for: it has to be loaded back first.  Nor is one of anybody else: whoever may
    propose could keep a result from being proposed by proposing what only says that it is the same.  Nor where the
    files are asked for, unless only a change is of interest.
    """
    needs_files = request.force or ((request.dry_run or request.out) and not request.only_if_changed)
    if needs_files or not target.create_pr or target.staged or target.parent is None:
        return None
    session, reporter = run.session, run.reporter
    for ref, head in list(pull_request_heads(target.repo_id, session=session).items())[:RECENT_PULL_REQUESTS]:
        found = pull_request(target.repo_id, number_of(ref), session=session)
        if found.status not in ("open", "draft") or found.author != target.user:
            continue
        before = publish_at(head, target, now, session=session, reporter=reporter)
        if before and before.is_up_to_date and _lies_on(target.parent, before, target=target, session=session):
            url = f"{session.endpoint}/{target.repo_id}/discussions/{number_of(ref)}"
            report = leave_as_it_is(before, target=target, session=session)
            if report and report.published:
                published = report.published.model_copy(update={"pull_request_url": url})
                return report.model_copy(update={"published": published})
    return None


def _lies_on(parent: str, before: Before[PublishRecord], *, target: Target, session: HubSession) -> bool:
    commits = session.ask(
        lambda api: api.list_repo_commits(target.repo_id, revision=before.remote.commit),
        doing=f"read the history of {target.repo_id}",
    )
    return len(commits) > 1 and commits[1].commit_id == parent
