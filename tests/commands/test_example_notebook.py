"""The notebook of the examples runs from top to bottom in a fresh kernel, and shows what it promises."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "prune_and_publish.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Code cells that begin with a word of their source -> what each shows: HTML, plain results and stdout, joined."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("HF_", "HUBPRUNE_"))]:
            patch.delenv(name)
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        where = {"metadata": {"path": str(tmp_path_factory.mktemp("run"))}}
        NotebookClient(notebook, timeout=400, resources=where).execute()
    return [(cell.source, [shown(output) for output in cell.outputs]) for cell in notebook.cells if cell.get("outputs")]


def shown(output):
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else f"stderr: {output.text}"
    return output.data.get("text/html", output.data.get("text/plain"))


def last_of(cells, words):
    (found,) = [outputs for source, outputs in cells if words in source]
    return found[-1]


def test_scores_a_sweep_and_a_publish_show_tables_and_pictures(cells):
    for words, pictures in (("hubprune.score(", 1), ("hubprune.sweep(", 2), ("report = hubprune.publish(", 2)):
        page = last_of(cells, words)
        assert page.count("<table>") >= 1, words
        assert page.count('src="data:image/png;base64,') == pictures, words
    assert re.search(r">[+-]\d+\.\d\d to [+-]\d+\.\d\d<", last_of(cells, "report = hubprune.publish("))


def test_what_was_pruned_is_verified_published_and_loaded(cells):
    assert "FAILED" not in last_of(cells, "hubprune.prune(")
    assert last_of(cells, "hubprune.verify(") == "True"
    assert "published: <a href=" in last_of(cells, "report = hubprune.publish(")
    assert len(last_of(cells, "hubprune.load(").split()) > 10


def test_an_error_is_caught_with_its_hint_and_no_library_chatters(cells):
    assert "Cannot drop 99 attention sublayers" in last_of(cells, "attn_drop=99")
    told = [text for _, outputs in cells for text in outputs if text.startswith("stderr: ")]
    assert told == []
