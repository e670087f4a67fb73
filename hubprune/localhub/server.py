"""Run the hub: in the foreground for people, in a thread for tests and the demo."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hubprune.core.errors import HubpruneError
from hubprune.localhub.access import Account, Role
from hubprune.localhub.app import build_app
from hubprune.localhub.faults import Fault, RequestRecord, Wire
from hubprune.localhub.git import require_git
from hubprune.localhub.hub import Hub, StoredBytes
from hubprune.localhub.jobs import JobRecord, JobScript
from hubprune.localhub.loopback import LoopbackServer, endpoint_of, listen, quiet_signals


def serve(directory: Path, *, port: int = 0, xet: bool = True, announce: Callable[[str], None] = print) -> None:
    """Serve the hub that lives in `directory` until Ctrl-C or SIGTERM.

    It listens on 127.0.0.1 only, on a free port when `port` is 0. As soon as it accepts connections it announces two
    lines that a shell can take over: HF_ENDPOINT, and HF_TOKEN with a token that may write to every namespace. With
    `xet` off, downloads take the LFS path.

    Raises:
        MissingDependencyError: there is no git program.
        HubpruneError: the port is in use, or another server has the directory open.
    """
    with _alone(Path(directory)), contextlib.closing(listen(port)) as listener:
        hub = Hub(Path(directory), xet=xet)

        def say_where() -> None:
            announce(f"HF_ENDPOINT={endpoint_of(listener)}")
            announce(f"HF_TOKEN={hub.accounts.admin_token}")
            sys.stdout.flush()  # whoever reads from a pipe is waiting for these lines

        with quiet_signals():
            LoopbackServer(Wire(build_app(hub)), on_ready=say_where).run(sockets=[listener])


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold a directory for one server: two would not see each other's tokens and uploads."""
    require_git()
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / "serving.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise HubpruneError(
            f"Another server has {directory} open already.", hint="Use that Hub, or another --dir."
        ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class RunningHub:
    """A hub that serves from a thread of this process."""

    endpoint: str
    """Its address, for HF_ENDPOINT or `HfApi(endpoint=...)`."""
    token: str = field(repr=False)
    """A token that may write to every namespace."""
    _hub: Hub = field(repr=False)
    _wire: Wire = field(repr=False)

    def add_user(
        self,
        name: str,
        *,
        role: Role = "write",
        orgs: Sequence[str] = (),
        expired: bool = False,
        granted: Sequence[str] = (),
        writable: Sequence[str] = (),
        creatable: Sequence[str] = (),
        reads_gated: bool = True,
        proposes: bool = False,
    ) -> str:
        """Make a token for a user, who shares the namespaces of `orgs`, and return it.

        `granted` names the gated repositories that have accepted the user, which a token of the role `fineGrained`
        makes use of if it `reads_gated`; `writable` those that such a token, or one of the role `publisher`, may write
        to; both as `namespace/name`. `creatable` are namespaces of which a `fineGrained` one may write to everything;
        one that `proposes` may open pull requests everywhere.
        """
        account = Account(
            name=name,
            role=role,
            orgs=tuple(orgs),
            expired=expired,
            granted=tuple(granted),
            writable=tuple(writable),
            creatable=tuple(creatable),
            reads_gated=reads_gated,
            proposes=proposes,
        )
        return self._hub.accounts.add(account)

    def trust(self, resource: str) -> str:
        """List a job as a trusted publisher of a repository, or of a user, and return the token of its identity."""
        return self._hub.accounts.trust(resource)

    def expire(self, token: str) -> None:
        """End the life of a token, or of the token of an identity, as time would."""
        self._hub.accounts.expire(token)

    @property
    def stored_bytes(self) -> StoredBytes:
        """What all large files take up now; what it grows by during an upload was new to the Hub."""
        return self._hub.stored_bytes()

    @property
    def log(self) -> list[RequestRecord]:
        """The requests so far, oldest first; the last 20,000 are kept."""
        return list(self._wire.log)

    def clear_log(self) -> None:
        """Forget the requests so far."""
        self._wire.log.clear()

    @property
    def jobs(self) -> list[JobRecord]:
        """The jobs that were asked for, oldest first, secrets included."""
        return self._hub.jobs.all()

    def script_job(self, script: JobScript) -> None:
        """Say what becomes of the next job; one without a script says that nothing is run here, and completes."""
        self._hub.jobs.script(script)

    def set_faults(self, faults: Iterable[Fault | Mapping[str, Any]]) -> None:
        """Replace the faults that are set; each is a `Fault`, or the fields of one. An empty list removes them."""
        self._wire.set_faults([fault if isinstance(fault, Fault) else Fault(**fault) for fault in faults])


@contextlib.contextmanager
def running_hub(directory: Path, *, port: int = 0, xet: bool = True) -> Iterator[RunningHub]:
    """Serve the hub that lives in `directory` from a thread until the block ends.

    Arguments and errors are those of `serve`.
    """
    with _alone(Path(directory)), contextlib.closing(listen(port)) as listener:
        hub = Hub(Path(directory), xet=xet)
        wire = Wire(build_app(hub))
        ready = threading.Event()
        server = LoopbackServer(wire, on_ready=ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="localhub", daemon=True)
        thread.start()
        try:
            while not ready.wait(timeout=0.1):
                if not thread.is_alive():
                    raise RuntimeError("the local Hub did not start")
            yield RunningHub(endpoint_of(listener), hub.accounts.admin_token, hub, wire)
        finally:
            server.should_exit = True
            thread.join()
