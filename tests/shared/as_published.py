"""What a publish leaves on the Hub, with figures that nobody measured, and the same publish again."""

from __future__ import annotations

import made
from on_hub import make_folder

from hubprune.cards import card
from hubprune.cards.manifest import checkpoint_tag, write_manifest, write_recipe
from hubprune.core.files import list_files
from hubprune.core.recipe import BaseModelSpec, CalibrationMix, CalibrationSubset, EvaluationSpec, TargetSpec
from hubprune.core.requests import PublishRequest
from hubprune.hub.commit import publish as send
from hubprune.hub.preflight import preflight
from hubprune.workflows import publish as pipeline
from hubprune.workflows.card import AS_SHIPPED
from hubprune.workflows.publish.before import fingerprint

TEXTS, BASE_ID = "somebody/texts", "somebody/whole-base"
SIZES = {
    "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 9,
}  # fmt: skip
NOT_OF_THE_CHECKPOINT = ("README.md", "recipe.yaml", "hubprune.json", "tasks/")


def recipe_of(user, **changes):
    mix = CalibrationMix(name="mine", subsets=(CalibrationSubset(dataset=TEXTS, weight=1),), num_samples=2)
    values = {
        "base": BaseModelSpec(repo_id=BASE_ID),
        "calibration": mix,
        "evaluation": EvaluationSpec(tasks=(), prompts=("One",)),
        "target": TargetSpec(repo_id=f"{user[0]}/pruned"),
    }
    return made.recipe(**{**values, **changes})


def put_on_the_hub(run, folder, choices, *, tag=True, **changes):
    """Send a folder as a run would have left it."""
    product, target = produced_by(run, folder, choices, **changes)
    name = checkpoint_tag(product.report.checkpoint) if tag else None
    return send(
        folder, target=target, files=product.files, message="First", tag=name, session=run.session,
        reporter=run.reporter,
    )  # fmt: skip


def produced_by(run, folder, choices=AS_SHIPPED, **changes):
    make_folder(folder)
    (folder / "hubprune.json").unlink()
    target = preflight(run.recipe, base=run.base, session=run.session)
    files = tuple(f for f in list_files(folder) if not f.path.startswith(NOT_OF_THE_CHECKPOINT))
    depends_on = fingerprint(run, repo_id=target.repo_id, tagged=target.is_tagged, choices=choices)
    report = made.report(
        checkpoint=made.checkpoint(files=files), recipe=run.pinned_recipe.model_dump(mode="json", exclude_none=True),
        base=run.base, repo_id=target.repo_id, endpoint=run.session.endpoint, notes=choices.notes, snippet=None,
        fingerprint={part: dict(values) for part, values in depends_on.items()}, **changes,
    )  # fmt: skip
    context = card.context_of(report, overrides=choices.template)
    (folder / "README.md").write_text(card.render(context, overrides=choices.template), encoding="utf-8")
    write_recipe(folder, recipe=run.pinned_recipe, report=report)
    written = write_manifest(folder, report=report, template_hash=card.template_hash(choices.template))
    return pipeline.Product(folder, written, report), target


class ComputedError(Exception):
    """A stage was run."""


def again(run, *, told=lambda report: None, **options):
    return pipeline.publish_run(run, PublishRequest(**options), told=told)
