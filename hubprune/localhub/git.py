"""A bare git repository, driven through git's own plumbing commands.

Trees, blobs and commits are git's; a branch moves only by `git update-ref REF NEW OLD`, which does nothing when the
branch is no longer at OLD. That compare-and-swap is what makes one commit atomic, between threads and processes alike.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubprune.core.errors import MissingDependencyError
from hubprune.localhub import checks
from hubprune.localhub.checks import RefusedError, entry_not_found, revision_not_found

_NOWHERE = "0" * 40
_CONFLICTS = 1
"""Exit status with which git says that a merge has conflicts."""
_REF_KINDS = ("refs/heads/", "refs/tags/", "refs/pr/")
# Nothing of the user's own git configuration may change what is stored.
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "TZ": "UTC", "LC_ALL": "C",
    "GIT_COMMITTER_NAME": "hub", "GIT_COMMITTER_EMAIL": "hub@localhost",
}  # fmt: skip


class GitError(RuntimeError):
    """git ended with an error: its exit status, what it printed before, and, as the text, what it said."""

    def __init__(self, message: str, *, status: int, output: bytes) -> None:
        super().__init__(message)
        self.status, self.output = status, output


@dataclass(frozen=True)
class Entry:
    """One name in a tree."""

    path: str
    kind: str
    """`file` or `directory`."""
    oid: str
    """Hash of git's object."""
    size: int
    """Bytes of git's object: those of the pointer when the file is a large one. 0 for a directory."""


@dataclass(frozen=True)
class LoggedCommit:
    """One line of a repository's history."""

    sha: str
    date: str
    """As the Hub writes it: 2026-01-31T12:00:00.000Z."""
    author: str
    title: str
    description: str


@dataclass(frozen=True)
class RefMove:
    """One reference that goes from `old` to `new`; None stands for: does not exist."""

    name: str
    new: str | None
    old: str | None


@dataclass(frozen=True)
class Change:
    """One step of a commit: put `content` at `path`, or remove the file or folder there when it is None."""

    path: str
    content: bytes | None


def require_git() -> None:
    """Raise unless the git program can be found."""
    if shutil.which("git") is None:
        raise MissingDependencyError(
            "The local Hub keeps its repositories with git, and no git program was found.",
            hint="install git (https://git-scm.com), then try again",
        )


class GitRepo:
    """One bare repository on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def init(self) -> None:
        """Create the repository, empty, with `main` as its branch."""
        self.path.mkdir(parents=True)
        self.run("init", "--quiet", "--bare", "--initial-branch=main", "--template=")

    # Reading

    def resolve(self, revision: str) -> str:
        """Return the full hash of the commit that a branch, tag, `refs/...` name or (short) hash stands for."""
        if revision.startswith("refs/"):
            candidates = [revision] if revision.startswith(_REF_KINDS) else []
        else:
            candidates = [f"refs/heads/{revision}", f"refs/tags/{revision}"]
            candidates += [revision] if checks.is_commit(revision) else []
        query = "".join(f"{name}^{{commit}}\n" for name in candidates if checks.is_ref_name(name))
        answers = self.run("cat-file", "--batch-check", stdin=query.encode()).decode().splitlines()
        for answer in answers:
            if match := re.fullmatch(r"([0-9a-f]{40}) commit \d+", answer):
                return match[1]
        raise revision_not_found(revision)

    def tree(self, sha: str, folder: str = "", *, recursive: bool = False) -> list[Entry]:
        """List a folder of a commit; the folders below it too, when recursive."""
        options = ["-r", "-t"] if recursive else []
        listing = self.try_run("ls-tree", "-z", "-l", *options, f"{sha}:{folder}")
        if listing is None:
            raise entry_not_found(folder, sha)
        prefix = f"{folder}/" if folder else ""
        rows = (row.split("\t", 1) for row in listing.decode().split("\0") if row)
        return [_entry(prefix + name, *attributes.split()[1:]) for attributes, name in rows]

    def entries(self, sha: str, paths: Iterable[str]) -> dict[str, Entry]:
        """Look paths up in a commit; those that it does not hold are left out."""
        wanted = list(paths)
        query = "".join(f"{sha}:{path}\n" for path in wanted)
        # Not splitlines(), which knows more line ends than git does. The last line is followed by an empty one.
        answers = self.run("cat-file", "--batch-check", stdin=query.encode()).decode().split("\n")
        found = {}
        for path, answer in zip(wanted, answers[:-1], strict=True):
            if match := re.fullmatch(r"([0-9a-f]{40}) (blob|tree) (\d+)", answer):
                found[path] = _entry(path, match[2], match[1], match[3])
        return found

    def file(self, sha: str, path: str) -> Entry:
        """Look up one file, which has to be there."""
        entry = self.entries(sha, [path]).get(path)
        if entry is None or entry.kind != "file":
            raise entry_not_found(path, sha)
        return entry

    def blob(self, oid: str) -> bytes:
        """Return the content of one blob."""
        return self.run("cat-file", "blob", oid)

    def blobs(self, oids: Iterable[str]) -> dict[str, bytes]:
        """Return the content of several small blobs, read in one go."""
        wanted = dict.fromkeys(oids)
        if not wanted:
            return {}
        stream = self.run("cat-file", "--batch", stdin="".join(f"{oid}\n" for oid in wanted).encode())
        contents, at = {}, 0
        for oid in wanted:
            end_of_header = stream.index(b"\n", at)
            size = int(stream[at:end_of_header].split()[2])
            contents[oid] = stream[end_of_header + 1 : end_of_header + 1 + size]
            at = end_of_header + size + 2
        return contents

    def small_blobs(self, size: int) -> list[str]:
        """Return the hashes of all blobs below a size in bytes, of whatever commit."""
        form = "--batch-check=%(objecttype) %(objectsize) %(objectname)"
        rows = (row.split() for row in self.run("cat-file", "--batch-all-objects", form).decode().splitlines())
        return [oid for kind, bytes_, oid in rows if kind == "blob" and int(bytes_) < size]

    def refs(self) -> dict[str, str]:
        """Map the name of every branch, tag and pull request to its commit."""
        listing = self.run("for-each-ref", "--format=%(refname) %(objectname)", *_REF_KINDS).decode()
        return dict(line.split(" ") for line in listing.splitlines())

    def log(self, sha: str, *, limit: int | None = None, since: str | None = None) -> list[LoggedCommit]:
        """List a commit and its ancestors, newest first; those of the commit `since` are left out."""
        window = [f"--max-count={limit}"] if limit is not None else []
        form = ["--date=format-local:%Y-%m-%dT%H:%M:%S.000Z", "--format=%H%x00%cd%x00%an%x00%s%x00%b%x00"]
        listing = self.run("log", *window, *form, sha, *([f"^{since}"] if since else [])).decode(errors="replace")
        fields = listing.split("\0")[:-1]
        rows = [fields[at : at + 5] for at in range(0, len(fields), 5)]
        return [LoggedCommit(row[0].strip(), row[1], row[2], row[3], row[4].strip("\n")) for row in rows]

    def last_changes(self, sha: str) -> dict[str, str]:
        """Map every file and folder that was ever in a commit or its ancestors to the last commit that changed it."""
        blocks = self.run("log", "-z", "--name-only", "--format=%x01%H", sha).decode(errors="replace").split("\x01")
        changed: dict[str, str] = {}
        for block in blocks[1:]:
            commit, *paths = block.split("\0")
            for path in (path.strip("\n") for path in paths):
                changed.setdefault(path, commit)
                for end in (match.start() for match in re.finditer("/", path)):
                    changed.setdefault(path[:end], commit)
        return changed

    def difference(self, base: str, head: str) -> str:
        """Return what `head` changes since it left `base`, as git writes it; large files show as their pointers."""
        fork = self.try_run("merge-base", base, head)
        start = fork.decode().strip() if fork else base
        return self.run("diff", "--no-color", "--no-ext-diff", start, head).decode(errors="replace")

    # Writing

    def write_commit(self, parent: str | None, changes: Sequence[Change], *, message: str, author: str) -> str:
        """Store a commit on top of `parent` without moving any branch, and return its hash.

        The changes apply in their order; a file takes the place of a folder of its name, and the other way round.
        """
        with tempfile.TemporaryDirectory(dir=self.path, prefix="incoming-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            self.run("read-tree", parent or "--empty", env=index)
            rows = self._index_rows(parent, changes, folder)
            try:
                self.run("update-index", "-z", "--index-info", stdin=rows, env=index)
            except GitError as error:
                raise RefusedError(400, f"git does not take these changes: {error}") from error
            tree = self.run("write-tree", env=index).decode().strip()
        return self.commit_tree(tree, parent=parent, message=message, author=author)

    def commit_tree(self, tree: str, *, parent: str | None, message: str, author: str) -> str:
        """Store a commit of a tree that exists already, and return its hash."""
        identity = {"GIT_AUTHOR_NAME": author, "GIT_AUTHOR_EMAIL": f"{author}@localhost"}
        parents = ["-p", parent] if parent else []
        return self.run("commit-tree", tree, *parents, stdin=message.encode(), env=identity).decode().strip()

    def merge_trees(self, ours: str, theirs: str) -> tuple[str, list[str]]:
        """Merge two commits into a tree, without a working tree; nothing moves.

        Returns the tree's hash, which is of use only without conflicts, and the paths that both sides have changed,
        each in its own way. Histories that have nothing in common merge as well: a squashed branch has lost what it
        shared with its pull requests.
        """
        options = ("--write-tree", "-z", "--name-only", "--no-messages", "--allow-unrelated-histories")
        try:
            output = self.run("merge-tree", *options, ours, theirs)
        except GitError as error:
            if error.status != _CONFLICTS:
                message = f"This machine's git cannot merge, which takes version 2.38: {error}"
                raise RefusedError(501, message) from error
            output = error.output
        tree, *conflicts = output.decode(errors="replace").rstrip("\0").split("\0")
        return tree, list(dict.fromkeys(conflicts))

    def move_ref(self, name: str, new: str, *, old: str | None) -> bool:
        """Point a reference at `new` if it is still at `old` (None: if it does not exist); say whether it was."""
        return self.move_refs([RefMove(name, new, old)])

    def move_refs(self, moves: Sequence[RefMove]) -> bool:
        """Move several references at once if each is still where it was; else move none, and say so."""
        rows = [f"update {move.name}\0{move.new or _NOWHERE}\0{move.old or _NOWHERE}\0" for move in moves]
        order = "".join(["start\0", *rows, "commit\0"])
        return self.try_run("update-ref", "-z", "--stdin", stdin=order.encode()) is not None

    def delete_ref(self, name: str) -> None:
        """Remove a branch or tag, which has to be there."""
        old = self.refs().get(name)
        if old is None or not self.move_refs([RefMove(name, None, old)]):
            raise revision_not_found(name.split("/", 2)[2])

    def store_blob(self, content: bytes) -> str:
        """Store one blob and return its hash."""
        return self.run("hash-object", "-w", "--no-filters", "--stdin", stdin=content).decode().strip()

    def _index_rows(self, parent: str | None, changes: Sequence[Change], folder: str) -> bytes:
        """Turn changes into what `git update-index --index-info` reads, storing new content on the way."""
        contents = [change.content for change in changes if change.content is not None]
        paths = [Path(folder, str(number)) for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        # Stored through files, so that one process hashes any number of them.
        listing = "".join(f"{path}\n" for path in paths).encode()
        hashing = ("hash-object", "-w", "--no-filters", "--stdin-paths")
        oids = iter(self.run(*hashing, stdin=listing).decode().split() if contents else ())
        removed = [change.path for change in changes if change.content is None]
        present = self.entries(parent, removed) if parent and removed else {}
        rows = []
        for change in changes:
            if change.content is not None:
                rows.append(f"100644 {next(oids)}\t{change.path}")
            elif parent and (entry := present.get(change.path)):
                gone = self.tree(parent, entry.path, recursive=True) if entry.kind == "directory" else [entry]
                rows += [f"0 {_NOWHERE}\t{file.path}" for file in gone if file.kind == "file"]
            else:
                raise RefusedError(404, "A file with this name doesn't exist", code="EntryNotFound")
        return "".join(row + "\0" for row in rows).encode()

    # Running git

    def try_run(self, *args: str, stdin: bytes = b"") -> bytes | None:
        """Run a git command and return what it prints, None when it fails."""
        try:
            return self.run(*args, stdin=stdin)
        except GitError:
            return None

    def run(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        """Run a git command in the repository and return what it prints.

        Raises:
            GitError: it failed.
        """
        command, environment = self.command(*args), {**self.environment(), **(env or {})}
        done = subprocess.run(command, input=stdin, capture_output=True, env=environment, cwd=self.path, check=False)
        if done.returncode:
            message = f"git {args[0]}: {done.stderr.decode(errors='replace').strip()}"
            raise GitError(message, status=done.returncode, output=done.stdout)
        return done.stdout

    def command(self, *args: str) -> list[str]:
        """Return the command line of a git command."""
        # A branch that another commit is just moving is waited for: to fail then means that it has moved.
        return ["git", "-c", "core.filesRefLockTimeout=5000", *args]

    def environment(self) -> dict[str, str]:
        """Return the environment that makes git work on this repository and nothing else."""
        # A GIT_DIR or GIT_INDEX_FILE of the caller, who may be a git hook, must not lead the command elsewhere.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return {**inherited, **_ENVIRONMENT, "GIT_DIR": str(self.path.absolute())}


def _entry(path: str, kind: str, oid: str, size: str) -> Entry:
    return Entry(path, "directory", oid, 0) if kind == "tree" else Entry(path, "file", oid, int(size))
