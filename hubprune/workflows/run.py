"""One run of a recipe, up to its plan: resolve, score, select.

Each stage goes on from what an earlier run of it found.  Heavy libraries are imported by the stages that need them:
what fails fast must not wait for torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.core import templates
from hubprune.core.architectures import Architecture, architecture_of
from hubprune.core.artifacts import (
    BY_LOSS,
    BaseCheckpoint,
    Chat,
    DropPlan,
    Environment,
    Frontier,
    LayerScores,
    ScoreKind,
    SiblingKind,
)  # fmt: skip
from hubprune.core.config import check_config
from hubprune.core.console import Reporter
from hubprune.core.devices import COMPUTE_BITS, describe_environment, resolve_device, resolve_dtype
from hubprune.core.errors import RecipeError, UnsupportedFormatError
from hubprune.core.files import StageStore, key_of, work_folder
from hubprune.core.memory import say_where
from hubprune.core.privacy import use_endpoint
from hubprune.core.prompts import chat_of
from hubprune.core.recipe import CalibrationMix, Recipe
from hubprune.core.strict import parse_json
from hubprune.core.weights import INDEX_NAME, merged_headers
from hubprune.hub import repos as hub
from hubprune.hub.repos import small_files, stored_headers
from hubprune.hub.session import HubSession
from hubprune.pruning import calibration, documents, iterative, selection
from hubprune.pruning.aggregation import KINDS
from hubprune.pruning.base_files import examine, settle, shapes_in
from hubprune.pruning.calibration import CalibrationSet, file_hashes
from hubprune.pruning.layouts import Runnable, check_choice, make_runnable
from hubprune.pruning.runs import run_length, score_runs
from hubprune.pruning.selection import shape_of
from hubprune.workflows import choosing, reachable
from hubprune.workflows.chat import check_chat
from hubprune.workflows.choosing import laid_out, plan_of, ranked_kinds, widths_of

if TYPE_CHECKING:
    from hubprune.pruning.importance import Scorer, Scoring
    from hubprune.pruning.loss_scores import LossScorer


@dataclass(frozen=True)
class Run:
    """One run of a recipe: what all stages share."""

    recipe: Recipe
    session: HubSession
    reporter: Reporter
    store: StageStore

    @cached_property
    def base(self) -> BaseCheckpoint:
        """The base, resolved to a commit and found fit for the request; nothing but its config was read."""
        base = hub.resolve_base(self.recipe.base, session=self.session)
        check_config(base.config, where=f"config.json of {base.name}")
        selection.check_request(self.recipe.drop, shape_of(base))
        widths = widths_of(self.recipe, base, gone=self.recipe.drop.mlp_layers or ())
        check_choice(self.recipe.layout, base.config, methods=self.recipe.methods, widths=widths)
        if not self.recipe.needs_scores:
            plan_of(self.recipe, None, base)
        return base

    @cached_property
    def data_commits(self) -> tuple[str | None, ...]:
        """Commits of the calibration data sets, one per subset of the mix."""
        return calibration.resolve_commits(self.recipe.calibration)

    @cached_property
    def found_data(self) -> tuple[str | None, ...]:
        """The same commits, once every config, split and column that the mix names was found there."""
        documents.check_subsets(self.recipe.calibration, self.data_commits)
        return self.data_commits

    @cached_property
    def in_rounds(self) -> tuple[LayerScores, DropPlan]:
        """Scores of the base and what goes, where the schedule is iterative."""
        return iterative.drop_in_rounds(
            self.recipe.drop, self.shape, open_scorer=lambda: open_scorer(self, keeps_states=True),
            store=self.store, key=scores_key(self), reporter=self.reporter,
        )  # fmt: skip

    @cached_property
    def shape(self) -> selection.Shape:
        """What a selection has to know of the base; where scores are ranked by what is saved, that too."""
        shape = shape_of(self.base)
        return replace(shape, saved=reachable.saved_per(self)) if self.recipe.drop.per else shape

    @cached_property
    def target(self) -> tuple[LayerScores, DropPlan]:
        """Scores of the base and what goes, where a saving was asked for."""
        return choosing.find(self, draw=partial(drawn_for_scores, self), key=scores_key(self))

    @cached_property
    def examined(self) -> BaseCheckpoint:
        """The base, found to be of one piece; of its weights, only the headers were read."""
        folder = small_files(self.base, session=self.session)
        refuse_tokenizer_code(folder, name=self.base.name)
        check_chat(self.recipe, folder, name=self.base.name, reporter=self.reporter)
        if self.base.folder is not None:
            shapes = shapes_in(folder)
        else:
            headers = stored_headers(self.base, session=self.session)
            shapes = merged_headers(headers, index=folder / INDEX_NAME, name=self.base.name)
        examine(self.base, folder=folder, shapes=shapes, reporter=self.reporter)
        if self.recipe.drop.target:
            reachable.check_reachable(self, shapes)
        return self.base

    @cached_property
    def downloaded(self) -> BaseCheckpoint:
        """The base with its files on disk, and with a config.json that says what transformers makes of them."""
        base = hub.download_base(self.examined, session=self.session, reporter=self.reporter)
        return settle(base, reporter=self.reporter)

    @property
    def pinned_recipe(self) -> Recipe:
        """The recipe of the result alone, with the commits of the data sets that the scores come from."""
        return self._pinned(self.recipe.alone) if self.recipe.needs_scores else self.recipe.alone

    def sibling_recipe(self, kind: SiblingKind) -> Recipe:
        """Return the recipe of one sibling, with the commits of the data sets that it is made by, too."""
        own = {"healed": "heal", "quantized": "quantize", "gguf": "gguf"}[kind]
        recipe = self.recipe.alone.model_copy(update={own: getattr(self.recipe, own)})
        return self._pinned(recipe) if recipe.reads_texts else recipe

    def _pinned(self, recipe: Recipe) -> Recipe:
        pairs = zip(recipe.calibration.subsets, self.data_commits, strict=True)
        subsets = tuple(subset.model_copy(update={"revision": commit}) for subset, commit in pairs)
        return recipe.model_copy(
            update={"calibration": recipe.calibration.model_copy(update={"subsets": subsets})}
        )  # fmt: skip

    @cached_property
    def environment(self) -> Environment:
        """Where the run takes place."""
        return describe_environment(device=self.device)

    @cached_property
    def task_texts(self) -> dict[str, str]:
        """Task files of the user's own that the benchmarks need, by their path below the include folder."""
        from hubprune.evaluation.tasks import task_files

        files = task_files(self.recipe.evaluation)
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}

    @property
    def circumstances(self) -> object:
        """What stands for the base and the machine in keys: another library or device may find other numbers."""
        asked, config = self.recipe.dtype, self.base.config
        here = resolve_dtype(asked, config, device=self.device)
        dtype = asked if here == resolve_dtype(asked, config) else here
        return [self.base_identity, self.environment.versions, self.environment.machine, self.device, dtype]

    @cached_property
    def device(self) -> str:
        """Where the run computes."""
        return resolve_device(self.recipe.device)

    @cached_property
    def dtype(self) -> str:
        """What it computes in there."""
        return resolve_dtype(self.recipe.dtype, self.downloaded.config, device=self.device)

    @cached_property
    def runnable(self) -> Runnable:
        """The base as transformers can load it; one that was pruned before gets its modeling file from here."""
        key = key_of(self.base_identity, templates.modeling_code(self.architecture))
        found = make_runnable(self.downloaded, self.store.folder / "bases" / key)
        self._check_lengths(found)
        return found

    def _check_lengths(self, found: Runnable) -> None:
        """Make sure that the base has the positions and the memory for long benchmarks, once its tokenizer is there."""
        from hubprune.evaluation import lengths

        if lengths.long_tasks(self.recipe.evaluation):
            from hubprune.evaluation.models import free_bytes

            lengths.check(
                self.recipe.evaluation, tokenizer=found.tokenizer(), config=self.base.config,
                itemsize=COMPUTE_BITS[self.dtype] // 8, free=free_bytes(self.recipe.device), reporter=self.reporter,
            )  # fmt: skip

    @cached_property
    def benchmark_chat(self) -> Chat | None:
        """How benchmarks are asked through the base's chat template; None where they are not."""
        return chat_of(self.runnable.folder) if self.recipe.evaluation.apply_chat_template else None

    @property
    def architecture(self) -> Architecture:
        """The base's family."""
        return architecture_of(self.base.config, name=self.base.name)

    @cached_property
    def task_sources(self) -> dict[str, str | None]:
        """Data sets of the benchmarks, found to be within reach, each with its commit."""
        from hubprune.evaluation.harness import check_tasks

        return check_tasks(self.recipe.evaluation, positions=self.base.config.get("max_position_embeddings"))

    def draw(self, mix: CalibrationMix, commits: Sequence[str | None]) -> CalibrationSet:
        """Draw the documents of a mix as the base's tokenizer reads them; its subsets are taken at these commits."""
        return calibration.draw(
            mix, commits=commits, seed=self.recipe.seed, tokenizer=self.runnable.tokenizer(),
            context_length=self.base.config.get("max_position_embeddings"), reporter=self.reporter,
        )  # fmt: skip

    def identity(self, *parts: object) -> str:
        """Return what stands for the base, or with `parts` for what becomes of it, in the memory of answers."""
        return key_of(self.circumstances, *parts)

    @property
    def answers_file(self) -> Path:
        """Where the answers to benchmark requests are kept."""
        return self.store.folder / "answers.sqlite"

    @property
    def base_identity(self) -> object:
        """The base's commit, or the sizes and times of a local folder's files."""
        if self.base.commit:
            return [self.base.name, self.base.commit]
        folder = Path(self.base.folder or "").resolve()
        return [str(folder), [[f.path, f.size, (folder / f.path).stat().st_mtime_ns] for f in self.base.files]]


def open_session(endpoint: str | None) -> HubSession:
    """Open a session with a Hub; None for the one that the environment names."""
    return HubSession.open(endpoint=use_endpoint(endpoint))


def open_store(folder: Path, reporter: Reporter, *, earlier: str) -> StageStore:
    """Open a work folder; what is taken from an earlier run, or whatever it is called, is said."""
    return StageStore(
        folder, on_reuse=lambda stage: reporter.note(f"{stage}: taken from an earlier {earlier}"), warn=reporter.warn
    )


def open_run(recipe: Recipe, endpoint: str | None, reporter: Reporter) -> Run:
    """Open a run of a recipe over the work folder."""
    session = open_session(endpoint)
    return Run(recipe, session, reporter, open_store(work_folder(), reporter, earlier="run"))


def say_computing(run: Run) -> None:
    """Say where a run computes, in which dtype and within how much memory."""
    say_where(run.base.config, device=run.recipe.device, dtype=run.recipe.dtype, reporter=run.reporter)


# ---- scoring -----------------------------------------------------------------------------------------------------


def score(run: Run, kinds: Collection[ScoreKind] | None = None) -> LayerScores:
    """Score the base of a run, or take the scores of an earlier run on the same base and mix.

    Where each kind of score takes runs of its own, only those of `kinds` are computed; None for what the recipe ranks.

    Raises:
        RecipeError: the metric of the recipe computes nothing.
    """
    if run.recipe.metric in ("reverse-order", "random"):
        raise RecipeError(
            f"--metric {run.recipe.metric} is an order of layers and computes no scores.",
            hint="Pass cosine, cosine-no-residual, relative-magnitude, loss or kl.",
        )
    if run.recipe.drop.target:
        return run.target[0]
    if run.recipe.schedule == "iterative":
        return run.in_rounds[0]

    wanted, every = tuple(kinds or ranked_kinds(run.recipe)), scores_key(run, KINDS)

    def compute() -> LayerScores:
        if wanted != KINDS and run.store.has("scores", every):  # by `hubprune score`, which looks at all
            return run.store.run("scores", every, LayerScores, compute).only(wanted)
        if run.recipe.metric == "angular":
            length = run_length(run.recipe.drop, run.base.num_hidden_layers)
            return score_runs(run.runnable.folder, *drawn_for_scores(run), length=length, reporter=run.reporter)
        scorer = open_scorer(run, wanted)
        with run.reporter.progress("scoring", total=scorer.cost(), unit="batches") as advance:
            scorer.run(advance)
        if run.recipe.metric in BY_LOSS:
            passes = scorer.layer_runs / run.base.num_hidden_layers
            run.reporter.note(f"{scorer.layer_runs:,.0f} runs of a layer, as many as {passes:.1f} passes over the base")
        return scorer.scores()

    found = run.store.run("scores", scores_key(run, wanted), LayerScores, compute)
    run.store.keys["scores"] = scores_key(run, wanted)
    return found


def frontier(run: Run) -> Frontier:
    """Return what every saving of a base costs at the least, from one pass, or from what an earlier run found."""
    run.examined  # noqa: B018
    return choosing.draw_frontier(run, draw=partial(drawn_for_scores, run), key=scores_key(run))


def scores_if_needed(run: Run, kinds: Collection[ScoreKind] | None = None) -> LayerScores | None:
    """Score, unless the recipe names the layers itself."""
    if run.recipe.needs_scores:
        return score(run, kinds)
    run.reporter.note("no scores are needed: nothing is chosen by them")
    return None


def scores_key(run: Run, kinds: Collection[ScoreKind] | None = None) -> str:
    """Return the key of a run's scores; of which kinds, only matters where each takes runs of its own."""
    recipe = run.recipe
    of: list[object] = [list(kinds or ranked_kinds(recipe))] if recipe.metric in BY_LOSS else []
    if recipe.metric == "angular":
        of = [run_length(recipe.drop, run.base.num_hidden_layers)]
    # The commits say what the revisions stand for; how these were spelled changes nothing.
    mix = recipe.calibration.model_dump(mode="json", exclude={"subsets": {"__all__": {"revision"}}})
    return key_of(
        run.circumstances, mix, run.data_commits, file_hashes(recipe.calibration), recipe.seed,
        recipe.aggregation, recipe.metric, *of,
    )  # fmt: skip


def check_data(run: Run) -> None:
    """Make sure that what the mix names is there, unless it was scored on before.

    Raises:
        CalibrationError: something is not there, with what is.
    """
    read_besides = run.recipe.quantize is not None or run.recipe.heal is not None
    if read_besides or (run.recipe.needs_scores and not run.store.has("scores", scores_key(run))):
        run.found_data  # noqa: B018


def open_scorer(
    run: Run, kinds: Collection[ScoreKind] | None = None, *, keeps_states: bool = False
) -> Scorer | LossScorer:
    """Draw the calibration set of a run and make its base ready to be scored; no layer is read yet."""
    from hubprune.pruning.importance import Scorer
    from hubprune.pruning.loss_scores import LossScorer

    drawn, scoring = drawn_for_scores(run)
    if run.recipe.metric in BY_LOSS:
        from hubprune.pruning.loss_scores import LossScorer

        of = kinds or ranked_kinds(run.recipe)
        return LossScorer(run.runnable.folder, drawn, scoring, of, shape=shape_of(run.base), keeps_states=keeps_states)
    return Scorer(run.runnable.folder, drawn, scoring, keeps_states=keeps_states)


def drawn_for_scores(run: Run) -> tuple[CalibrationSet, Scoring]:
    """Draw the calibration set of a run, and say how its base is scored on it."""
    from hubprune.pruning.importance import Scoring

    recipe = run.recipe
    drawn = run.draw(recipe.calibration, run.found_data)
    scoring = Scoring(
        architecture=run.architecture, own_code=run.runnable.own_code, tensor_names=run.runnable.tensor_names,
        metric=recipe.metric, aggregation=recipe.aggregation, batch_size=recipe.score_batch_size,
        dtype=run.dtype, device=run.device,
    )  # fmt: skip
    return drawn, scoring


def make_plan(run: Run, scores: LayerScores | None) -> DropPlan:
    """Select what goes."""
    if scores and run.recipe.schedule == "iterative":
        return laid_out(run.recipe, run.in_rounds[1], run.base)
    if scores and run.recipe.drop.target:
        return laid_out(run.recipe, run.target[1], run.base)
    return plan_of(run.recipe, scores, run.base, shape=run.shape)


def refuse_tokenizer_code(folder: Path, *, name: str) -> None:
    """Refuse a base whose tokenizer is made by code of its own: it would run here, and for every reader of the result.

    Raises:
        UnsupportedFormatError: it is.
    """
    path = folder / "tokenizer_config.json"
    if path.is_file() and "auto_map" in parse_json(path.read_bytes(), where=str(path)):
        raise UnsupportedFormatError(
            f"The tokenizer of {name} needs code of its own, which hubprune never runs.",
            hint="Only bases whose tokenizer is one of transformers' own classes can be pruned.",
        )
