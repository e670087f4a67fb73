"""What crosses a stage: frozen values that are also written as JSON.

Every stage takes some of these and returns one.  The JSON files in the work folder, the manifest of a published repo
and the context of a model card are made of the same types, so that each number has one source.

Layers are numbered from 0.  "Original" numbers are the base's, "published" ones those of the pruned checkpoint; they
differ only where whole layers went.
"""

from hubprune.artifacts.artifact import (
    Aggregation,
    Artifact,
    Layout,
    LayoutChoice,
    Method,
    Metric,
    Ranking,
    Schedule,
    SublayerKind,
    WidthMetric,
)
from hubprune.artifacts.evaluation import (
    BenchmarkComparison,
    Continuation,
    GenerationComparison,
    MetricValue,
    TaskComparison,
)
from hubprune.artifacts.pruning import (
    BaseCard,
    BaseCheckpoint,
    CalibrationRecord,
    CalibrationSource,
    Check,
    DocumentScores,
    DroppedSublayer,
    DropPlan,
    ImportanceScores,
    LayerScores,
    Margin,
    PrunedCheckpoint,
    RepoFile,
    Verification,
    WidthPlan,
    WrittenCheckpoint,
)
from hubprune.artifacts.publishing import Environment, LoadedBack, PublishedCommit, PublishReport

__all__ = [
    "Aggregation",
    "Artifact",
    "BaseCard",
    "BaseCheckpoint",
    "BenchmarkComparison",
    "CalibrationRecord",
    "CalibrationSource",
    "Check",
    "Continuation",
    "DocumentScores",
    "DropPlan",
    "DroppedSublayer",
    "Environment",
    "GenerationComparison",
    "ImportanceScores",
    "LayerScores",
    "Layout",
    "LayoutChoice",
    "LoadedBack",
    "Margin",
    "Method",
    "Metric",
    "MetricValue",
    "PrunedCheckpoint",
    "PublishReport",
    "PublishedCommit",
    "Ranking",
    "RepoFile",
    "Schedule",
    "SublayerKind",
    "TaskComparison",
    "Verification",
    "WidthMetric",
    "WidthPlan",
    "WrittenCheckpoint",
]
