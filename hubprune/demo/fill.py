"""Upload the embedded models and data sets to the Hub that HF_ENDPOINT and HF_TOKEN name.

    python -m hubprune.demo.fill

Running it again changes nothing: a commit without changes is not made.
"""

from collections.abc import Iterator
from pathlib import Path

from hubprune.demo import DATASETS, MODELS, repo_id


def uploads() -> Iterator[tuple[str, str, Path]]:
    """Yield repo type, repo id and folder of everything that is uploaded."""
    for name, folder in MODELS.items():
        yield "model", repo_id(name), folder
    for name, folder in DATASETS.items():
        yield "dataset", repo_id(name), folder


def main() -> None:
    """Create each repo where it is missing and upload its folder in one commit."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.logging import set_verbosity_error
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    set_verbosity_error()  # type: ignore[no-untyped-call]  # it would warn of every repo that is filled already
    api = HfApi()
    for repo_type, repo, folder in uploads():
        api.create_repo(repo, repo_type=repo_type, exist_ok=True)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        operations = [CommitOperationAdd(path.name, path) for path in files]
        api.create_commit(repo, operations, repo_type=repo_type, commit_message="Fill the demo")


if __name__ == "__main__":
    main()
