"""Write what this version would write for the plan and base of a published repo, and say what of it differs.

Weights are those that are there.  Licence files and notices stay as they are: a commit of the base never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune import __version__
from hubprune.cards.card import template_hash
from hubprune.cards.manifest import CARD, MANIFEST, PublishRecord, checkpoint_tag, read_record, replace_card
from hubprune.core import templates
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import ConfigChange, FileChange, Refreshed, RepoFile, WrittenCheckpoint
from hubprune.core.config import needs_modeling_file, read_config, read_structure, stock_config, write_json
from hubprune.core.errors import RecipeError
from hubprune.core.files import is_license, list_files, scratch_folder
from hubprune.hub.remote import is_same
from hubprune.pruning.checkpoint import carry_files, write_companions
from hubprune.pruning.tokenizer_files import ids_depend_on_version, settle_tokenizer
from hubprune.workflows.card import CardChoices, put_card, render_again
from hubprune.workflows.publish.before import MODELING_PART, modeling_part
from hubprune.workflows.refresh.there import Published, stays
from hubprune.workflows.run import refuse_tokenizer_code

SHIPPED_BEFORE = ("1ccd488f2b6d9c368b1a1d8c954f7284e9b0c0c5f5009a957d1fc5d2d21f7e27",)
"""Hashes of the card templates that earlier versions shipped; a card of any others was designed by its publisher."""


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
    """The config.json to be."""
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
    choices = CardChoices(published.record.report.notes, template)
    used = published.record.values.get("card_templates")
    if not (overwrite or choices.template or used in (template_hash(), *SHIPPED_BEFORE)):
        raise RecipeError(
            f"The card of {published.target.repo_id} was made by templates that hubprune does not ship.",
            hint="Name their folder with --card-template, or pass --overwrite for a card by the shipped ones.",
        )
    notes = _write_small_files(published, folder)
    checkpoint = _checkpoint(published, folder)
    changes = tuple(_file_changes(published, folder, checkpoint))
    config_json = read_config(folder)
    config = tuple(_key_changes(published.config, config_json))
    same = {change.path for change in changes if change.outcome == "same"}
    for file in list_files(folder):
        if file.path in same:
            (folder / file.path).unlink()
    record = _write_card(published, folder, checkpoint, (changes, config), choices)
    written = {file.path: file for file in list_files(folder)}
    files = {**record.files, MANIFEST: written.get(MANIFEST) or published.remote.files[MANIFEST]}
    return Anew(
        folder=folder,
        files=tuple(files[path] for path in sorted(files)),
        changes=(*changes, *_card_changes(published, written)),
        config=config,
        config_json=config_json,
        record=record,
        notes=notes,
    )


# ---- the checkpoint's files --------------------------------------------------------------------------------------


def _write_small_files(published: Published, folder: Path) -> tuple[str, ...]:
    """Write config, tokenizer and modeling file, and return what there is to say of them."""
    base = published.base
    if base is None:
        _write_without_base(published, folder)
        return (
            "The base cannot be read, so config.json keeps its keys, and the tokenizer files are made of the repo's "
            f"own: {published.why_no_base}",
        )
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


def _checkpoint(published: Published, folder: Path) -> WrittenCheckpoint:
    """Describe the checkpoint to be: weights and licence files as they are, and what was written beside them."""
    kept = {path: file for path, file in published.checkpoint.items() if stays(path)}
    for path in folder.rglob("*"):
        if is_license(path.relative_to(folder).as_posix()) and path.is_file():
            path.unlink()
    files = {**kept, **{file.path: file for file in list_files(folder)}}
    in_order = tuple(files[path] for path in sorted(files))
    return published.record.report.checkpoint.model_copy(update={"files": in_order})


def _file_changes(published: Published, folder: Path, checkpoint: WrittenCheckpoint) -> Iterator[FileChange]:
    there, anew = published.remote.files, {file.path: file for file in checkpoint.files}
    for path in sorted({*published.checkpoint, *anew}):
        if stays(path):
            continue
        before = hashlib.sha256((published.folder / path).read_bytes()).hexdigest() if path in there else None
        after, remote = anew.get(path), there.get(path)
        same = is_same(after, remote) if after else remote is None
        yield _change(path, before=before, after=after, same=same)


def _change(path: str, *, before: str | None, after: RepoFile | None, same: bool) -> FileChange:
    if same:
        return FileChange(path=path, outcome="same", before=before, after=before)
    if after is None:
        return FileChange(path=path, outcome="removed", before=before, after=None)
    outcome = "changed" if before else "added"
    return FileChange(path=path, outcome=outcome, before=before, after=after.sha256, size=after.size)


def _key_changes(before: Mapping[str, Any], after: Mapping[str, Any], *, inside: str = "") -> Iterator[ConfigChange]:
    """List the keys of config.json that differ; lists are compared as a whole."""
    for key in dict.fromkeys((*after, *before)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _key_changes(old, new, inside=f"{inside}{key}.")
        elif old != new or (key in before) != (key in after):
            yield ConfigChange(key=f"{inside}{key}", before=old, after=new)


# ---- card and manifest -------------------------------------------------------------------------------------------


def _write_card(
    published: Published,
    folder: Path,
    checkpoint: WrittenCheckpoint,
    found: tuple[tuple[FileChange, ...], tuple[ConfigChange, ...]],
    choices: CardChoices,
) -> PublishRecord:
    """Write the manifest that tells of the refresh, and the card that it gives; of both only what differs stays."""
    record, target = published.record, published.target
    changed = tuple(change for change in found[0] if change.outcome != "same")
    same_card = render_again(record, choices).encode() == published.remote.card
    if not changed and same_card:
        return record
    values = dict(record.values)
    values["run"] = {**values["run"], "create_pr": target.create_pr}
    if changed:
        values |= _with_files(published, checkpoint)
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


def _with_files(published: Published, checkpoint: WrittenCheckpoint) -> dict[str, Any]:
    """Return the parts of a manifest that follow from the files of the checkpoint."""
    values, before = published.record.values, published.checkpoint
    others = {path: row for path, row in values["files"].items() if path not in before}
    rows = {file.path: file.model_dump(exclude={"path"}) for file in checkpoint.files}
    architecture = architecture_of(published.config, name=published.target.repo_id)
    return {
        "checkpoint": {**values["checkpoint"], "files": [file.path for file in checkpoint.files]},
        "files": others | rows,
        "fingerprint": {**values.get("fingerprint", {}), MODELING_PART: modeling_part(architecture)},
    }


def _card_changes(published: Published, written: Mapping[str, RepoFile]) -> Iterator[FileChange]:
    remote = published.remote
    manifest = hashlib.sha256(remote.manifest.data).hexdigest() if remote.manifest else None
    for path, before in ((CARD, remote.card_sha256), (MANIFEST, manifest)):
        after = written.get(path)
        yield _change(path, before=before, after=after, same=after is None or after.sha256 == before)
