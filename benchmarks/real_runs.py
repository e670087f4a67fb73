"""What the measurements of real sizes run, and on what: random Llamas of known shapes, texts, tasks, a Hub with them.

Every token is a word ("w17"), so that the tasks of `eval.py`, which have the lengths of the real ones, fit all shapes.
The Hub is a process of its own, outside of any control group.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from control_groups import Cost, Kill, MemoryGroup, measure
from eval import FULL, write_tasks, write_word_tokenizer
from measuring import Bound
from random_llama import LlamaShape, write_llama

HERE = Path(__file__).resolve().parent
ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "50M": FULL,
    "307M": LlamaShape(1024, 2816, 24, 16, 4, 36000, "BF16"),
    "1B": LlamaShape(2048, 5632, 22, 32, 4, 32000, "BF16"),
    "3B": LlamaShape(3072, 8192, 28, 24, 8, 128256, "BF16"),
    "8B": LlamaShape(4096, 14336, 32, 32, 8, 128256, "BF16", tied=False),
}
"""As those of Llama-3.2-3B and Llama-3.1-8B; the others are ordinary sizes."""
SMALL_SHAPES = {
    name: LlamaShape(64, 128, shape.num_hidden_layers // 3, 4, 2, 1024, shape.dtype, tied=shape.tied)
    for name, shape in SHAPES.items()
}
SHARDS = 4
WORDS = 1000
"""That texts and tasks are made of; every shape has them."""
TEXTS, TEXT_WORDS = 200, 160
PROMPTS, PROMPT_WORDS = 4, 8
TASKS = ("like_arc_easy", "like_hellaswag", "like_piqa", "like_winogrande")
SMALL_LIMIT = 1.5
"""GB, for small models too: what Python with its libraries needs."""
OWNER = "bench"
CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n\n# Random weights\n"
LEFT_OUT = ("HF_", "HUGGING", "TRANSFORMERS_", "HUBPRUNE_")
"""Variables that would change what is measured."""


def clean_environment(build: Path = ROOT) -> dict[str, str]:
    """Return this process's variables without those that clients of the Hub read, for the package in a checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    quiet = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    return {**kept, **quiet, "PYTHONPATH": str(build)}


def repo_id(name: str) -> str:
    """Return the repo of a base on the Hub."""
    return f"{OWNER}/{name}"


class Place:
    """A folder with everything that runs need; what is there already is not made again."""

    def __init__(self, folder: Path, *, small: bool) -> None:
        self.folder, self.small = folder, small
        folder.mkdir(parents=True, exist_ok=True)

    def shape(self, name: str) -> LlamaShape:
        """Return the shape of a base, or of the small one that stands for it."""
        return (SMALL_SHAPES if self.small else SHAPES)[name]

    def base(self, name: str) -> Path:
        """Return the folder of a base, written at the first call."""
        folder, shape = self.folder / name, self.shape(name)
        if not folder.is_dir():
            unfinished = folder.with_name(f".{name}")
            write_llama(unfinished, shape, shards=SHARDS)
            write_word_tokenizer(unfinished, shape.vocab_size)
            unfinished.rename(folder)
        return folder

    def tasks(self, documents: int) -> Path:
        """Return a folder with the five tasks of `eval.py`, with so many documents each."""
        folder = self.folder / f"tasks-{documents}"
        if not folder.is_dir():
            write_tasks(folder, WORDS, documents)
        return folder

    @property
    def texts(self) -> Path:
        """Calibration documents of random words."""
        path = self.folder / "texts.jsonl"
        texts = (json.dumps({"text": text}) for text in _texts(TEXTS, TEXT_WORDS))
        path.write_text("".join(f"{text}\n" for text in texts))
        return path

    @property
    def prompts(self) -> Path:
        """Prompts for free text."""
        path = self.folder / "prompts.txt"
        path.write_text("".join(f"{text}\n" for text in _texts(PROMPTS, PROMPT_WORDS)))
        return path

    def cache(self, name: str | None) -> Path:
        """Return the folder of what was downloaded from the Hub of a base."""
        return self.folder / f"hf-{name or 'demo'}"

    @contextmanager
    def hub(self, name: str | None = None) -> Iterator[dict[str, str]]:
        """Run a local Hub that holds a base, or else the embedded models, and yield the variables that lead to it."""
        command = [sys.executable, "-m", "hubprune", "hub", "--dir", str(self.folder / f"hub-{name or 'demo'}")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment()) as server:
            try:
                assert server.stdout is not None
                address = dict(server.stdout.readline().strip().split("=", 1) for _ in range(2))
                # A client's cache that remembers another Hub at the same address would make uploads fail.
                address["HF_HOME"] = str(self.cache(name))
                fill = [__file__, "--upload", str(self.base(name)), name] if name else ["-m", "hubprune.demo.fill"]
                subprocess.run([sys.executable, *fill], env={**clean_environment(), **address}, check=True)
                yield address
            finally:
                server.terminate()


def _texts(count: int, words: int) -> Iterator[str]:
    source = random.Random(0)
    for _ in range(count):
        yield " ".join(f"w{source.randrange(WORDS)}" for _ in range(words))


@dataclass
class Bench:
    """Where things are, and what ran so far."""

    place: Place
    against: Path | None
    row: str = ""
    commands: list[dict[str, object]] = field(default_factory=list)

    @property
    def small(self) -> bool:
        """Whether times and sizes mean nothing."""
        return self.place.small

    def run(
        self, build: Path, *arguments: object, group: MemoryGroup | None = None, kill: Kill | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Cost:  # fmt: skip
        """Run Python with the package of a checkout, show the command and how it went, and keep its talk."""
        command = [sys.executable, *arguments]
        # Python looks for a module that it runs in the working folder first.
        environment = {**clean_environment(build), **variables}
        cost = measure(command, environment, folder=build, group=group, kill=kill)
        shown = " ".join(map(str, arguments)).removeprefix("-m ")
        print(f"$ {shown}    [{'this' if build == ROOT else 'other'} build]", file=sys.stderr)
        print("\n".join(cost.lines), file=sys.stderr)
        parts = f"exit code {cost.code}, {cost.cpu:.1f} CPU s, {cost.wall:.1f} s, peak {cost.peak_bytes / 1e9:.2f} GB"
        parts += f", read {cost.read_bytes / 1e9:.2f} GB"
        if group:
            held = f"{cost.highest_anonymous_bytes / 1e9:.2f} GB anonymous"
            parts += f"; control group: {held} at most, {cost.kills} processes killed"
        print(f"  -> {parts}\n", file=sys.stderr, flush=True)
        self.commands.append({"row": self.row, "command": shown, "build": str(build), **asdict(cost)})
        return cost

    def by_hand(self, *arguments: object) -> Cost:
        """Run a job of `by_hand.py`, which has to succeed."""
        cost = self.run(ROOT, HERE / "by_hand.py", *arguments)
        if cost.code:
            sys.exit(f"by_hand.py failed with exit code {cost.code}")
        return cost

    def prune(self, base: Path, *options: object, build: Path = ROOT, group: MemoryGroup | None = None) -> Cost:
        """Prune a base by a whole command, and remove what it wrote."""
        with self.scratch() as folder:
            command = ("-m", "hubprune", "prune", base, *options, "--out", folder / "pruned")
            return self.run(build, *command, group=group, variables={"HUBPRUNE_HOME": str(folder / "home")})

    def publish(
        self, name: str, home: Path, address: Mapping[str, str], *options: object, build: Path = ROOT,
        group: MemoryGroup | None = None, kill: Kill | None = None,
    ) -> Cost:  # fmt: skip
        """Run a whole dry run of a base on the Hub."""
        place = self.place
        ours = ("--calibration", place.texts, "--include-path", place.tasks(10))
        drawn = ("--attn-drop", 3, "--num-samples", 40, "--max-tokens", 128, "--tasks", ",".join(TASKS))
        command = ("-m", "hubprune", "publish", repo_id(name), *drawn, *ours, "--dry-run", *options)
        return self.run(build, *command, group=group, kill=kill, variables={**address, "HUBPRUNE_HOME": str(home)})

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder beside the bases, for the time of a block."""
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.place.folder) as name:
            yield Path(name)

    def group_bytes(self, gigabytes: float) -> int:
        """Return the limit of a control group."""
        return int((SMALL_LIMIT if self.small else gigabytes) * 1e9)

    def bound(self, bound: Bound) -> Bound | None:
        """Return a bound that is about size or time, unless models are small."""
        return None if self.small else bound


def upload(folder: Path, name: str, environment: Mapping[str, str]) -> None:
    """Commit a base to the Hub of some variables, unless it is there."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=environment["HF_ENDPOINT"], token=environment["HF_TOKEN"])
    if api.repo_exists(repo_id(name)):
        return
    api.create_repo(repo_id(name))
    files: list[tuple[str, Path | bytes]] = [(path.name, path) for path in sorted(folder.iterdir())]
    operations = [CommitOperationAdd(path, content) for path, content in [*files, ("README.md", CARD.encode())]]
    api.create_commit(repo_id(name), operations, commit_message="Random weights")
    for path in folder.glob("*.safetensors"):
        # At its first request, the local Hub puts a file together from chunks, which may take longer than clients wait.
        address = f"{environment['HF_ENDPOINT']}/{repo_id(name)}/resolve/main/{path.name}"
        asked = {"Authorization": f"Bearer {environment['HF_TOKEN']}", "Range": "bytes=0-7"}
        urllib.request.urlopen(urllib.request.Request(address, headers=asked)).read()


if __name__ == "__main__":
    upload(Path(sys.argv[2]), sys.argv[3], os.environ)
