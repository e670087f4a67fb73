"""Everything that can refuse a publish is asked before the first second of compute."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from hubprune.cards.card import skeleton
from hubprune.cards.manifest import CARD
from hubprune.cards.provenance import bare_name, card_in_force, check_license, check_name
from hubprune.core.artifacts import BaseCard, BaseCheckpoint, RepoFile
from hubprune.core.console import size
from hubprune.core.errors import (
    AuthenticationError,
    DiskSpaceError,
    HubpruneError,
    PermissionDeniedError,
    RecipeError,
)
from hubprune.core.privacy import check_endpoint
from hubprune.core.recipe import LONGEST_NAME, Recipe
from hubprune.hub.identity import Identity, check_can_create, check_can_write, identify
from hubprune.hub.remote import Overwrite, branch_heads, check_is_ours, read_remote, refs_of
from hubprune.hub.repos import INDEX, SINGLE, needed_files, weight_files
from hubprune.hub.session import HubSession
from hubprune.hub.target import SHORTER, Target, check_branch, check_name_loads, check_visibility, is_private

WITHOUT_CODE = {"block-drop", "mlp-width"}
"""Methods whose results stock classes load, as a rule."""
UNKNOWN_SIZE = -1
"""Of a file that is yet to be made, and so the same as none that is there."""
NOBODY = Identity(user=None)
"""Who runs without a token."""
Excuse = Callable[[HubpruneError], None]


def preflight(
    recipe: Recipe,
    *,
    base: BaseCheckpoint,
    session: HubSession,
    overwrite: Overwrite = "nothing",
    excuse: Excuse | None = None,
) -> Target:
    """Check that nothing will stop the publish at its end; takes seconds and writes nothing.

    Args:
        excuse: told, in a dry run, that the token may not write there, or that there is none; None to refuse both.

    Raises:
        AuthenticationError: no token, or one that is not valid.
        PermissionDeniedError: the token may not write there.
        EditedError: somebody changed files of the publish before, or has others that are in the way.
        RecipeError: libraries that talk to different Hubs, a local base, a name that is no repo id or that the
            licence does not allow, a licence that is not the base's, a revision that is no branch, a public repo for
            what is private, or metadata that the Hub refuses.
    """
    check_endpoint(session.endpoint)
    if base.commit is None:
        raise RecipeError(
            f"Cannot publish from the local folder {base.name!r}: a card names its base on the Hub, and the commit.",
            hint="Give the base's repo id, or keep the result local.",
        )
    identity = _identify(session, wanted=recipe.target.repo_id, excuse=excuse)
    check_license(recipe, base=base)
    terms = card_in_force(base, given=recipe.target.license)
    repo_id = _target_id(recipe, identity=identity, terms=terms)
    name = repo_id.split("/")[-1]
    check_name(name, card=terms, allowed=recipe.target.allow_name)
    target = _look_at(
        repo_id, recipe=recipe, base=base, identity=identity, session=session, overwrite=overwrite, excuse=excuse
    )
    _check_metadata(skeleton(recipe, base=base, name=name), session=session)
    return target


def target_of(recipe: Recipe, *, base: BaseCheckpoint, session: HubSession, overwrite: Overwrite = "nothing") -> Target:
    """Check the target of a result that a dry run made, and that was checked in all else then.

    The base is not asked for: a token that may write to one repo and nothing else is enough.

    Raises:
        HubpruneError: as `preflight`.
    """
    check_endpoint(session.endpoint)
    repo_id, identity = str(recipe.target.repo_id), identify(session)
    return _look_at(repo_id, recipe=recipe, base=base, identity=identity, session=session, overwrite=overwrite)


def _identify(session: HubSession, *, wanted: str | None, excuse: Excuse | None) -> Identity:
    """Ask whose token it is; where there is none, a target that is named in full is enough for a dry run."""
    try:
        return identify(session)
    except AuthenticationError as error:
        if excuse is None or session.token is not None or "/" not in (wanted or ""):
            raise
        excuse(error)
        return NOBODY


def _target_id(recipe: Recipe, *, identity: Identity, terms: BaseCard) -> str:
    repo_id = identity.repo_id(recipe.target.repo_id, default=bare_name(recipe.default_name, card=terms))
    name = repo_id.split("/")[-1]
    if len(name) > LONGEST_NAME:
        raise RecipeError(
            f"The result would be called {name}, which has {len(name)} characters, and the Hub allows {LONGEST_NAME}.",
            hint=SHORTER,
        )
    if recipe.layout != "stock" and not set(recipe.methods) <= WITHOUT_CODE:
        check_name_loads(repo_id)
    return repo_id


def _look_at(
    repo_id: str,
    *,
    recipe: Recipe,
    base: BaseCheckpoint,
    identity: Identity,
    session: HubSession,
    overwrite: Overwrite,
    excuse: Excuse | None = None,
) -> Target:
    """Refuse what the commit itself would refuse hours later, as far as it can be told which files are coming."""
    wanted = recipe.target
    private = is_private(repo_id, session=session)
    exists = private is not None
    may = check_can_write if exists else check_can_create
    try:
        if identity is not NOBODY:
            may(repo_id, identity=identity, create_pr=wanted.create_pr, session=session)
    except PermissionDeniedError as error:
        if excuse is None:
            raise
        excuse(error)
    check_visibility(recipe, base=base, repo_id=repo_id, private=private, endpoint=session.endpoint)
    refs = refs_of(repo_id, session=session) if exists else None
    check_branch(wanted.revision, refs=refs)
    heads = branch_heads(refs) if refs else {}
    head = heads.get(wanted.revision)
    if exists and head is None and wanted.create_pr:
        raise RecipeError(f"{repo_id} has no branch {wanted.revision!r} to open a pull request on.")
    # Nobody reads yet what does not exist yet, so it needs no stage.
    staged = wanted.staged and head is not None
    target = Target(
        repo_id=repo_id, revision=wanted.revision, exists=exists, branch_exists=head is not None,
        parent=head or heads.get("main"), private=wanted.private or base.private,
        create_pr=wanted.create_pr or staged, staged=staged, user=identity.name,
    )  # fmt: skip
    if target.parent:
        remote = read_remote(repo_id, commit=target.parent, session=session)
        made = {CARD, "config.json", SINGLE, INDEX, *(file.path for file in weight_files(base.files))}
        carried = [file for file in needed_files(base) if file.path not in made]
        coming = [*carried, *(RepoFile(path=path, size=UNKNOWN_SIZE) for path in sorted(made))]
        check_is_ours(remote, session=session, overwrite=overwrite, coming=coming)
    return target


def check_disk(
    base: BaseCheckpoint, *, folder: Path | None = None, written: bool = False, loads_back: bool = True
) -> None:
    """Check the room for what is yet to be downloaded and written; a result counts as large as the base.

    Args:
        base: what of it is in the cache already needs no room.
        folder: where the result is written, and where it is downloaded to when it is loaded back.
        written: whether the result is there already.
        loads_back: whether it will be loaded back.

    Raises:
        DiskSpaceError: with both figures.
    """
    from huggingface_hub import constants

    copies = (not written) + loads_back
    output = copies * sum(f.size for f in weight_files(base.files))
    missing = 0 if base.folder else sum(f.size for f in needed_files(base) if not _is_cached(f, base=base))
    need: dict[int, tuple[Path, int]] = {}
    for place, amount in ((Path(constants.HF_HUB_CACHE), missing), (folder or Path.cwd(), output)):
        there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
        disk = there.stat().st_dev
        need[disk] = (there, amount + (need[disk][1] if disk in need else 0))
    for there, amount in need.values():
        if (free := shutil.disk_usage(there).free) < amount:
            raise DiskSpaceError(
                f"The run needs {size(amount)} on the disk of {there}, which has {size(free)} free.",
                hint="Free some space, or move the cache with HF_HOME.",
            )


def _is_cached(file: RepoFile, *, base: BaseCheckpoint) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(base.name, file.path, revision=base.commit), str)


def _check_metadata(card: str, *, session: HubSession) -> None:
    """Let the Hub read the front matter that the card will have."""
    answer = session.post(
        "/api/validate-yaml",
        body={"content": card, "repoType": "model"},
        doing="check the card's metadata",
        accepted=(400,),
    )
    errors = [str(e.get("message")) for e in answer.body.get("errors") or () if isinstance(e, Mapping)]
    if errors:
        raise RecipeError(
            f"The Hub refuses the card's metadata: {' '.join('; '.join(errors).split())}",
            hint="What it says of language and licence comes from the card of the base, and from --license.",
        )
