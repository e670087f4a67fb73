"""The hub itself: its repositories, its stores, and who may open what."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hubprune.localhub import checks
from hubprune.localhub.checks import KINDS, Account, Accounts, RefusedError
from hubprune.localhub.git import Change, Entry, GitRepo, require_git
from hubprune.localhub.large_files import GITATTRIBUTES, POINTER_BYTES, LfsStore, Pointer, XetStore, parse_pointer

Need = Literal["see", "read", "propose", "write"]
"""see: know that it exists, its settings and file names · read: have its content · propose: upload, open a pull
request · write: commit, tag, change settings."""

_MOVED = ".moved"
"""Suffix of the file that holds a moved repository's new name."""
_MAX_MOVES = 20
# What a server that was killed leaves lying about: files that were being written, repositories on their way in or out.
_UNFINISHED = (".incoming-*", "lfs/.incoming-*", "xet/*/.incoming-*", "repos/.new-*", "repos/.old-*")
_UNFINISHED_IN_A_REPO = ("incoming-*", ".incoming-*", "*.lock", "refs/**/*.lock")
"""With the locks git keeps others from a reference while it moves: nobody is left to take them away."""


@dataclass(frozen=True)
class Settings:
    """What the Hub knows about a repository beside its history."""

    private: bool = False
    gated: Literal["auto", "manual", False] = False
    created: float = 0.0
    """Seconds since the epoch."""


@dataclass(frozen=True)
class StoredBytes:
    """How much the large files of all repositories take up."""

    xet: int
    """In Xet's store, where every chunk lies once."""
    lfs: int
    """In the store of whole files."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a repository, seen through its pointer when it has one."""

    entry: Entry
    pointer: Pointer | None
    xet_hash: str | None

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return self.pointer.size if self.pointer else self.entry.size


@dataclass(frozen=True)
class Repo:
    """One repository of the hub: a git repository with a name and settings."""

    kind: str
    """`models` or `datasets`."""
    repo_id: str
    git: GitRepo

    @property
    def settings(self) -> Settings:
        """The settings as they are now."""
        return Settings(**json.loads((self.git.path / "hub.json").read_bytes()))

    def change_settings(self, **changes: Any) -> None:
        """Replace some of the settings."""
        checks.write_bytes(self.git.path / "hub.json", _encode(replace(self.settings, **changes)))

    def web_path(self) -> str:
        """Return the repository's path in addresses."""
        return f"/{self.repo_id}" if self.kind == "models" else f"/{self.kind}/{self.repo_id}"


def _encode(settings: Settings) -> bytes:
    return json.dumps(asdict(settings), sort_keys=True).encode()


class Hub:
    """Everything below one directory, which nobody else may have open.

    With `xet` off, files are announced as plain large files, so that downloads take the LFS path. Uploads are not
    affected: a client that has hf-xet never asks.
    """

    def __init__(self, directory: Path, *, xet: bool = True) -> None:
        require_git()
        self.directory = directory = directory.absolute()  # git runs in the folders of its repositories
        directory.mkdir(parents=True, exist_ok=True)
        sweep(directory)
        self._repos, self.announces_xet = directory / "repos", xet
        self.accounts = Accounts(directory / "accounts.json")
        self.lfs, self.xet = LfsStore(directory / "lfs"), XetStore(directory / "xet")

    def create_repo(self, kind: str, repo_id: str, *, private: bool) -> Repo:
        """Make a repository with its first commit; it appears complete or not at all."""

        def commit_first(git: GitRepo) -> None:
            change, author = Change(".gitattributes", GITATTRIBUTES), repo_id.split("/")[0]
            first = git.write_commit(None, [change], message="initial commit\n", author=author)
            git.move_ref("refs/heads/main", first, old=None)

        return self._make(kind, repo_id, Settings(private=private, created=time.time()), commit_first)

    def copy_repo(self, source: Repo, repo_id: str, *, private: bool) -> Repo:
        """Make a repository with the branches, tags and history of another; their large files are stored once."""

        def fetch(git: GitRepo) -> None:
            refs = (f"{kind}*:{kind}*" for kind in ("refs/heads/", "refs/tags/"))
            git.run("fetch", "--quiet", "--no-write-fetch-head", str(source.git.path.absolute()), *refs)

        return self._make(source.kind, repo_id, Settings(private=private, created=time.time()), fetch)

    def move_repo(self, repo: Repo, repo_id: str) -> Repo:
        """Give a repository another name; whoever asks for the old one is sent there."""
        path = self._path(repo.kind, repo_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            repo.git.path.rename(path)
        except OSError as error:  # not empty
            raise FileExistsError(repo_id) from error
        checks.write_bytes(repo.git.path.with_suffix(_MOVED), repo_id.encode())
        return Repo(repo.kind, repo_id, GitRepo(path))

    def moved_to(self, kind: str, repo_id: str) -> str | None:
        """Return the new name of a repository that was moved, None for any other."""
        for _ in range(_MAX_MOVES):
            try:
                repo_id = self._path(kind, repo_id).with_suffix(_MOVED).read_text()
            except FileNotFoundError:
                return None
            if self.find_repo(kind, repo_id):
                return repo_id
        return None

    def _make(self, kind: str, repo_id: str, settings: Settings, fill: Callable[[GitRepo], None]) -> Repo:
        """Make a repository aside, and put it in its place when it is complete."""
        path = self._path(kind, repo_id)
        if path.exists():
            raise FileExistsError(repo_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._repos, prefix=".new-") as scratch:
            git = GitRepo(Path(scratch, "git"))
            git.init()
            checks.write_bytes(git.path / "hub.json", _encode(settings))
            fill(git)
            try:
                git.path.rename(path)
            except OSError as error:  # somebody else has just created it
                raise FileExistsError(repo_id) from error
        return Repo(kind, repo_id, GitRepo(path))

    def delete_repo(self, repo: Repo) -> None:
        """Remove a repository; large files stay, as others may hold them too."""
        with tempfile.TemporaryDirectory(dir=self._repos, prefix=".old-") as scratch:
            repo.git.path.rename(Path(scratch, "git"))
            shutil.rmtree(Path(scratch, "git"))

    def find_repo(self, kind: str, repo_id: str) -> Repo | None:
        """Return a repository by name, whoever asks."""
        path = self._path(kind, repo_id)
        return Repo(kind, repo_id, GitRepo(path)) if path.exists() else None

    def repos(self, kind: str) -> list[Repo]:
        """List the repositories of a kind by their names, whoever asks."""
        found = sorted(path for path in (self._repos / kind).glob("*/*.git") if path.is_dir())
        return [Repo(kind, f"{path.parent.name}/{path.name.removesuffix('.git')}", GitRepo(path)) for path in found]

    def namespaces(self) -> list[str]:
        """List the namespaces that hold a repository, sorted."""
        return sorted({repo.repo_id.split("/")[0] for kind in KINDS for repo in self.repos(kind)})

    def open(self, account: Account | None, kind: str, repo_id: str, need: Need) -> Repo:
        """Return a repository if the account may do with it what it needs to."""
        repo = self.find_repo(kind, repo_id)
        member = account is not None and account.knows(repo_id)
        if account is None and need in ("propose", "write"):
            raise RefusedError(401, "Invalid username or password.")
        if repo is None or (repo.settings.private and not member):
            raise RefusedError(404 if account else 401, "Repository not found", code="RepoNotFound")
        if need == "write" and not (account and account.may_write(repo_id)):
            raise RefusedError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        if need == "propose" and not (account and (account.may_propose() or account.may_write(repo_id))):
            raise RefusedError(403, "This token has no write permission")
        if need == "read" and repo.settings.gated and not member:
            if account is None or repo_id not in account.granted:
                message = f"Access to {kind[:-1]} {repo_id} is restricted and you are not in the authorized list."
                raise RefusedError(403 if account else 401, message, code="GatedRepo")
            if account.role == "fineGrained" and not account.reads_gated:
                message = "Please enable access to public gated repositories in your fine-grained token settings"
                raise RefusedError(403, f"{message} to view this repository.", code="GatedRepo")
        return repo

    def stored_size(self, sha256: str) -> int | None:
        """Return the size of a large file, None when it was never uploaded."""
        recipe = self.xet.by_sha256(sha256)
        return recipe.size if recipe else self.lfs.size(sha256)

    def stored_bytes(self) -> StoredBytes:
        """Return how much the large files of all repositories take up."""
        return StoredBytes(xet=self.xet.stored_bytes(), lfs=self.lfs.stored_bytes())

    def large_file(self, sha256: str) -> Path:
        """Return a large file as one file on disk, put together from chunks first if it has to be."""
        if self.lfs.size(sha256) is None:
            if (recipe := self.xet.by_sha256(sha256)) is None:
                raise RefusedError(404, "No such object")
            self.lfs.write(sha256, self.xet.content(recipe))
        return self.lfs.path(sha256)

    def first_bytes(self, repo: Repo, file: StoredFile, count: int) -> bytes:
        """Return the beginning of a file, wherever it is kept."""
        if file.pointer is None:
            return repo.git.blob(file.entry.oid)[:count]
        if recipe := self.xet.by_sha256(file.pointer.sha256):
            return self.xet.first_bytes(recipe, count)
        with self.large_file(file.pointer.sha256).open("rb") as stored:
            return stored.read(count)

    def files(self, repo: Repo, entries: Sequence[Entry]) -> list[StoredFile]:
        """Look through the pointers among some entries of a tree; folders come back as they are."""
        small = [entry.oid for entry in entries if entry.kind == "file" and entry.size < POINTER_BYTES]
        pointers = {oid: parse_pointer(blob) for oid, blob in repo.git.blobs(small).items()}
        found = []
        for entry in entries:
            recipe = self.xet.by_sha256(pointer.sha256) if (pointer := pointers.get(entry.oid)) else None
            found.append(StoredFile(entry, pointer, recipe.file_hash if recipe else None))
        return found

    def files_at(self, repo: Repo, sha: str) -> list[StoredFile]:
        """Return all files of a commit."""
        return self.files(repo, [entry for entry in repo.git.tree(sha, recursive=True) if entry.kind == "file"])

    def large_files(self, repo: Repo) -> set[str]:
        """Return the SHA-256 of every large file that a commit of the repository points to."""
        pointers = map(parse_pointer, repo.git.blobs(repo.git.small_blobs(POINTER_BYTES)).values())
        return {pointer.sha256 for pointer in pointers if pointer}

    def _path(self, kind: str, repo_id: str) -> Path:
        return self._repos / kind / f"{repo_id}.git"


def sweep(directory: Path) -> None:
    """Remove what is half-done below a hub's directory; no server may be running there.

    Nothing that was ever visible is touched: every file and repository takes its name in one step, at its end.
    """
    left = [path for pattern in _UNFINISHED for path in directory.glob(pattern)]
    for repo in directory.glob("repos/*/*/*.git"):
        left += [path for pattern in _UNFINISHED_IN_A_REPO for path in repo.glob(pattern)]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
