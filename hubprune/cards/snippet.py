"""The code of "Use it": one text, which the card shows and which was run on the written files before they went out."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from hubprune.cards.markdown import FILTERS, visible
from hubprune.core.artifacts import SnippetRun
from hubprune.core.errors import VerificationError
from hubprune.core.files import scratch_folder
from hubprune.core.privacy import scrub
from hubprune.core.processes import last_words, run_to_end
from hubprune.core.strict import parse_json
from hubprune.core.templates import environment as template_environment

__all__ = ["Snippet", "asks_for_more", "samples"]

SNIPPET_TEMPLATE = "snippet.py.jinja"
DEFAULT_PROMPT = "Paris is the capital of"
NEW_TOKENS = 40
ORDINARY = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "min_p",
    "pad_token_id", "repetition_penalty", "temperature", "top_k", "top_p", "transformers_version", "typical_p",
    "use_cache",
}  # fmt: skip
"""Keys of a generation_config.json with which `generate` needs nothing else, and makes one text."""


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """What the code depends on."""

    repo_id: str
    revision: str | None
    """Tag of exactly this checkpoint; None where no tag will exist, as in a pull request."""
    prompt: str = DEFAULT_PROMPT
    custom_code: bool
    """Whether the repo ships a modeling file."""
    samples: bool = False
    """Whether the model's own settings would draw its words at random, so that the code has to say otherwise."""
    plain: bool = False
    """Whether the model's own settings ask for more than `generate` does alone, so that the code puts them aside."""

    def code(self, *, overrides: Path | None = None) -> str:
        """Write the code, without a line break at its end, as the fence of the card leaves it.

        Args:
            overrides: a folder of the user whose templates win over the shipped ones.
        """
        made = template_environment("card", filters=FILTERS, overrides=overrides).get_template(SNIPPET_TEMPLATE)
        text = made.render(
            repo_id=self.repo_id,
            revision=self.revision,
            prompt=self.prompt,
            custom_code=self.custom_code,
            samples=self.samples and not self.plain,
            plain=self.plain,
            new_tokens=NEW_TOKENS,
        )
        return scrub(visible(text, keep="\n\t")).rstrip("\n")

    def run(self, folder: Path, *, gpu: bool, overrides: Path | None = None) -> SnippetRun:
        """Run the code as it stands, in a fresh process that finds the folder under the repo's id, and the Hub nowhere.

        Args:
            folder: the written checkpoint.
            gpu: whether the process may use one.
            overrides: a folder of the user whose templates win over the shipped ones.

        Raises:
            VerificationError: the code fails.
        """
        code = self.code(overrides=overrides)
        return SnippetRun(
            repo_id=self.repo_id,
            revision=self.revision,
            code=code,
            output=_output(code, folder, repo_id=self.repo_id, gpu=gpu),
            transformers=version("transformers"),
        )


def samples(folder: Path) -> bool:
    """Return whether `generate` draws words at random from a checkpoint that nothing else is asked of."""
    files = [folder / name for name in ("generation_config.json", "config.json")]
    settings = [parse_json(path.read_bytes(), where=str(path)) for path in files if path.is_file()]
    return any(values.get("do_sample") is True for values in settings)


def asks_for_more(folder: Path) -> bool:
    """Return whether a generation_config.json asks for what `generate` may refuse, or do otherwise, all by itself."""
    path = folder / "generation_config.json"
    given = parse_json(path.read_bytes(), where=str(path)) if path.is_file() else {}
    return any(key not in ORDINARY for key, value in given.items() if value not in (None, False))


def _output(code: str, folder: Path, *, repo_id: str, gpu: bool) -> str:
    with scratch_folder(name="hubprune-snippet") as work:
        # from_pretrained takes a folder of that name for the repo, at whatever revision.
        link = work / "run" / repo_id
        link.parent.mkdir(parents=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)
        variables = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules"), "PYTHONUTF8": "1"}
        done = run_to_end(
            [sys.executable, "-P", "-c", code],
            cwd=work / "run",
            env={**os.environ, **variables, **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    if done.returncode:
        raise _failed(done)
    return done.stdout.removesuffix("\n")


def _failed(done: subprocess.CompletedProcess[str]) -> VerificationError:
    said = f"it was killed by signal {-done.returncode}" if done.returncode < 0 else last_words(done.stderr)
    return VerificationError(
        f"The code that the card would show does not run on the written files: {said}",
        hint="Nothing was published. The memory has to hold the whole model."
        if done.returncode < 0
        else "Nothing was published. This is a bug worth reporting, with the name of the base.",
    )
