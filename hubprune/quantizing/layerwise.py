"""Go through a model layer by layer, as it is and as it becomes, and keep what each layer became.

In memory are two layers, what one of them becomes, the second moments of what enters some of its matrices, and the
hidden states of all texts in both models.  Matrices that are handed the same, as those of queries, keys and values,
are quantized together, in the order in which the layer uses them: each is told what enters it when all before it are
quantized, and what did before, so that it makes up for their errors too.  Other texts, on which nothing is calibrated,
go through both models beside that, from the first layer to the last, so that in the end the two can be compared.

What a layer became is a file of its own in a work folder.  A run that was stopped goes on from these: layers that have
one are only run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.console import Advance, size
from hubprune.core.devices import COMPUTE_BITS
from hubprune.core.errors import EvaluationError
from hubprune.core.files import scratch_prefix
from hubprune.core.memory import available_bytes
from hubprune.core.specs import QuantizationSpec
from hubprune.core.streaming import StreamedModel, WeightReader, read_tensor
from hubprune.core.weights import open_weights
from hubprune.quantizing import gptq
from hubprune.quantizing.packing import decode, encode, read_parts, stored_shapes
from hubprune.quantizing.schemes import Matrix

BATCH_TOKENS = 2048
"""Tokens that go through a layer at once, padding included; of one text as many as it has."""
MOMENT_BYTES = 4
STEPS = 4
"""What is told of the progress with a layer's matrices: most families hand them four different things."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """An unquantized checkpoint that can be run."""

    folder: Path
    architecture: Architecture
    own_code: bool = False
    """Whether it holds a modeling file of ours, which is then run."""
    tensor_names: Mapping[str, str | None] = field(default_factory=dict)
    """Name of a tensor in the files -> in the model, as in `BaseCheckpoint`."""
    dtype: str = "float32"
    """What the layers run in."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of similar length, padded on the right to the longest."""

    texts: tuple[int, ...]
    """Their numbers."""
    ids: torch.Tensor
    """int64, [texts, tokens]; 0 where padded."""
    mask: torch.Tensor
    """bool, [texts, tokens]; True where a text has a token."""


def make_batches(texts: Sequence[Sequence[int]]) -> list[Batch]:
    """Group texts, as token ids, by length, the longest first."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    batches = []
    while order:
        count = max(1, BATCH_TOKENS // len(texts[order[0]]))
        members, order = order[:count], order[count:]
        rows = [torch.tensor(texts[i]) for i in members]
        ids, lengths = nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])
        batches.append(Batch(tuple(members), ids, torch.arange(ids.shape[1]) < lengths[:, None]))
    return batches


class LayerPass:
    """One pass over all layers of a checkpoint that is to be quantized.

    Args:
        source: where it is, and how it is run.
        matrices: those of `find_matrices`.
        kept: folder for what the layers became.
        calibration: texts, as token ids, whose second moments are taken; none where nothing is made up for.
        held_out: other texts, on which both models are run beside that.
        made: folder of the quantized checkpoint where there is one already, which is then only run.
    """

    def __init__(
        self, source: Source, matrices: Mapping[str, Matrix], spec: QuantizationSpec, *, kept: Path,
        calibration: Sequence[Sequence[int]] = (), held_out: Sequence[Sequence[int]] = (), made: Path | None = None,
    ) -> None:  # fmt: skip
        self._made = {t.name: shard.path for shard, t in open_weights(made)} if made else None
        self._source, self._matrices, self._spec, self._kept = source, matrices, spec, kept
        self.batches, self.held_out = make_batches(calibration), make_batches(held_out)
        self.model = StreamedModel(
            source.folder, architecture=source.architecture, dtype=source.dtype, device=source.device,
            own_code=source.own_code, tensor_names=source.tensor_names,
        )  # fmt: skip
        self._reader = WeightReader(source.folder, source.tensor_names)
        kept.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            self._exact, self._states = self._embed(self.batches, rooms=2)
            self.before, self.after = self._embed(self.held_out, rooms=2)
            for one, other in zip((*self._exact, *self.before), (*self._states, *self.after), strict=True):
                other.copy_(one)

    def _embed(self, batches: Sequence[Batch], *, rooms: int) -> list[list[torch.Tensor]]:
        return self.model.embed([b.ids for b in batches], rooms=rooms) if batches else [[] for _ in range(rooms)]

    @property
    def cost(self) -> int:
        """How many batches the pass takes over all layers."""
        return len(self.model) * ((2 + STEPS) * len(self.batches) + 2 * len(self.held_out))

    def run(self, advance: Advance, *, say: Callable[[str], None]) -> None:
        """Run and quantize one layer after the other.

        Raises:
            ScoringError: what enters a layer is not finite.
            CheckpointError: the weights do not fit the config.
        """
        numbers = [n for n in range(len(self.model)) if self._of_layer(n)]
        if done := sum(self._file(number).is_file() for number in numbers):
            say(f"{done} of {len(numbers)} layers were quantized by an earlier run")
        with torch.inference_mode(), closing(self.model.layers(range(len(self.model)))) as layers:
            for number, layer in enumerate(layers):
                self._one_layer(number, layer, advance)

    def _one_layer(self, number: int, layer: nn.Module, advance: Advance) -> None:
        matrices, file = self._of_layer(number), self._file(number)
        if matrices and not file.is_file() and not self._made:
            self._quantize(number, layer, matrices, advance)
        else:
            advance(STEPS * len(self.batches))
        for states in (*self._exact, *self.before):
            states.copy_(self._through(number, layer, states))
            advance()
        self._replace(layer, matrices, file)
        with self._activations(layer):
            for states in (*self._states, *self.after):
                states.copy_(self._through(number, layer, states))
                advance()

    def _of_layer(self, number: int) -> list[Matrix]:
        prefix = self._prefix(number)
        return [matrix for name, matrix in self._matrices.items() if name.startswith(prefix)]

    def _prefix(self, number: int) -> str:
        return f"{self._source.architecture.layers_prefix}{number}."

    def _file(self, number: int) -> Path:
        return self._kept / f"layer-{number:05d}.safetensors"

    @property
    def files(self) -> list[Path]:
        """What the layers became, in their order."""
        return [self._file(number) for number in range(len(self.model)) if self._of_layer(number)]

    def _through(self, number: int, layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """Run one batch of states, [texts, tokens, hidden_size], through a layer."""
        arguments = self.model.arguments(number, states.shape[1])
        output = layer(states.to(self.model.device), **arguments)
        found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
        return found

    @contextmanager
    def _activations(self, layer: nn.Module) -> Iterator[None]:
        """Let what enters the matrices of a layer have as few bits as the scheme says."""
        with ExitStack() as hooks:
            if self._spec.scheme == "fp8":
                for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
                    hooks.callback(linear.register_forward_pre_hook(_in_few_bits).remove)
            yield

    def _quantize(self, number: int, layer: nn.Module, matrices: Sequence[Matrix], advance: Advance) -> None:
        """Quantize the matrices of a layer, and keep what they become."""
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {}
        linears = {matrix: layer.get_submodule(self._inside(matrix)) for matrix in matrices}
        became: dict[nn.Module, torch.Tensor] = {}
        groups = self._groups(number, layer, linears) if self._spec.method == "gptq" else [list(matrices)]
        for place, group in enumerate(groups):
            moments = cross = None
            if self._spec.method == "gptq":
                moments, cross = self._moments(number, layer, linears[group[0]], became)
            for matrix in group:
                weight = read_tensor(self._reader.place(matrix.name)).to(self.model.device)
                scale = gptq.scales_of(weight, self._spec)
                if moments is not None:
                    values = gptq.gptq(weight, scale, moments, self._spec, name=matrix.name, cross=cross)
                else:
                    values = gptq.round_to_nearest(weight, scale, self._spec)
                del weight
                parts = encode(values.cpu(), scale.cpu(), self._spec, module=matrix.module)
                tensors |= parts
                if place + 1 < len(groups):
                    dtype, device = linears[matrix].weight.dtype, self.model.device
                    found = decode(parts, self._spec, module=matrix.module, dtype=dtype)
                    became[linears[matrix]] = found.to(device)
            advance((STEPS * (place + 1) // len(groups) - STEPS * place // len(groups)) * len(self.batches))
        file = self._file(number)
        staged = file.with_name(f"{scratch_prefix(file.name)}tmp")
        save_file(tensors, staged)
        staged.replace(file)

    def _inside(self, matrix: Matrix) -> str:
        """Return the name of a matrix's module inside its layer."""
        return matrix.module.split(".", self._prefix(0).count("."))[-1]

    def _groups(self, number: int, layer: nn.Module, linears: Mapping[Matrix, nn.Module]) -> list[list[Matrix]]:
        """Find out which matrices are handed the same, in the order in which a layer uses them."""
        seen: list[tuple[torch.Tensor, list[Matrix]]] = []

        def note(matrix: Matrix) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            """Make a hook that notes when a matrix is handed what."""

            def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                if seen and seen[-1][0] is inputs[0]:
                    seen[-1][1].append(matrix)
                else:
                    seen.append((inputs[0], [matrix]))

            return hook

        with ExitStack() as hooks:
            for matrix, module in linears.items():
                hooks.callback(module.register_forward_pre_hook(note(matrix)).remove)
            self._through(number, layer, self._states[-1])
        return [group for _, group in seen]

    def _moments(
        self, number: int, layer: nn.Module, module: nn.Module, became: Mapping[nn.Module, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return X'X and Y'X over all texts, [columns, columns] in float32.

        X is what enters a module when those before it are quantized, Y what does when none is.
        """
        size = module.weight.shape[1]
        moments, cross = (torch.zeros(size, size, device=self.model.device) for _ in range(2))
        for batch, exact, states in zip(self.batches, self._exact, self._states, strict=True):
            mask = batch.mask.to(self.model.device)
            before = self._entering(number, layer, module, exact)[mask].float()  # [tokens, columns]
            with _instead(became), self._activations(layer):
                now = self._entering(number, layer, module, states)[mask].float()
            moments.addmm_(now.T, now)
            cross.addmm_(before.T, now)
        return moments, cross

    def _entering(self, number: int, layer: nn.Module, module: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """Run a layer up to a module, and return what enters that."""
        found: list[torch.Tensor] = []

        def stop(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.append(inputs[0])
            raise _ReachedError

        hook = module.register_forward_pre_hook(stop)
        try:
            self._through(number, layer, states)
        except _ReachedError:
            pass
        finally:
            hook.remove()
        return found[0]

    def _replace(self, layer: nn.Module, matrices: Sequence[Matrix], file: Path) -> None:
        """Put what the matrices of a layer became into their place."""
        for matrix in matrices:
            names = stored_shapes(matrix, self._spec, dtype="F32")
            parts = read_parts(matrix, self._spec, self._made or dict.fromkeys(names, file))
            module = layer.get_submodule(self._inside(matrix))
            module.weight.copy_(decode(parts, self._spec, module=matrix.module, dtype=module.weight.dtype))


def _in_few_bits(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Round what enters a layer to 8-bit floats, scaled token by token."""
    states = inputs[0]
    scale = states.abs().amax(dim=-1, keepdim=True) / gptq.MOST_FP8
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    rounded = (states / scale).clamp(-gptq.MOST_FP8, gptq.MOST_FP8).to(gptq.FP8).to(states.dtype)
    return (rounded * scale, *inputs[1:])


class _ReachedError(Exception):
    """What was to be seen of a layer was seen."""


@contextmanager
def _instead(became: Mapping[nn.Module, torch.Tensor]) -> Iterator[None]:
    """Let modules have other weights while the block runs."""
    own = {module: module.weight for module in became}
    try:
        for module, weight in became.items():
            module.weight = nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        for module, weight in own.items():
            module.weight = weight


def needed_bytes(matrices: Mapping[str, Matrix], spec: QuantizationSpec, *, prefix: str, dtype: str) -> int:
    """Return the bytes that the pass takes beside the hidden states: layers, moments, and the work on a matrix.

    `prefix` is what the names of decoder layers begin with.
    """
    layers: dict[str, list[Matrix]] = {}
    for name, matrix in matrices.items():
        layers.setdefault(name.removeprefix(prefix).split(".")[0], []).append(matrix)
    most = 0
    for own in layers.values():
        layer = sum(m.parameters for m in own) * COMPUTE_BITS[dtype] // 8
        work = max(m.parameters for m in own) * 16
        if spec.method == "gptq":  # both moments, the inverse, and what making it takes
            work += layer + 7 * MOMENT_BYTES * max(m.columns for m in own) ** 2
        most = max(most, 2 * layer + work)
    return most


def require_room(needed: int) -> None:
    """Refuse to begin where the memory that may be taken does not hold what the pass needs.

    Raises:
        EvaluationError: the message has both figures.
    """
    if needed > (free := available_bytes()):
        raise EvaluationError(
            f"Quantizing takes {size(needed)} of memory beside the hidden states, and {size(free)} may be taken.",
            hint="Give it more, or pass --method rtn, which needs no second moments.",
        )
