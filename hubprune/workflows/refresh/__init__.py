"""Bring repos that are out to what this version writes, without computing: `hubprune refresh`.

In come repo ids; out comes a report for each.  Of weights only headers are read, none are sent, and no code of a repo
is run before it was replaced by ours.  Here: look, write anew, one commit, load back; then the next repo, whatever
became of the one before.

    there      the repo as its publish left it, or why it is left alone; what differs from it

Written anew is what this version would write for the same plan and base.  Licence files and notices stay as they are:
a commit of the base never changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.cards.card import check_templates, template_hash
from hubprune.cards.manifest import MANIFEST, checkpoint_tag, replace_card
from hubprune.cards.records import PublishRecord, read_record
from hubprune.core import __version__, templates
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import (
    ConfigChange,
    FileChange,
    PublishedCommit,
    Refreshed,
    RefreshReport,
    RepoFile,
    WrittenCheckpoint,
)
from hubprune.core.config import needs_modeling_file, read_config, read_structure, stock_config, write_json
from hubprune.core.console import Reporter
from hubprune.core.errors import CheckpointError, HubpruneError, RecipeError, VerificationError
from hubprune.core.files import list_files, make_writable, scratch_folder, work_folder
from hubprune.core.privacy import check_endpoint, is_license
from hubprune.core.recipe import BaseModelSpec, Recipe, parse
from hubprune.core.requests import RefreshRequest
from hubprune.hub import repos as hub
from hubprune.hub.commit import publish as send
from hubprune.hub.commit import tag_commit
from hubprune.hub.remote import refs_of
from hubprune.hub.repos import stored_shapes
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import check_arrived
from hubprune.pruning import verify
from hubprune.pruning.base_files import fit
from hubprune.pruning.checkpoint import carry_files, write_companions
from hubprune.pruning.tokenizer_files import ids_depend_on_version, settle_tokenizer
from hubprune.workflows.card import CardChoices, put_card, render_again
from hubprune.workflows.publish.before import MODELING_PART, modeling_part
from hubprune.workflows.publish.stages import Unfinished
from hubprune.workflows.refresh.there import (
    Published,
    card_changes,
    file_changes,
    key_changes,
    read_published,
    stays,
    target_of,
)
from hubprune.workflows.run import open_session, refuse_tokenizer_code

BUG = "Nothing was changed. This is a bug worth reporting, with the name of the repo."
NEW_TOKENS = 40
"""How many a refreshed model writes after it was loaded back."""
SHIPPED_BEFORE = ("1ccd488f2b6d9c368b1a1d8c954f7284e9b0c0c5f5009a957d1fc5d2d21f7e27",)
"""Hashes of the card templates that earlier versions shipped; a card of any others was designed by its publisher."""


def refresh_all(
    request: RefreshRequest, *, reporter: Reporter, session: HubSession | None = None
) -> tuple[RefreshReport, ...]:
    """Refresh several repos; one that fails keeps none of the others from it.

    Raises:
        HubpruneError: nothing can be refreshed at all.
    """
    session = session or open_session(request.endpoint)
    check_endpoint(session.endpoint)
    if request.card_template:
        check_templates(Path(request.card_template))
    reports = []
    for repo_id in dict.fromkeys(request.repos):
        start = time.monotonic()
        try:
            report = refresh(repo_id, request, session=session, reporter=reporter)
        except HubpruneError as error:
            reporter.error(error.message, error.hint)
            told = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
            report = RefreshReport(repo_id=repo_id, outcome="failed", **told)
        reports.append(report.model_copy(update={"seconds": round(time.monotonic() - start, 2)}))
    return tuple(reports)


def refresh(repo_id: str, request: RefreshRequest, *, session: HubSession, reporter: Reporter) -> RefreshReport:
    """Bring a repo to what this version writes for the same plan and base, in one commit.

    Raises:
        HubpruneError: it is no repo of ours, was edited, may not be written, or does not load afterwards.
    """
    target = target_of(
        repo_id, revision=request.revision, create_pr=request.create_pr, writes=not request.check, session=session
    )
    published = read_published(target, overwrite=request.overwrite, session=session, reporter=reporter)
    template = Path(request.card_template) if request.card_template else None
    with scratch_folder(_work_folder(), name="refresh") as folder:
        anew = write_anew(published, folder, template=template, overwrite=request.overwrite)
        for note in anew.notes:
            reporter.warn(note)
        report = RefreshReport(
            repo_id=repo_id, outcome="up to date" if anew.is_up_to_date else "would change",
            from_version=published.version, to_version=__version__, parent=published.remote.commit,
            files=anew.changes, config=anew.config, notes=anew.notes,
        )  # fmt: skip
        return report if request.check else _carried_out(report, published, anew, request, session, reporter)


def _work_folder() -> Path:
    folder = work_folder()
    make_writable(folder)
    return folder


def to_json(reports: Sequence[RefreshReport]) -> str:
    """Write all reports for machines."""
    return json.dumps({"repos": [report.model_dump(mode="json") for report in reports]}, indent=2)


def _carried_out(
    report: RefreshReport, published: Published, anew: Anew, request: RefreshRequest, session: HubSession,
    reporter: Reporter,
) -> RefreshReport:  # fmt: skip
    """Commit what changes and load it back; of what is up to date, do what a killed refresh left undone."""
    work = _work_folder()
    unfinished = Unfinished(work, published.target, endpoint=session.endpoint)
    if anew.is_up_to_date:
        # Of what is there, the files are named where a refresh was cut off between its commit and its tag.
        repo_id, commit, tag = published.target.repo_id, published.remote.commit, None
        if not (anew.record.report.recipe["target"]["create_pr"] or published.target.create_pr):
            tag = anew.tag
            if tag not in {ref.name for ref in refs_of(repo_id, session=session).tags}:
                tag_commit(tag, repo_id=repo_id, commit=commit, session=session)
        url = f"{session.endpoint}/{repo_id}/commit/{commit}"
        there = PublishedCommit(
            repo_id=repo_id, commit=commit, parent=None, url=url, created=False, tag=tag, files=anew.files
        )
        report = report.model_copy(update={"tag": tag})
    else:
        if not request.no_load_back:
            unfinished.begin()
        there = _send(published, anew, request, session=session, reporter=reporter)
        url = there.pull_request_url or there.url
        reporter.note(f"{'committed' if there.created else 'there already'}: {url}")
        outcome = "proposed" if there.pull_request_url else "committed"
        sent = sum(change.size for change in anew.changes) if there.created else 0
        told = {"outcome": outcome, "commit": there.commit, "url": url, "tag": there.tag, "sent_bytes": sent}
        report = report.model_copy(update=told)
    if unfinished and not request.no_load_back:
        report = report.model_copy(update={"loaded_back": _load_back(published, there, work=work, reporter=reporter)})
        unfinished.end()
    return report


def _send(
    published: Published, anew: Anew, request: RefreshRequest, *, session: HubSession, reporter: Reporter
) -> PublishedCommit:
    if not request.no_load_back:
        # transformers builds the model of the files to be, without data, to be compared with the weights there
        spec = BaseModelSpec(repo_id=published.target.repo_id, revision=published.remote.commit)
        shapes = stored_shapes(hub.resolve_repo(spec, session=session), session=session)
        what = f"What this version writes for {spec.repo_id}"
        try:
            unused = fit(anew.config_json, shapes, name=spec.repo_id).unused
        except CheckpointError as error:
            raise VerificationError(f"{what} does not fit its weights: {error.message}", hint=BUG) from error
        if unused:
            raise VerificationError(f"{what} makes no use of {unused[0]} in its weights.", hint=BUG)
    changed = [change.path for change in anew.changes if change.outcome != "same"]
    reporter.note(f"{len(changed)} files change: {', '.join(changed)}")
    is_new = anew.record.report.refreshed != published.record.report.refreshed
    return send(
        anew.folder, target=published.target, files=anew.files,
        message=f"Refresh with hubprune {__version__}" if is_new else "Render the card again", tag=anew.tag,
        session=session, reporter=reporter, overwrite="everything" if request.overwrite else "nothing",
    )  # fmt: skip


def _load_back(published: Published, there: PublishedCommit, *, work: Path, reporter: Reporter) -> str:
    """Load a commit over HTTP in a fresh process with an empty cache, and return what it writes."""
    report, commit = published.record.report, there.commit
    reporter.note("loading it back from the Hub in a fresh process")
    expected = report.checkpoint.parameters
    try:
        loaded = verify.load_from_hub(
            there.repo_id, commit=commit, prompt=parse(Recipe, report.recipe).evaluation.prompt_texts()[0],
            new_tokens=NEW_TOKENS, custom_code=needs_modeling_file(report.plan), work_folder=work,
            check=lambda folder: check_arrived(there, folder),
        )  # fmt: skip
        if loaded.parameters != expected:
            raise VerificationError(f"it loads with {loaded.parameters:,} parameters instead of {expected:,}.")
    except VerificationError as error:
        raise VerificationError(
            f"{there.repo_id} is refreshed at {commit[:8]}, but: {error.message}",
            hint=f"The commit before, {published.remote.commit[:8]}, has the files as they were.",
        ) from error
    return loaded.text


# ---- what this version writes ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Anew:
    """What a refresh would commit."""

    folder: Path
    """Holds the files to send."""
    files: tuple[RepoFile, ...]
    """All that the repo is to hold of ours, card and manifest included."""
    changes: tuple[FileChange, ...]
    """Of every file that was written anew, card and manifest included."""
    config: tuple[ConfigChange, ...]
    config_json: Mapping[str, Any]
    record: PublishRecord
    """The manifest to be."""
    notes: tuple[str, ...]
    """What could not be done, and what readers may meet."""

    @property
    def is_up_to_date(self) -> bool:
        """Whether there is nothing to send."""
        return all(change.outcome == "same" for change in self.changes)

    @property
    def tag(self) -> str:
        """Name of the files of the checkpoint."""
        return checkpoint_tag(self.record.report.checkpoint)


def write_anew(published: Published, folder: Path, *, template: Path | None = None, overwrite: bool = False) -> Anew:
    """Write the files of this version into an empty folder, and leave there those that differ.

    Card templates of the folder `template` win over the shipped ones, which replace those of a publisher only where
    `overwrite` says so.

    Raises:
        RecipeError: the card was made by templates of its publisher.
        CheckpointError: the base is broken.
    """
    report = published.record.report
    choices = CardChoices(report.notes, template, beside=report.beside)
    used = published.record.values.get("card_templates")
    if not (overwrite or choices.template or used in (template_hash(), *SHIPPED_BEFORE)):
        raise RecipeError(
            f"The card of {published.target.repo_id} was made by templates that hubprune does not ship.",
            hint="Name their folder with --card-template, or pass --overwrite for a card by the shipped ones.",
        )
    notes = _write_small_files(published, folder)
    # Weights and licence files are as they are; the others are what was just written.
    kept = {path: file for path, file in published.checkpoint.items() if stays(path)}
    for path in folder.rglob("*"):
        if is_license(path.relative_to(folder).as_posix()) and path.is_file():
            path.unlink()
    both = {**kept, **{file.path: file for file in list_files(folder)}}
    in_order = tuple(both[path] for path in sorted(both))
    checkpoint = published.record.report.checkpoint.model_copy(update={"files": in_order})
    changes = tuple(file_changes(published, checkpoint))
    config_json = read_config(folder)
    config = tuple(key_changes(published.config, config_json))
    same = {change.path for change in changes if change.outcome == "same"}
    for file in list_files(folder):
        if file.path in same:
            (folder / file.path).unlink()
    record = _write_card(published, folder, checkpoint, choices, (changes, config))
    written = {file.path: file for file in list_files(folder)}
    files = {**record.files, MANIFEST: written.get(MANIFEST) or published.remote.files[MANIFEST]}
    return Anew(
        folder=folder, files=tuple(files[path] for path in sorted(files)),
        changes=(*changes, *card_changes(published, written)), config=config, config_json=config_json, record=record,
        notes=notes,
    )  # fmt: skip


# ---- the checkpoint's files --------------------------------------------------------------------------------------


def _write_small_files(published: Published, folder: Path) -> tuple[str, ...]:
    """Write config, tokenizer and modeling file, and return what there is to say of them."""
    base = published.base
    if base is None:
        _write_without_base(published, folder)
        told = "The base cannot be read, so config.json keeps its keys, and the tokenizer files are made of the repo's"
        return (f"{told} own: {published.why_no_base}",)
    source = Path(base.folder or "")
    refuse_tokenizer_code(source, name=base.name)
    write_companions(base, published.record.report.plan, folder)
    architecture = architecture_of(base.config, name=base.name)
    differs = ids_depend_on_version(source, folder, architecture=architecture)
    return (f"The base's tokenizer depends on the version that reads it: {differs}.",) if differs else ()


def _write_without_base(published: Published, folder: Path) -> None:
    """Write what needs no base: the repo's own tokenizer files are the base's, with a config.json of its family."""
    plan, config, name = published.record.report.plan, dict(published.config), published.target.repo_id
    refuse_tokenizer_code(published.folder, name=name)
    structure = read_structure(config, name=name)
    architecture = structure.architecture
    carry_files(published.folder, folder)
    with scratch_folder(folder.parent, name="base") as scratch:
        carry_files(published.folder, scratch)
        write_json(stock_config(config, structure), scratch)
        write_json(config, folder)
        tokenizer_class = settle_tokenizer(scratch, folder, architecture=architecture)
    if tokenizer_class:
        config["tokenizer_class"] = tokenizer_class
    write_json({**config, "hubprune": {**config["hubprune"], "version": __version__}}, folder)
    if needs_modeling_file(plan):
        code = templates.modeling_code(architecture, layout=plan.layout)
        (folder / architecture.modeling_file(plan.layout)).write_text(code, encoding="utf-8")


# ---- card and manifest -------------------------------------------------------------------------------------------


def _write_card(
    published: Published, folder: Path, checkpoint: WrittenCheckpoint, choices: CardChoices,
    found: tuple[tuple[FileChange, ...], tuple[ConfigChange, ...]],
) -> PublishRecord:  # fmt: skip
    """Write the manifest that tells of the refresh, and the card that it gives; of both only what differs stays."""
    record, target = published.record, published.target
    changed = tuple(change for change in found[0] if change.outcome != "same")
    same_card = render_again(record, choices).encode() == published.remote.card
    if not changed and same_card:
        return record
    values = dict(record.values)
    values["run"] = {**values["run"], "create_pr": target.create_pr}
    if changed:
        others = {path: row for path, row in values["files"].items() if path not in published.checkpoint}
        rows = {file.path: file.model_dump(exclude={"path"}) for file in checkpoint.files}
        modeling = modeling_part(architecture_of(published.config, name=target.repo_id))
        values["checkpoint"] = {**values["checkpoint"], "files": [file.path for file in checkpoint.files]}
        values["files"] = others | rows
        values["fingerprint"] = {**values.get("fingerprint", {}), MODELING_PART: modeling}
        entry = Refreshed(
            from_version=published.version,
            to_version=__version__,
            commit=published.remote.commit,
            tag=None if record.report.recipe["target"]["create_pr"] else checkpoint_tag(record.report.checkpoint),
            files=changed,
            config=tuple(change.key for change in found[1]),
        )
        values["refreshed"] = [*values.get("refreshed", ()), entry.model_dump(mode="json")]
    depends_on = values.get("fingerprint", {})
    if "target" in depends_on:
        tag = "not named" if target.create_pr else "named"
        values["fingerprint"] = {**depends_on, "target": {**depends_on["target"], "tag": tag}}
    replace_card(folder, values, card="")
    record = read_record(folder)
    put_card(folder, record, choices, text=render_again(record, choices))
    return read_record(folder)
