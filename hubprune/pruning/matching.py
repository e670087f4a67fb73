"""Find in a model that others pruned what is left of its base, by the values of its tensors, and whether they changed.

Layers are told by their output projections: equal ones are the same layer, and of one that was trained the base's layer
is taken that is clearly nearest.  Of a narrower MLP, each neuron is found by its rows of the gate and the up
projection.  Where a metric of hubprune keeps exactly these neurons, that says which ones they are; else their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import AdoptedForm, SublayerKind, WidthMetric, WidthPlan
from hubprune.core.config import Structure
from hubprune.core.errors import CheckpointError
from hubprune.core.weights import Weights
from hubprune.pruning.foreign import LOOKED_FOR, Claims
from hubprune.pruning.width import OF_ROWS, Neurons, mask_of, stacked

if TYPE_CHECKING:
    import torch

SAMPLE_ROWS = 64
"""Rows of a projection by which layers are told apart."""
CLEARLY = 0.5
"""How far a trained layer may be from its own in the base: as a share of its size, and of the way to the next."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is left of a base in a model that others pruned."""

    form: AdoptedForm
    dropped: Mapping[SublayerKind, tuple[int, ...]]
    """Kind -> numbers, in the base, of the layers that lost their sublayer of that kind."""
    widths: WidthPlan | None
    """None where the MLPs are as wide as in the base."""
    names: Mapping[str, str]
    """Name of a tensor in the base -> in theirs, of all that stay."""
    changed: tuple[str, ...]
    """Names, in the base, of the tensors that have other values than the base's."""
    rounded: tuple[str, ...]
    """Their dtypes, where the base has others and its values are the same but for that."""


class Tensors:
    """The tensors of a checkpoint by name."""

    def __init__(self, weights: Weights) -> None:
        self._where = {tensor.name: (shard.path, tensor) for shard, tensor in weights}

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._where[name][1].shape

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor, as safetensors spells it."""
        return self._where[name][1].dtype

    def size(self, name: str) -> int:
        """Return the bytes of a tensor."""
        return self._where[name][1].size

    def read(self, name: str, *, rows: int | None = None) -> torch.Tensor:
        """Read a tensor, or its first rows."""
        from hubprune.core.streaming import TORCH_DTYPES, Stored, read_rows, read_tensor

        path, entry = self._where[name]
        if entry.dtype not in TORCH_DTYPES:
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {entry.dtype}, which no model computes in.")
        if rows is not None and not entry.shape:
            raise CheckpointError(f"{path}: tensor {name!r} is a single number.")
        stored = Stored(path, entry.begin, TORCH_DTYPES[entry.dtype], entry.shape)
        return read_tensor(stored) if rows is None else read_rows(stored, range(min(rows, entry.shape[0])))


def find(
    theirs: Weights, base: Weights, claims: Claims, structure: Structure, *, layers: int, name: str,
    advance: Callable[[int], object] = lambda _: None,
) -> Found:  # fmt: skip
    """Find out what is left of a base in another checkpoint, and compare every tensor that is.

    Args:
        base: its weights as its model uses them.
        structure: that of the base.
        layers: how many the other one has.
        advance: told the bytes of the base after each tensor.

    Raises:
        CheckpointError: it is not what is left of this base, or nothing is missing in it.
    """
    return _Matching(Tensors(theirs), Tensors(base), base, claims, structure, name).find(layers, advance)


@dataclass(frozen=True)
class _Matching:
    theirs: Tensors
    base: Tensors
    weights: Weights
    claims: Claims
    structure: Structure
    name: str

    @property
    def _family(self) -> Architecture:
        return self.structure.architecture

    def find(self, layers: int, advance: Callable[[int], object]) -> Found:
        """Do what `find` says."""
        total = self.structure.num_hidden_layers
        if layers > total:
            raise CheckpointError(
                f"{self.name} has {layers} layers, and its base {total}: some are there twice, as in a merge.",
                hint="Adopted is what has less than its base, and nothing twice.",
            )
        numbers = {i: i for i in range(total)}
        if self.claims.form == "fewer" and layers < total:
            numbers = {own: i for i, own in enumerate(self._layers(layers))}
        dropped: dict[SublayerKind, tuple[int, ...]] = {
            kind: tuple(i for i in range(total) if i not in numbers or self._lacks(kind, i, numbers[i]))
            for kind in ("attn", "mlp")
        }
        widths = self._widths(numbers, gone=dropped["mlp"])
        if not any(dropped.values()) and widths is None:
            self._layers(layers)  # where some are there twice, that is what has to be said
            raise CheckpointError(f"Nothing is missing in {self.name} that its base has.", hint=LOOKED_FOR)
        names = self._names(numbers, dropped)
        self._check_others(names, numbers, dropped)
        return self._compared(Found(
            form=self.claims.form, dropped=dropped, widths=widths, names=names, changed=(), rounded=()
        ), advance)  # fmt: skip

    def _tensor(self, layer: int, rest: str) -> str:
        return f"{self._family.layers_prefix}{layer}.{rest}"

    def _lacks(self, kind: SublayerKind, layer: int, theirs: int) -> bool:
        """Tell whether a layer lacks a sublayer: because config.json says so, or because no tensor of it is there."""
        said = self.claims.no_attn if kind == "attn" else self.claims.no_mlp
        module = self._family.attn_module if kind == "attn" else self._family.mlp_module
        prefix = self._tensor(theirs, f"{module}.")
        return layer in said or not any(name.startswith(prefix) for name in self.theirs)

    # ---- which layers ------------------------------------------------------------------------------------------------

    def _layers(self, count: int) -> list[int]:
        """Return the numbers in the base of all layers that are left, in their order."""
        samples = [self._sample(self.base, layer) for layer in range(self.structure.num_hidden_layers)]
        found: list[int] = []
        for layer in range(count):
            own = self._sample(self.theirs, layer)
            fitting = [i for i, sample in enumerate(samples) if own and sample and self._same(sample, own)]
            later = [i for i in fitting if not found or i > found[-1]]
            if fitting and not later:
                raise CheckpointError(
                    f"Layer {layer} of {self.name} is layer {fitting[0]} of its base, behind layer {found[-1]}: layers "
                    "are repeated or in another order.",
                    hint="Adopted is what has less than its base, in the same order.",
                )
            found.append(later[0] if later else self._nearest(layer, own, samples, after=found[-1] if found else -1))
        return found

    def _sample(self, of: Tensors, layer: int) -> dict[str, torch.Tensor]:
        """Read some rows of a layer's output projections; those of an MLP say nothing where it is narrower."""
        rows = (self._tensor(layer, rest) for rest in (self._family.attn_output, self._family.mlp_output))
        begin = len(self._tensor(layer, ""))
        return {name[begin:]: of.read(name, rows=SAMPLE_ROWS) for name in rows if name in of}

    @staticmethod
    def _same(sample: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> bool:
        import torch

        pairs = [(sample[key], own[key]) for key in own.keys() & sample.keys() if sample[key].shape == own[key].shape]
        return bool(pairs) and all(torch.equal(one.to(other.dtype), other) for one, other in pairs)

    def _nearest(
        self, layer: int, own: Mapping[str, torch.Tensor], samples: Sequence[Mapping[str, torch.Tensor]], *, after: int
    ) -> int:
        """Return the layer of the base that one which was trained is clearly nearest to."""

        def distance(sample: Mapping[str, torch.Tensor]) -> float:
            pairs = [(sample[k], own[k]) for k in own.keys() & sample.keys() if sample[k].shape == own[k].shape]
            parts = [float((a.float() - b.float()).norm() / a.float().norm().clamp_min(1e-12)) for a, b in pairs]
            return sum(parts) / len(parts) if parts else float("inf")

        apart = sorted((distance(sample), i) for i, sample in enumerate(samples))
        (nearest, found), then = apart[0], apart[1][0] if len(apart) > 1 else float("inf")
        if not (nearest <= CLEARLY and nearest <= CLEARLY * then and found > after):
            raise CheckpointError(
                f"Layer {layer} of {self.name} is none of its base's, nor trained from one: the nearest is layer "
                f"{found}, {nearest:.0%} of its size away.",
                hint=f"Name the base that it was made of with --base. {LOOKED_FOR}",
            )
        return found

    # ---- which neurons -----------------------------------------------------------------------------------------------

    def _widths(self, numbers: Mapping[int, int], *, gone: Sequence[int]) -> WidthPlan | None:
        """Return how wide the MLPs are and which neurons they have; None where they are as wide as in the base."""
        import torch

        before, kept, rows = self.structure.mlp_widths, list(self.structure.mlp_widths), dict[int, torch.Tensor]()
        parts = [self._family.fused_gate_up] if self._family.fused_gate_up else None
        parts = parts or [self._family.mlp_gate, self._family.mlp_up]
        for layer in (i for i in numbers if i not in gone):
            names = [(self._tensor(layer, part), self._tensor(numbers[layer], part)) for part in parts]
            if missing := [own for _, own in names if own not in self.theirs]:
                raise CheckpointError(f"{self.name} has no tensor {missing[0]!r}.")
            shapes = {self.theirs.shape(own) for _, own in names}
            (rows_there, *columns), *others = (shape or (0,) for shape in shapes)
            fitting = columns == list(self.base.shape(names[0][0])[1:]) and rows_there * len(parts) % 2 == 0
            if others or not rows_there or not fitting:
                told = " and ".join(str(list(shape)) for shape in sorted(shapes))
                raise CheckpointError(f"{names[0][1]} of {self.name} has shape {told}, which fits no MLP of its base.")
            width = rows_there * len(parts) // 2
            if width > before[layer]:
                raise CheckpointError(
                    f"The MLP of layer {numbers[layer]} of {self.name} has {width} neurons, and its base "
                    f"{before[layer]}.", hint=f"Name the base that it was made of with --base. {LOOKED_FOR}",
                )  # fmt: skip
            if width < before[layer]:
                kept[layer], rows[layer] = width, self._neurons(names, layer, width)
        if not rows:
            return None
        for metric in OF_ROWS:  # by one of these, a recipe need not list them
            plan = WidthPlan(before=before, kept=tuple(kept), metric=metric)
            chosen = Neurons(self.weights, plan, self._family)
            if all(torch.equal(chosen.kept(layer), found) for layer, found in rows.items()):
                return plan
        every = {i: mask_of(torch.arange(width)) for i, width in enumerate(before)}
        masks = tuple(mask_of(rows[i]) if i in rows else every[i] for i in range(len(before)))
        default: WidthMetric = "max_abs"
        return WidthPlan(before=before, kept=tuple(kept), metric=default, neurons=masks)

    def _neurons(self, names: Sequence[tuple[str, str]], layer: int, width: int) -> torch.Tensor:
        """Return the numbers of the neurons that are left of an MLP, ascending."""
        import torch

        def keys(of: Tensors, index: int, dtypes: Sequence[Any]) -> list[bytes]:
            tensors = [of.read(pair[index]).to(dtype) for pair, dtype in zip(names, dtypes, strict=True)]
            halves = tensors if len(tensors) > 1 else list(tensors[0].chunk(2))
            joined = torch.cat([half.contiguous().view(torch.uint8) for half in halves], 1).numpy()
            return [row.tobytes() for row in joined]

        dtypes = [self.theirs.read(own, rows=1).dtype for _, own in names]
        places: dict[bytes, list[int]] = {}
        for number, key in enumerate(keys(self.base, 0, dtypes)):
            places.setdefault(key, []).append(number)
        found: list[int] = []
        for key in keys(self.theirs, 1, dtypes):
            here = places.get(key, [])
            later = [number for number in here if not found or number > found[-1]]
            if not later:
                why = "are in another order" if here else "are not the base's: they were trained since"
                raise CheckpointError(
                    f"The MLP of layer {layer} has {width} of {self.structure.mlp_widths[layer]} neurons in "
                    f"{self.name}, which {why}. So nothing says which ones they are.",
                    hint="Name the base that it was made of with --base, or adopt what it was trained from.",
                )
            found.append(later[0])
        return torch.tensor(found)

    # ---- values ------------------------------------------------------------------------------------------------------

    def _names(
        self, numbers: Mapping[int, int], dropped: Mapping[SublayerKind, Sequence[int]]
    ) -> dict[str, str]:  # fmt: skip
        """Map the names of the base's tensors that stay to theirs."""
        prefix, parts = self._family.layers_prefix, self._family.parts
        gone = tuple(self._tensor(i, f"{part}.") for kind in parts for i in dropped[kind] for part in parts[kind])
        names = {}
        for name in self.base:
            if not self._family.is_parameter(name) or name.startswith(gone):
                continue
            number, _, rest = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and int(number) not in numbers:
                continue
            names[name] = self._tensor(numbers[int(number)], rest) if name.startswith(prefix) else name
        return names

    def _check_others(
        self, names: dict[str, str], numbers: Mapping[int, int], dropped: Mapping[SublayerKind, Sequence[int]]
    ) -> None:
        """Refuse what is missing, and what the base has not; a head may be stored in one and be the embedding there."""
        head, embedding, parts = self._family.head, self._family.embedding, self._family.parts
        if head in names and head not in self.theirs:
            names[head] = embedding
        hint = f"Name the base that it was made of with --base. {LOOKED_FOR}"
        if missing := sorted(own for own in names.values() if own not in self.theirs):
            raise CheckpointError(f"{self.name} lacks {len(missing)} tensors, {missing[0]} among them.", hint=hint)
        left = tuple(
            self._tensor(numbers[i], f"{part}.")
            for kind in parts for i in dropped[kind] if i in numbers for part in parts[kind]
        )  # fmt: skip
        known = {*names.values(), head}
        more = [own for own in self.theirs if own not in known and not own.startswith(left)]
        if more := sorted(own for own in more if self._family.is_parameter(own)):
            raise CheckpointError(
                f"{self.name} has {len(more)} tensors that its base lacks, {more[0]} among them.", hint=hint
            )

    def _compared(self, found: Found, advance: Callable[[int], object]) -> Found:
        import torch

        masks = Neurons(self.weights, found.widths, self._family) if found.widths else None
        changed, dtypes = [], set()
        for name, own in found.names.items():
            expected, seen = self.base.read(name), self.theirs.read(own)
            if masks and found.widths and (cut := self._cut(name)):
                layer, axis, blocks = cut
                if (width := found.widths.before[layer]) > found.widths.kept[layer]:
                    expected = expected.index_select(axis, stacked(masks.kept(layer), width=width, blocks=blocks))
            if expected.shape != seen.shape:
                raise CheckpointError(
                    f"{own} of {self.name} has shape {list(seen.shape)}, and its base's {list(expected.shape)}.",
                    hint="A resized vocabulary, or other heads, cannot be adopted.",
                )
            if expected.dtype != seen.dtype:
                dtypes.add(self.theirs.dtype(own))
            if not torch.equal(expected.to(seen.dtype), seen):
                changed.append(name)
            advance(self.base.size(name))
        head, embedding = self._family.head, self._family.embedding
        stored_alone = head in self.theirs and head not in found.names  # where the base's is its embedding
        if stored_alone and not torch.equal(self.theirs.read(head), self.theirs.read(embedding)):
            raise CheckpointError(f"{self.name} has a head of its own, and its base's is the embedding.")
        return Found(**{**found.__dict__, "changed": tuple(changed), "rounded": tuple(sorted(dtypes))})

    def _cut(self, name: str) -> tuple[int, int, int] | None:
        """Return layer, axis and number of projections of a tensor of an MLP whose size is the MLP's width."""
        family = self._family
        if not name.startswith(family.layers_prefix):
            return None
        number, _, rest = name.removeprefix(family.layers_prefix).partition(".")
        stem = rest.rpartition(".")[0]
        if rest == family.mlp_output:
            return int(number), 1, 1
        rows = {part.rpartition(".")[0] for part in (family.fused_gate_up, family.mlp_gate, family.mlp_up) if part}
        if stem in rows:
            return int(number), 0, 2 if family.fused_gate_up else 1
        return None
