"""Adopt what others published pruned: read without their code, held against its base, written anew so that it loads.

    find the base -> which layers and neurons are left? -> are the others the base's? -> a recipe that names them

From there on it is a prune or a publish of the base with layers that are named, and nothing of theirs is copied: what
is written and measured is the base's.  Where tensors were trained or changed since, theirs are taken too: into the
folder that is written, and of a publish into the healed sibling, as of any checkpoint that was trained elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.core.artifacts import Adoption, BaseCheckpoint, PrunedCheckpoint
from hubprune.core.config import check_config, read_config, read_structure
from hubprune.core.console import Reporter
from hubprune.core.errors import BaseNotFoundError, CheckpointError, RecipeError
from hubprune.core.files import check_new_folder, existing_folder, scratch_folder
from hubprune.core.recipe import REPO_ID, BaseModelSpec, Recipe
from hubprune.core.requests import AdoptRequest, PruneRequest, PublishRequest
from hubprune.core.specs import Adopted, WidthSpec
from hubprune.core.strict import parse_yaml
from hubprune.core.weights import INDEX_NAME, Weights
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import download
from hubprune.pruning.base_files import examine, settle, shapes_in
from hubprune.pruning.foreign import check_same_model, open_theirs, read_claims
from hubprune.pruning.matching import Found, Tensors, find
from hubprune.workflows.choosing import say_plan
from hubprune.workflows.heal.writing import write_healed
from hubprune.workflows.healed import ELSEWHERE, with_tensors
from hubprune.workflows.prune import write_verified
from hubprune.workflows.publish.healing import OF_TOKENIZERS, check_tokenizer
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run, make_plan, open_run, open_session

if TYPE_CHECKING:
    import torch

CARD = "README.md"
CARRIED = (INDEX_NAME, CARD, *OF_TOKENIZERS)
"""What is read of a repo beside config.json and safetensors."""
NOT_TO_DROP = (
    "attn_drop", "mlp_drop", "block_drop", "joint_drop", "attn_layers", "mlp_layers", "neuron_drop", "mlp_width",
    "expansion_ratio", "target", "target_over", "at", "per", "from_sweep", "healed", "recipe",
)  # fmt: skip
"""Options of a publish that say themselves what goes, or what was trained."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What others published, on this machine."""

    name: str
    commit: str | None
    folder: Path
    config: Mapping[str, Any]
    card: Mapping[str, Any]
    """Metadata of its card."""

    @property
    def license(self) -> str | None:
        """The licence that its card names."""
        named = self.card.get("license_name") or self.card.get("license")
        return str(named)[:80] if named else None


@dataclass(frozen=True, kw_only=True)
class Adoptee:
    """What others published, with its base and what is left of that."""

    source: Source
    base: BaseCheckpoint
    """Downloaded."""
    found: Found
    theirs: Weights

    @property
    def told(self) -> Adopted:
        """What the recipe says of it."""
        source = self.source
        return Adopted(repo_id=source.name, revision=source.commit, form=self.found.form, license=source.license)


def adopt(request: AdoptRequest, *, reporter: Reporter) -> Adoption:
    """Say what is left of its base in what others pruned, and write it anew where a folder is asked for.

    Raises:
        HubpruneError: it is nothing that can be adopted, or its base is not known.
    """
    if request.out:
        check_new_folder(Path(request.out))
    session = open_session(request.endpoint)
    adoptee = find_adoptee(
        request.checkpoint, request.revision, base=request.base, base_revision=request.base_revision, session=session,
        reporter=reporter,
    )  # fmt: skip
    asked = PruneRequest(
        _name(adoptee.base), out=request.out or Path(), base_revision=adoptee.base.commit, endpoint=request.endpoint,
        layout=request.layout, device=request.device, dtype=request.dtype, **_what_goes(adoptee.found),
    )  # fmt: skip
    run = open_run(_named(recipe_of(asked), adoptee), request.endpoint, reporter)
    plan = make_plan(run, None)
    say_plan(plan, reporter=reporter)
    made = write_adopted(run, adoptee, Path(request.out)) if request.out else None
    found = adoptee.found
    return Adoption(
        source=adoptee.source.name, commit=adoptee.source.commit, form=found.form, base_model=adoptee.base.name,
        base_commit=adoptee.base.commit, plan=plan, compared=len(found.names), changed=found.changed,
        rounded=found.rounded, made=made,
    )  # fmt: skip


def write_adopted(run: Run, adoptee: Adoptee, out: Path) -> PrunedCheckpoint:
    """Write what others pruned into a new folder, verified: of the base, with their tensors where these changed.

    Raises:
        VerificationError: it does not compute what it should.
    """
    plan, changed = make_plan(run, None), adoptee.found.changed
    if not changed:
        return write_verified(run, plan, out)
    if adoptee.found.widths:
        raise RecipeError(
            f"{adoptee.source.name} has narrower MLPs and {len(changed)} tensors that were trained or changed since,"
            f" {changed[0]} among them.",
            hint="Only models that lost whole sublayers can be adopted with weights of their own yet.",
        )
    with scratch_folder(run.store.folder, name="adopted") as scratch:
        made = with_tensors(run.downloaded, _tensors(adoptee), scratch, reporter=run.reporter)
        written, seen = write_healed(made, plan, out, how=ELSEWHERE, record=None, reporter=run.reporter)
    return PrunedCheckpoint(written=written, verification=seen)


def _tensors(adoptee: Adoptee) -> Iterator[tuple[str, torch.Tensor]]:
    theirs = Tensors(adoptee.theirs)
    return ((name, theirs.read(adoptee.found.names[name])) for name in adoptee.found.changed)


# ---- publishing ------------------------------------------------------------------------------------------------------


@contextmanager
def opened_adopted(request: PublishRequest, *, reporter: Reporter) -> Iterator[tuple[Run, PublishRequest]]:
    """Yield the run and the request by which a publish takes over what others pruned, with credit.

    Where they have weights of their own, these are published as its healed sibling, as of any training elsewhere.

    Raises:
        HubpruneError: the first thing that is wrong.
    """
    if given := [name for name in NOT_TO_DROP if getattr(request, name) is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise RecipeError(
            f"--adopt takes over what somebody else dropped, and {option} says something else.",
            hint="Pass one of them.",
        )
    adoptee = find_adoptee(
        str(request.adopt), request.adopt_revision, base=request.base, base_revision=request.base_revision,
        session=open_session(request.endpoint), reporter=reporter,
    )  # fmt: skip
    asked = replace(
        request, base=_name(adoptee.base), base_revision=adoptee.base.commit, adopt=None, **_what_goes(adoptee.found)
    )
    run = open_run(_named(recipe_of(asked), adoptee), request.endpoint, reporter)
    with _theirs(run, adoptee) as folder:
        yield run, replace(asked, healed=folder)


@contextmanager
def _theirs(run: Run, adoptee: Adoptee) -> Iterator[Path | None]:
    """Yield a folder with their own weights in our layout; None where they have none of their own."""
    if not adoptee.found.changed:
        yield None
        return
    with scratch_folder(run.store.folder, name="adopted") as scratch:
        write_adopted(run, adoptee, scratch / "theirs")
        yield scratch / "theirs"


def _name(base: BaseCheckpoint) -> str:
    """Return what names a base in a request."""
    return base.name if base.commit else str(base.folder)


def _what_goes(found: Found) -> dict[str, Any]:
    asked: dict[str, Any] = {f"{kind}_layers": layers for kind, layers in found.dropped.items() if layers}
    if found.widths:
        asked |= {"mlp_width": found.widths.kept, "width_metric": found.widths.metric, "width_multiple": 1}
    return asked


def _named(recipe: Recipe, adoptee: Adoptee) -> Recipe:
    """Name in a recipe who chose what goes, and the neurons where no metric says which ones they are."""
    width, masks = recipe.width, adoptee.found.widths.neurons if adoptee.found.widths else None
    if width and masks:
        width = WidthSpec(**{**width.model_dump(exclude_none=True), "neurons": masks})
    return recipe.model_copy(update={"adopted": adoptee.told, "width": width})


# ---- finding ---------------------------------------------------------------------------------------------------------


def find_adoptee(
    name: str, revision: str | None, *, base: str | None, base_revision: str | None, session: HubSession,
    reporter: Reporter,
) -> Adoptee:  # fmt: skip
    """Find what others pruned, and what of its base is left in it.

    Raises:
        BaseNotFoundError: there is no such folder or repo, or no base that it names.
        CheckpointError: it is not what is left of that base.
        UnsupportedFormatError: its weights are quantized or pickled.
    """
    source = find_source(name, revision, session=session, reporter=reporter)
    theirs = open_theirs(source.folder)
    whole = find_original(source, base, base_revision, session=session, reporter=reporter)
    structure = read_structure(whole.config, name=whole.name)
    if structure.layout != "stock":
        raise CheckpointError(
            f"{whole.name} was pruned before, so that it is not the base to hold {name} against.",
            hint="Name the one that nothing is missing in with --base.",
        )
    check_same_model(source.config, whole.config, name=name, base_name=whole.name)
    hint = "The result gets the base's tokenizer, which theirs has to agree with."
    check_tokenizer(Path(whole.folder or ""), source.folder, hint=hint)
    claims = read_claims(source.config, structure, whole.config, name=name)
    weights = hub_weights(whole)
    with reporter.progress("comparing with the base", total=weights.size(), unit="B") as advance:
        found = find(
            theirs, weights, claims, structure, layers=int(source.config["num_hidden_layers"]), name=name,
            advance=advance,
        )  # fmt: skip
    kept = len(found.names)
    if found.changed:
        reporter.note(f"{len(found.changed)} of {kept} kept tensors are not {whole.name}'s: trained or changed since")
    else:
        as_what = f", rounded to {', '.join(found.rounded)}" if found.rounded else ", byte for byte"
        reporter.note(f"all {kept} kept tensors are {whole.name}'s{as_what}")
    return Adoptee(source=source, base=whole, found=found, theirs=theirs)


def hub_weights(base: BaseCheckpoint) -> Weights:
    """Open the weights of a downloaded base as its model uses them."""
    return open_theirs(Path(base.folder or "")).used(base.tensor_names)


def find_source(name: str, revision: str | None, *, session: HubSession, reporter: Reporter) -> Source:
    """Find what others pruned; of a repo, config.json, card, tokenizer and safetensors are downloaded.

    Raises:
        BaseNotFoundError: there is no such folder or repo.
        CheckpointError: hubprune wrote it, so that there is nothing to adopt.
        UnsupportedFormatError: its weights are quantized, or not in safetensors.
    """
    folder, commit = existing_folder(name), None
    if folder:
        config = read_config(folder)
    else:
        repo = hub.find_repo(name, revision=revision, session=session)
        check_config(repo.config, where=f"config.json of {name}")
        config, commit = repo.config, repo.commit
        wanted = tuple(f for f in repo.files if f.path.endswith(".safetensors") or f.path in CARRIED)
        hub.require_safetensors(repo, wanted)
        files = (*wanted, *(f for f in repo.files if f.path == "config.json"))
        folder = download(files, repo_id=name, commit=str(commit), session=session, reporter=reporter)
    if "hubprune" in config:
        raise CheckpointError(
            f"{name} was written by hubprune: there is nothing to adopt.",
            hint="`hubprune verify` checks it, and `hubprune push` or `refresh` publish it.",
        )
    return Source(
        name=name if commit else folder.resolve().name, commit=commit, folder=folder, config=config,
        card=_metadata(folder / CARD),
    )  # fmt: skip


def _metadata(path: Path) -> Mapping[str, Any]:
    """Read the metadata of a model card, as far as there is any."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    begin, _, rest = text.partition("---\n")
    if begin.strip() or not rest:
        return {}
    try:
        values = parse_yaml(rest.partition("\n---")[0].encode(), where=CARD)
    except RecipeError:
        return {}
    return values if isinstance(values, dict) else {}


def find_original(
    source: Source, given: str | None, revision: str | None, *, session: HubSession, reporter: Reporter
) -> BaseCheckpoint:
    """Return the base of what others pruned, downloaded: the given one, or that which its card or config.json names.

    Raises:
        BaseNotFoundError: none is given or named, or several are.
    """
    name = given or named_base(source)
    base = hub.resolve_base(BaseModelSpec.of(name, revision=revision or "main"), session=session)
    check_config(base.config, where=f"config.json of {base.name}")
    if given is None:
        reporter.note(f"its base is {base.name}, by {'its card' if source.card.get('base_model') else 'config.json'}")
    base = hub.download_base(base, session=session, reporter=reporter)
    folder = Path(base.folder or "")
    examine(base, folder=folder, shapes=shapes_in(folder), reporter=reporter)
    return settle(base, reporter=reporter)


def named_base(source: Source) -> str:
    """Return the repo id of the base that a card names, or else a config.json.

    Raises:
        BaseNotFoundError: there is none, or there are several.
    """
    told = source.card.get("base_model")
    named = [str(name) for name in (told if isinstance(told, list) else [told]) if name]
    if not named and (path := source.config.get("_name_or_path")):
        named = [str(path)]
    found = [name for name in dict.fromkeys(named) if REPO_ID.fullmatch(name) and "/" in name and name != source.name]
    if len(found) == 1:
        return found[0]
    said = f"names several bases: {', '.join(found)[:200]}" if found else "names no base that could be found"
    raise BaseNotFoundError(
        f"{source.name} {said}.", hint="Say what it was made of with --base, which is needed to compare it."
    )
