"""What the Hub tells about a repository at one commit: each property by its name in the answer."""

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from hubprune.localhub import cards, tensors
from hubprune.localhub.hub import Hub, Repo, StoredFile
from hubprune.localhub.refusal import RefusedError
from hubprune.localhub.web import timestamp

_CONFIG_KEYS = ("architectures", "auto_map", "model_type", "quantization_config")
"""What the Hub repeats of a model's config.json."""


class Description:
    """A repository at one commit; what is not asked for is not looked up."""

    def __init__(self, hub: Hub, repo: Repo, sha: str) -> None:
        self._hub = hub
        self.repo = repo
        self.sha = sha
        self.settings = repo.settings

    def describe(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the named properties, without those that the repository does not have."""
        answers = {name: _PROPERTIES[name](self) for name in names if name in _PROPERTIES}
        known = {"_id": self.repo.repo_id, "id": self.repo.repo_id}
        if self.repo.kind == "models":
            known["modelId"] = self.repo.repo_id
        return {**known, **{name: answer for name, answer in answers.items() if answer is not None}}

    @cached_property
    def card(self) -> dict[str, Any]:
        """The metadata of the README.md."""
        try:
            return cards.read_metadata(self._texts.get("README.md", ""))
        except cards.MetadataError:  # the rules were laxer when it was committed
            return {}

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The part of a model's config.json that the Hub repeats, None where there is none."""
        try:
            config = json.loads(self._texts.get("config.json", "null"))
            known = {key: config[key] for key in _CONFIG_KEYS if key in config} if isinstance(config, dict) else None
            return cards.as_json(known) if known is not None else None
        except (ValueError, RecursionError):  # no JSON, or none that can be written again
            return None

    @cached_property
    def files(self) -> list[StoredFile]:
        """All files."""
        entries = [entry for entry in self.repo.git.tree(self.sha, recursive=True) if entry.kind == "file"]
        return self._hub.files(self.repo, entries)

    @cached_property
    def tags(self) -> list[str]:
        """What the Hub derives from the card."""
        return cards.tags(self.card)

    @cached_property
    def changed(self) -> str:
        """When the commit was made."""
        return self.repo.git.log(self.sha, limit=1)[0].date

    @cached_property
    def parameters(self) -> dict[str, Any] | None:
        """How many parameters a model has, by dtype and in total."""
        return tensors.count_parameters(self._hub, self.repo, self.sha)

    @property
    def storage(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def of_model(self, key: str) -> Any:
        """Return what the card of a model says about something; data sets say it elsewhere."""
        return self.card.get(key) if self.repo.kind == "models" else None

    @cached_property
    def _texts(self) -> dict[str, str]:
        found = self.repo.git.entries(self.sha, ["README.md", "config.json"])
        blobs = self.repo.git.blobs(entry.oid for entry in found.values() if entry.kind == "file")
        return {path: blobs[entry.oid].decode(errors="replace") for path, entry in found.items() if entry.oid in blobs}


def _base_models(shown: Description) -> dict[str, Any] | None:
    named = shown.of_model("base_model")
    if not named:
        return None
    models = [{"_id": name, "id": name} for name in (named if isinstance(named, list) else [named])]
    return {"relation": shown.card.get("base_model_relation"), "models": models}


def _sibling(file: StoredFile) -> dict[str, Any]:
    row: dict[str, Any] = {"rfilename": file.entry.path, "blobId": file.entry.oid, "size": file.size}
    if file.pointer is not None:
        row["lfs"] = {"sha256": file.pointer.sha256, "size": file.pointer.size, "pointerSize": file.entry.size}
    return row


_PROPERTIES: dict[str, Callable[[Description], Any]] = {
    "author": lambda shown: shown.repo.repo_id.split("/")[0],
    "baseModels": _base_models,
    "cardData": lambda shown: shown.card,
    "config": lambda shown: shown.config if shown.repo.kind == "models" else None,
    "createdAt": lambda shown: timestamp(shown.settings.created),
    "disabled": lambda shown: False,
    "downloads": lambda shown: 0,
    "downloadsAllTime": lambda shown: 0,
    "gated": lambda shown: shown.settings.gated,
    "lastModified": lambda shown: shown.changed,
    "library_name": lambda shown: shown.of_model("library_name"),
    "likes": lambda shown: 0,
    "model-index": lambda shown: shown.of_model("model-index"),
    "pipeline_tag": lambda shown: shown.of_model("pipeline_tag"),
    "private": lambda shown: shown.settings.private,
    "safetensors": lambda shown: shown.parameters if shown.repo.kind == "models" else None,
    "sha": lambda shown: shown.sha,
    "siblings": lambda shown: [_sibling(file) for file in shown.files],
    "spaces": lambda shown: [] if shown.repo.kind == "models" else None,
    "tags": lambda shown: shown.tags,
    "trendingScore": lambda shown: 0,
    "usedStorage": lambda shown: shown.storage,
}

# What the Hub can tell and this one cannot: asked for, it is left out of the answer.
_UNKNOWN_HERE = (
    *("childrenModelCount", "citation", "description", "evalResults", "gguf", "inference", "inferenceProviderMapping"),
    *("mainSize", "mask_token", "paperswithcode_id", "resourceGroup", "securityRepoStatus"),
    *("transformersInfo", "widgetData", "xetEnabled"),
)

_BRIEF = ("createdAt", "downloads", "library_name", "likes", "pipeline_tag", "private", "tags")
_FULL = (*_BRIEF, "author", "disabled", "gated", "lastModified", "sha")

IN_LISTS = {"models": _BRIEF, "datasets": (*_FULL, "trendingScore")}
"""What a list tells by default, by kind of repository."""
IN_FULL_LISTS = {"models": (*_FULL, "siblings"), "datasets": (*_FULL, "cardData", "siblings")}
"""What a list tells when all is asked for."""
BY_ITSELF = (*_FULL, "cardData", "config", "model-index", "safetensors", "siblings", "spaces", "usedStorage")
"""What one repository tells by default."""


def expanded(names: list[str]) -> list[str]:
    """Return the properties that a client asks for by name; a name that the Hub does not know is refused."""
    unknown = [name for name in names if name not in _PROPERTIES and name not in _UNKNOWN_HERE]
    if unknown:
        raise RefusedError(400, f"Invalid expand: {', '.join(unknown)}")
    return names
