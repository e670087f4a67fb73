"""Every family is pruned to what its base does without the dropped sublayers, and scored as transformers runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bases import FAMILIES, family_tensors, plan, write_base

from hubprune.architectures import architecture_of
from hubprune.pruning import loading, verify
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.pruning.runnable import Runnable

PLANTED = 1
"""The layer of every base whose sublayers write only zeros."""


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A random base of every family, by name."""
    folder = tmp_path_factory.mktemp("families")
    return {name: write_base(folder / name, config, family_tensors(config)) for name, config in FAMILIES.items()}


@pytest.fixture
def in_process(own_modules, monkeypatch):
    """Compare in this process: it costs a tenth of a fresh one."""
    monkeypatch.setattr(verify, "NEW_TOKENS", 12)
    monkeypatch.setattr(verify, "_in_fresh_process", lambda action, request, answer: loading.compare(request))


def kinds_of(base):
    return architecture_of(base.config).attention_kinds(base.config)


def last_of_each_kind(base):
    kinds = kinds_of(base)
    return sorted(max(layer for layer, other in enumerate(kinds) if other == kind) for kind in set(kinds))


def drops(base):
    """Sets of attentions and MLPs to drop, by what is special about them."""
    layers = base.config["num_hidden_layers"]
    kept = last_of_each_kind(base)
    return {
        "first": ([0], []),
        "last": ([layers - 1], []),
        "joint": ([0, 3], [1, 3]),
        "all but one of each kind": ([layer for layer in range(layers) if layer not in kept], [0, 1, 2, 3]),
        "a whole layer too": ([0, 2], [0, 4]),
    }


def written(base, drop, folder):
    folder.mkdir()
    write_checkpoint(base, drop, folder, advance=lambda _: None)
    return folder


@pytest.mark.parametrize("which", ["first", "last", "joint", "all but one of each kind", "a whole layer too"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_the_base_without_the_dropped_sublayers(in_process, bases, tmp_path, name, which):
    base = bases[name]
    attn, mlp = drops(base)[which]
    drop = plan(base.config["num_hidden_layers"], attn=attn, mlp=mlp)
    out = written(base, drop, tmp_path / "out")
    family = architecture_of(base.config)
    seen = verify.verify(Runnable(Path(base.folder)), out, plan=drop, config=base.config, architecture=family)
    assert {check.name: check.detail for check in seen.checks if not check.passed} == {}
    assert seen.max_logit_difference <= 1e-5
