"""What crosses a stage: frozen values that are also written as JSON.

Every stage takes some of these and returns one.  The JSON files in the work folder, the manifest of a published repo
and the context of a model card are made of the same types, so that each number has one source.

Layers are numbered from 0.  "Original" numbers are the base's, "published" ones those of the pruned checkpoint; they
differ only where whole layers went.

base          what all share, a base, the calibration set and its scores, what saving costs
pruning       what goes, what was written and verified, what is on the Hub
evaluation    benchmarks and free text of base and pruned
speed         timing, and a sweep over numbers of drops
quantization  the same in fewer bits, and how far it is from it
healing       the same after it was trained, and how much came back
runtimes      the same in vLLM, llama.cpp and mlx-lm
exports       the same as a file for another runtime
siblings      what is published beside a pruned repo: quantized, or for another runtime
reports       what whole commands found
"""

# fmt: off
# isort: off
from hubprune.core.artifacts.base import (
    BY_LOSS, AdoptedForm, Aggregation, Artifact, BaseCard, BaseCheckpoint, CalibrationRecord, CalibrationSource,
    DocumentScores, Environment, ImportanceScores, LayerScores, Layout, LayoutChoice, Method, Metric, Ranking, RepoFile,
    Schedule, SublayerKind, WidthMetric, shown_by,
    Frontier, FrontierPoint, Goal, LatencyTable, LeftOut, NarrowerLoss, Part, Reached, TargetFound, Unit,
)
from hubprune.core.artifacts.evaluation import (
    BenchmarkComparison, Chat, Continuation, Estimate, EvalBackend, GenerationComparison, Loop, Mark, MetricValue,
    ModelText, ModelTexts, PairedComparison, PairedLoops, PairedNumber, Repetition, RepetitionComparison, SelfCheck,
    SHARES, TaskComparison, main_rows, perplexity_of,
)
from hubprune.core.artifacts.healing import (
    CurvePoint, HealedCheckpoint, HealingLoss, HealingMethod, HealingRecord, HeldOut, Recovered,
)
from hubprune.core.artifacts.exports import (
    OUTTYPES,
    PLAIN_TYPES,
    GgufExport,
    Outtype,
    Parity,
    ParityFigures,
    PlainType,
)
from hubprune.core.artifacts.pruning import (
    Adoption, Check, DropPlan, DroppedSublayer, LoadedBack, Margin, PlannedFile, PrunedCheckpoint, PublishedCommit,
    SnippetRun, UploadPlan, Verification, WidthPlan, WrittenCheckpoint,
)
from hubprune.core.artifacts.quantization import (
    Divergence, QuantizationMethod, QuantizationRecord, QuantizationScheme, QuantizedCheckpoint,
)
from hubprune.core.artifacts.reports import (
    Agreement, CheckpointComparison, Checkup, ComparedMetric, ComparedPart, ComparedSide, ConfigChange, Difference,
    DroppedSets, FileChange, FileOutcome, Finding, Outcome, PublishReport, RefreshOutcome, RefreshReport, Refreshed,
    Reproduction, SameBase, Scalar, ScoreKind, ScoreStudy, StageNeed, StudyEntry, StudyKind,
)
from hubprune.core.artifacts.siblings import (
    CameBack,
    HealedBenchmarks,
    QuantizedBenchmarks,
    SiblingKind,
    SiblingLink,
    SiblingReport,
    Together,
    TrainedElsewhere,
)
from hubprune.core.artifacts.runtimes import RuntimeComparison, RuntimeName, RuntimeOutcome, RuntimeRun
from hubprune.core.artifacts.speed import (
    BenchmarkAnswers, BenchmarkChange, HeldOutDocuments, Interval, KvCacheMeasured, LargestBatch, Measure,
    PeakMemory, PerplexityAnswers, Recommendation, Sdr, SpeedMeasured, SpeedReport, SpeedRow, SweepOrder,
    SweepPoint, SweepReport, SweepTask, TaskAnswers, Verdict,
)
# isort: on

__all__ = [
    "BY_LOSS",
    "OUTTYPES",
    "PLAIN_TYPES",
    "SHARES",
    "AdoptedForm",
    "Adoption",
    "Aggregation",
    "Agreement",
    "Artifact",
    "BaseCard",
    "BaseCheckpoint",
    "BenchmarkAnswers",
    "BenchmarkChange",
    "BenchmarkComparison",
    "CalibrationRecord",
    "CalibrationSource",
    "CameBack",
    "Chat",
    "Check",
    "CheckpointComparison",
    "Checkup",
    "ComparedMetric",
    "ComparedPart",
    "ComparedSide",
    "ConfigChange",
    "Continuation",
    "CurvePoint",
    "Difference",
    "Divergence",
    "DocumentScores",
    "DropPlan",
    "DroppedSets",
    "DroppedSublayer",
    "Environment",
    "Estimate",
    "EvalBackend",
    "FileChange",
    "FileOutcome",
    "Finding",
    "Frontier",
    "FrontierPoint",
    "GenerationComparison",
    "GgufExport",
    "Goal",
    "HealedBenchmarks",
    "HealedCheckpoint",
    "HealingLoss",
    "HealingMethod",
    "HealingRecord",
    "HeldOut",
    "HeldOutDocuments",
    "ImportanceScores",
    "Interval",
    "KvCacheMeasured",
    "LargestBatch",
    "LatencyTable",
    "LayerScores",
    "Layout",
    "LayoutChoice",
    "LeftOut",
    "LoadedBack",
    "Loop",
    "Margin",
    "Mark",
    "Measure",
    "Method",
    "Metric",
    "MetricValue",
    "ModelText",
    "ModelTexts",
    "NarrowerLoss",
    "Outcome",
    "Outtype",
    "PairedComparison",
    "PairedLoops",
    "PairedNumber",
    "Parity",
    "ParityFigures",
    "Part",
    "PeakMemory",
    "PerplexityAnswers",
    "PlainType",
    "PlannedFile",
    "PrunedCheckpoint",
    "PublishReport",
    "PublishedCommit",
    "QuantizationMethod",
    "QuantizationRecord",
    "QuantizationScheme",
    "QuantizedBenchmarks",
    "QuantizedCheckpoint",
    "Ranking",
    "Reached",
    "Recommendation",
    "Recovered",
    "RefreshOutcome",
    "RefreshReport",
    "Refreshed",
    "Repetition",
    "RepetitionComparison",
    "RepoFile",
    "Reproduction",
    "RuntimeComparison",
    "RuntimeName",
    "RuntimeOutcome",
    "RuntimeRun",
    "SameBase",
    "Scalar",
    "Schedule",
    "ScoreKind",
    "ScoreStudy",
    "Sdr",
    "SelfCheck",
    "SiblingKind",
    "SiblingLink",
    "SiblingReport",
    "SnippetRun",
    "SpeedMeasured",
    "SpeedReport",
    "SpeedRow",
    "StageNeed",
    "StudyEntry",
    "StudyKind",
    "SublayerKind",
    "SweepOrder",
    "SweepPoint",
    "SweepReport",
    "SweepTask",
    "TargetFound",
    "TaskAnswers",
    "TaskComparison",
    "Together",
    "TrainedElsewhere",
    "Unit",
    "UploadPlan",
    "Verdict",
    "Verification",
    "WidthMetric",
    "WidthPlan",
    "WrittenCheckpoint",
    "main_rows",
    "perplexity_of",
    "shown_by",
]
