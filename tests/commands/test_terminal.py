"""Whatever the terminal, the user and the environment are like, a command ends with a result or with one error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from hubprune.commands import terminal
from hubprune.core import privacy
from hubprune.core.errors import AuthenticationError, BaseNotFoundError, RecipeError

NO_HOME = """
import os, pwd
os.environ.pop("HOME", None)
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
from hubprune.cli import main
main()
"""
needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")


def hubprune(*arguments, code=("-m", "hubprune"), out=subprocess.PIPE, **environment):
    """Run the command line as a process of its own."""
    kept = {key: value for key, value in os.environ.items() if key not in ("HUBPRUNE_HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, *code, *arguments]
    return subprocess.run(
        command, stdout=out, stderr=subprocess.PIPE, env={**kept, **environment}, check=False, timeout=120
    )


def errors(done):
    """The lines on stderr, none of them a traceback's."""
    said = done.stderr.decode(errors="replace")
    assert "Traceback" not in said
    return said.splitlines()


# ---- stdout ------------------------------------------------------------------------------------------------------


@needs_full_device
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("env",), "The result cannot be written to stdout: No space left on device."),
        (("--help",), "The output cannot be written: No space left on device."),
    ],
)
def test_a_full_disk_behind_stdout_is_one_error(arguments, said):
    with Path("/dev/full").open("w") as full:
        done = hubprune(*arguments, out=full)
    assert done.returncode == 1
    assert errors(done)[0] == f"error: {said}"


def test_a_terminal_that_knows_ascii_alone_shows_every_help():
    done = hubprune("publish", "--help", PYTHONIOENCODING="ascii")
    assert (done.returncode, errors(done)) == (0, [])
    assert b"Score, prune, verify" in done.stdout


def test_what_an_encoding_lacks_is_written_as_json_reads_it_back(capfdbinary, monkeypatch):
    with os.fdopen(os.dup(1), "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.prepare_streams()
        stream.write("\u2212 \U0001f600 \udcff")
    assert capfdbinary.readouterr().out == rb"\u2212 \ud83d\ude00 \udcff"


# ---- arguments and folders ---------------------------------------------------------------------------------------


def test_an_argument_that_is_no_text_is_refused_before_anything_is_computed():
    done = hubprune("prune", "acme/base", "--attn-drop", "1", "--out", b"out/\xff")
    assert done.returncode == 2
    assert errors(done)[0] == "error: The argument 'out/\\udcff' is not UTF-8."


@pytest.mark.parametrize(("name", "where"), [("HUBPRUNE_HOME", "HUBPRUNE_HOME"), ("cwd", "The working directory")])
def test_so_is_a_folder(tmp_path, monkeypatch, name, where):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    Path(folder).mkdir()
    if name == "cwd":
        monkeypatch.chdir(folder)
    else:
        monkeypatch.setenv(name, folder)
    with pytest.raises(RecipeError, match=f"{where} .* is not UTF-8"):
        terminal.check_texts([])


def test_a_user_without_a_home_is_told_to_set_one():
    done = hubprune("env", code=("-c", NO_HOME))
    assert (done.returncode, errors(done)[0]) == (2, "error: This user has no home folder to keep results in.")


@pytest.mark.parametrize("name", ["~nouser/x", "a" * 5000, "/" + "a" * 5000, "a/" + "b" * 300, "x\0y"])
@pytest.mark.parametrize("command", ["base", "pruned", "published", "exported"])
def test_a_name_that_no_folder_can_have_is_told_so(name, command, monkeypatch):
    from hubprune.core.console import Reporter
    from hubprune.core.recipe import BaseModelSpec
    from hubprune.hub.repos import resolve_base
    from hubprune.hub.session import HubSession
    from hubprune.workflows.export import _find
    from hubprune.workflows.reproduce.comparing import read_published
    from hubprune.workflows.verify import find_pruned

    monkeypatch.setattr("time.sleep", lambda _: None)  # between tries to reach a Hub that is not there
    session, reporter = HubSession.open(endpoint="http://127.0.0.1:9", token="hf_x"), Reporter(quiet=True)
    find = {
        "base": lambda: resolve_base(BaseModelSpec(repo_id=name), session=session),
        "pruned": lambda: find_pruned(name, revision=None, session=session, reporter=reporter),
        "published": lambda: read_published(name, revision=None, session=session, reporter=reporter),
        "exported": lambda: _find(name, "main", session, reporter),
    }[command]
    with pytest.raises(BaseNotFoundError, match=r"is neither a folder nor a repo id|is no repo id"):
        find()


# ---- environment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://x:99999999", "http://x:0", "ftp://x", "http://a b", "http://a\nb", "http://"]
)
def test_an_address_that_is_none_is_refused(monkeypatch, address):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(RecipeError, match="is no address of a Hub"):
        privacy.use_endpoint(address)


@pytest.mark.parametrize("token", ["hf_é", "hf_a b", "hf_\x07", "hf_\udcff"])
def test_a_token_that_no_header_can_hold_is_refused(token):
    from hubprune.hub.session import HubSession

    with pytest.raises(AuthenticationError, match="holds characters that no token has") as caught:
        HubSession.open(endpoint="http://127.0.0.1:9", token=token)
    assert token not in str(caught.value)


def test_variables_that_the_client_cannot_start_with_are_one_error():
    done = hubprune("score", "acme/x", HF_HUB_DOWNLOAD_TIMEOUT="soon", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert errors(done)[0].startswith("error: The client of the Hub cannot start in this environment: ")


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EISDIR, errno.EIO, errno.EROFS])
def test_what_the_system_refuses_is_one_error_with_the_file(number, capsys):
    with pytest.raises(typer.Exit), terminal.errors_shown():
        raise OSError(number, os.strerror(number), "folder/file")
    assert capsys.readouterr().err.splitlines()[0] == f"error: {os.strerror(number)}: folder/file."


def test_a_file_that_a_bug_does_not_find_keeps_its_traceback():
    with pytest.raises(FileNotFoundError), terminal.errors_shown():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")
