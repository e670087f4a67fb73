"""Read a published repo, and refuse one that is not as a publish of ours left it; none of its code is run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.cards.manifest import CARD, MANIFEST
from hubprune.cards.records import PublishRecord, parse_record
from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import BaseCheckpoint, ConfigChange, FileChange, RepoFile, WrittenCheckpoint
from hubprune.core.config import CONFIG_NAME, check_config, needs_modeling_file, pruned_classes, read_structure
from hubprune.core.console import Reporter
from hubprune.core.devices import STORED
from hubprune.core.errors import (
    BaseError,
    BaseNotFoundError,
    CheckpointError,
    ConflictError,
    EditedError,
    PermissionDeniedError,
    RecipeError,
    VerificationError,
)
from hubprune.core.privacy import is_license
from hubprune.core.recipe import REPO_ID, BaseModelSpec
from hubprune.core.strict import parse_json
from hubprune.core.weights import INDEX_NAME
from hubprune.hub import repos as hub
from hubprune.hub.preflight import check_can_write, identify
from hubprune.hub.remote import Overwrite, RemoteState, branch_heads, check_is_ours, is_same, read_remote, refs_of
from hubprune.hub.repos import small_files
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target, check_branch
from hubprune.hub.transfer import download
from hubprune.pruning.verify import LEADS_TO_CODE, base_of, plan_of

OUR_FIRST_LINE = re.compile(rb"# Written by hubprune (?P<version>[0-9][\w.+!-]*); template sha256 [0-9a-f]{64}\.")
"""How every modeling file of ours begins."""
NOBODY = "nobody"
"""Who only looks."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A repo as the last publish or refresh left it."""

    target: Target
    remote: RemoteState
    record: PublishRecord
    config: Mapping[str, Any]
    """Its config.json."""
    folder: Path
    """Holds its small files."""
    base: BaseCheckpoint | None
    """With its small files in its folder; None where it is gone."""
    why_no_base: str | None = None

    @property
    def checkpoint(self) -> Mapping[str, RepoFile]:
        """Files of the checkpoint by path: weights, config, tokenizer, licence and modeling file."""
        return {file.path: file for file in self.record.report.checkpoint.files}

    @property
    def version(self) -> str:
        """The hubprune that wrote its files."""
        refreshed = self.record.report.refreshed
        return refreshed[-1].to_version if refreshed else self.record.report.environment.hubprune


def stays(path: str) -> bool:
    """Tell whether a file of a checkpoint is never written anew: weights, their index, licence texts."""
    return _is_weights(path) or is_license(path)


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors") or path == INDEX_NAME


def target_of(repo_id: str, *, revision: str, create_pr: bool, writes: bool, session: HubSession) -> Target:
    """Find the branch that a refresh goes to, and whether this token may write there.

    Where nothing is written, no token is needed for what is public.

    Raises:
        BaseNotFoundError: there is no such repo.
        PermissionDeniedError: the token may not write there.
        RecipeError: the revision is no branch.
        HubError: the Hub refused or did not answer.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise BaseNotFoundError(f"{repo_id!r} is no repo id.", hint="A repo id looks like owner/name.")
    repo = hub.resolve_repo(BaseModelSpec(repo_id=repo_id, revision=revision), session=session)
    refs = refs_of(repo_id, session=session)
    check_branch(revision, refs=refs)
    head = branch_heads(refs).get(revision)
    if head is None:
        raise RecipeError(f"{repo_id} has no branch {revision!r}.", hint="Leave --revision out to refresh main.")
    identity = identify(session) if writes else None
    if identity:
        try:
            check_can_write(repo_id, identity=identity, create_pr=create_pr, session=session)
        except PermissionDeniedError as error:
            if "--create-pr" in (error.hint or ""):  # and speaks of publishing elsewhere
                error.hint = "Propose the refresh with --create-pr, or ask for write access."
            raise
    return Target(
        repo_id=repo_id, revision=revision, exists=True, branch_exists=True, parent=head, private=repo.private,
        create_pr=create_pr, user=identity.name if identity else NOBODY,
    )  # fmt: skip


def read_published(target: Target, *, overwrite: bool, session: HubSession, reporter: Reporter) -> Published:
    """Read what the last publish left, without its weights, and its base at the commit that it was made of.

    Small files that somebody edited since are replaced only where `overwrite` says so.

    Raises:
        CheckpointError: hubprune did not publish it, or with another kind of manifest.
        EditedError: somebody changed a file of ours since.
        VerificationError: it holds code that hubprune does not write.
        HubError: the Hub refused or did not answer.
    """
    repo_id, commit = target.repo_id, str(target.parent)
    remote = read_remote(repo_id, commit=commit, session=session)
    if remote.manifest is None:
        raise CheckpointError(
            f"{repo_id} has no {MANIFEST}, so hubprune did not publish it.",
            hint="Only repos that hubprune publish wrote can be refreshed.",
        )
    try:
        record = parse_record(remote.manifest.data, where=f"{MANIFEST} of {repo_id}")
    except CheckpointError:
        check_is_ours(remote, session=session)  # of a manifest that somebody edited, say who did
        raise
    hint = "Pass --overwrite to replace what is there, which stays in the history."
    _refuse_edited(remote, record, overwrite="everything" if overwrite else "nothing", hint=hint, session=session)
    if leads := [path for path in sorted(remote.files) if path.split("/")[0] in LEADS_TO_CODE]:
        raise VerificationError(
            f"{repo_id} holds {leads[0]}, which hubprune never writes and which leads to other code or weights.",
            hint="Take it out of the repo first.",
        )
    listed = {file.path for file in record.report.checkpoint.files} & remote.files.keys()
    if CONFIG_NAME not in listed:
        raise CheckpointError(f"{repo_id} has no {CONFIG_NAME} that its {MANIFEST} lists.", hint="Publish it again.")
    small = [remote.files[path] for path in sorted(listed) if not _is_weights(path)]
    folder = download(small, repo_id=repo_id, commit=commit, session=session, reporter=reporter)
    config = parse_json((folder / CONFIG_NAME).read_bytes(), where=f"{CONFIG_NAME} of {repo_id}")
    _check_ours(config, folder, record, repo_id=repo_id)
    base, why = _base(record, config, session=session)
    if base:
        _check_plan(record, config, base, repo_id=repo_id)
    elif overwrite:
        why_not = f"The files of the repo are all that there is to start from: {why}"
        _refuse_edited(remote, record, overwrite="card", hint=why_not, session=session)
    return Published(
        target=target, remote=remote, record=record, config=config, folder=folder, base=base, why_no_base=why
    )


def _refuse_edited(
    remote: RemoteState, record: PublishRecord, *, overwrite: Overwrite, hint: str, session: HubSession
) -> None:
    """Refuse a repo whose files are not as they were published: to replace them would undo somebody's work.

    Weights, licence texts, and what is listed beside the checkpoint are not written anew, whatever is allowed.
    """
    rewritten = {CARD, *(file.path for file in record.report.checkpoint.files if not stays(file.path))}
    strays = (path for path, file in record.files.items() if not is_same(file, remote.files.get(path)))
    lasting = sorted(path for path in strays if path not in rewritten)
    if lasting:
        hint = f"A refresh cannot write {lasting[0]} anew: publish again, or give the repo its own file back."
    try:
        check_is_ours(remote, session=session, overwrite="nothing" if lasting else overwrite)
    except EditedError as error:
        error.hint = hint
        raise
    if lasting:
        raise ConflictError(f"{', '.join(lasting)} of {remote.repo_id} did not arrive as published.", hint=hint)


LANGUAGE_MODEL = {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


def _check_ours(config: Mapping[str, Any], folder: Path, record: PublishRecord, *, repo_id: str) -> None:
    """Compare config.json and modeling file with what the manifest says of the plan, and with how ours look."""
    report, where = record.report, f"config.json of {repo_id}"
    check_config(config, where=where)
    told, plan = plan_of(config), report.plan
    same_plan = (told.content, told.num_hidden_layers) == (plan.content, plan.num_hidden_layers)
    if not same_plan or base_of(config) != (report.base.name, report.base.commit):
        raise CheckpointError(f"{where} tells of another plan or base than its {MANIFEST}.", hint="Publish it again.")
    if not needs_modeling_file(report.plan):
        return
    architecture, layout = architecture_of(config, name=repo_id), report.plan.layout
    classes = pruned_classes(architecture, layout)
    if isinstance(named := config.get("auto_map"), dict) and named.keys() >= LANGUAGE_MODEL:
        # Files of an earlier version have no other heads.
        classes["auto_map"] = {auto: name for auto, name in classes["auto_map"].items() if auto in named}
    if {key: config.get(key) for key in classes} != classes or "model_file" in config:
        raise VerificationError(f"{where} names classes that hubprune does not write.", hint="Publish it again.")
    path = folder / architecture.modeling_file(layout)
    first = path.read_bytes().partition(b"\n")[0] if path.is_file() else b""
    if not OUR_FIRST_LINE.fullmatch(first):
        raise VerificationError(
            f"{path.name} of {repo_id} does not begin as a modeling file of hubprune does.", hint="Publish it again."
        )


def _check_plan(record: PublishRecord, config: Mapping[str, Any], base: BaseCheckpoint, *, repo_id: str) -> None:
    """Make sure that the repo is what the plan leaves of the base."""
    plan, structure = record.report.plan, read_structure(base.config, name=base.name)
    layers = {plan.num_hidden_layers, *([len(plan.widths.kept)] if plan.widths else [])}
    is_of_base = layers == {structure.num_hidden_layers}
    if not is_of_base or structure.without(plan) != read_structure(config, name=repo_id):
        raise CheckpointError(
            f"{repo_id} is not what its plan leaves of {base.name} at {str(base.commit)[:8]}.", hint="Publish it again."
        )


def _base(
    record: PublishRecord, config: Mapping[str, Any], *, session: HubSession
) -> tuple[BaseCheckpoint, None] | tuple[None, str]:
    """Fetch the small files of the base at the commit of the publish; where it is gone, say why.

    Where a publish takes a value of config.json from the base's weights, those of the repo tell the same.
    """
    published = record.report.base
    try:
        base = hub.resolve_recorded(published.name, str(published.commit), session=session)
    except BaseError as error:
        return None, error.message
    check_config(base.config, where=f"config.json of {base.name}")
    values = dict(base.config)
    if not (values.get("dtype") or values.get("torch_dtype")):
        stored = [STORED[dtype] for dtype in record.report.checkpoint.dtypes if dtype in STORED]
        if named := config.get("dtype") or config.get("torch_dtype"):
            values["dtype"] = str(named)
        elif len(stored) == 1:  # and no mixture without a name
            values["dtype"] = stored[0]
    if config.get("tie_word_embeddings") is False:
        values["tie_word_embeddings"] = False
    folder = small_files(base, session=session)
    return base.model_copy(update={"config": values, "folder": str(folder)}), None


def file_changes(published: Published, checkpoint: WrittenCheckpoint) -> Iterator[FileChange]:
    """Say of every small file of a checkpoint to be what becomes of it in the repo."""
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


def key_changes(before: Mapping[str, Any], after: Mapping[str, Any], *, inside: str = "") -> Iterator[ConfigChange]:
    """List the keys of config.json that differ; lists are compared as a whole."""
    for key in dict.fromkeys((*after, *before)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from key_changes(old, new, inside=f"{inside}{key}.")
        elif old != new or (key in before) != (key in after):
            yield ConfigChange(key=f"{inside}{key}", before=old, after=new)


def card_changes(published: Published, written: Mapping[str, RepoFile]) -> Iterator[FileChange]:
    """Say the same of card and manifest; what was not written anew stays."""
    remote = published.remote
    manifest = hashlib.sha256(remote.manifest.data).hexdigest() if remote.manifest else None
    for path, before in ((CARD, remote.card_sha256), (MANIFEST, manifest)):
        after = written.get(path)
        yield _change(path, before=before, after=after, same=after is None or after.sha256 == before)
