"""What can refuse a publish refuses it before any compute."""

from __future__ import annotations

from collections import namedtuple

import pytest
from on_hub import BASE_FILES, BASE_ID, commit_files

from hubprune.core.artifacts import BaseCard
from hubprune.core.errors import (
    AuthenticationError,
    ConflictError,
    DiskSpaceError,
    PermissionDeniedError,
    RecipeError,
)
from hubprune.core.recipe import BaseModelSpec, DropSpec, TargetSpec, parse
from hubprune.hub import preflight as module
from hubprune.hub.preflight import check_disk, preflight
from hubprune.hub.repos import resolve_base
from hubprune.hub.session import HubSession

pytestmark = pytest.mark.usefixtures("base_repo")


@pytest.fixture
def base(session):
    return resolve_base(BaseModelSpec(repo_id=BASE_ID), session=session)


@pytest.fixture
def to(recipe):
    """The recipe with another target."""
    return lambda **target: recipe.model_copy(update={"target": TargetSpec(**target)})


def writes(hub):
    harmless = ("/api/validate-yaml", "/paths-info/")
    return [r.line for r in hub.log if r.method not in ("GET", "HEAD") and not any(h in r.path for h in harmless)]


def test_a_new_target_gets_the_default_name_in_the_users_namespace(hub, user, session, base, recipe):
    hub.clear_log()
    target = preflight(recipe, base=base, session=session)
    assert (target.repo_id, target.exists, target.parent) == (f"{user[0]}/Llama-Tiny-attn-drop-3", False, None)
    assert writes(hub) == []


def test_a_bare_name_goes_to_the_users_namespace(user, session, base, to):
    assert preflight(to(repo_id="tiny"), base=base, session=session).repo_id == f"{user[0]}/tiny"


def test_an_existing_target_is_seen_with_its_head(admin, session, base, to):
    admin.create_repo("acme/seen")
    head = commit_files(admin, "acme/seen", {"a.txt": b"a"})
    target = preflight(to(repo_id="acme/seen"), base=base, session=session)
    assert (target.exists, target.parent, target.branch_exists) == (True, head, True)
    other = preflight(to(repo_id="acme/seen", revision="next"), base=base, session=session)
    assert (other.parent, other.branch_exists) == (head, False)


def test_no_token_is_refused_with_the_way_to_get_one(hub, base, recipe):
    with pytest.raises(AuthenticationError, match=r"hf auth login.*HF_TOKEN"):
        preflight(recipe, base=base, session=HubSession.open(endpoint=hub.endpoint))


def test_an_expired_token_is_refused(hub, base, recipe):
    token = hub.add_user("expired", expired=True)
    with pytest.raises(AuthenticationError, match="expired"):
        preflight(recipe, base=base, session=HubSession.open(endpoint=hub.endpoint, token=token))


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_token_is_refused_whether_the_repo_exists_or_not(hub, admin, base, to, exists):
    name = f"reader-{exists}".lower()
    token = hub.add_user(name, role="read")
    if exists:
        admin.create_repo(f"{name}/model")
    with pytest.raises(PermissionDeniedError, match=f"token of {name}"):
        preflight(to(repo_id=f"{name}/model"), base=base, session=HubSession.open(endpoint=hub.endpoint, token=token))


@pytest.mark.parametrize("exists", [False, True])
def test_a_foreign_namespace_is_refused_whether_the_repo_exists_or_not(admin, session, base, to, exists):
    if exists:
        admin.create_repo("strangers/model")
    repo_id = "strangers/model" if exists else "strangers/nothing"
    with pytest.raises(PermissionDeniedError, match=repo_id):
        preflight(to(repo_id=repo_id), base=base, session=session)


def test_a_fine_grained_token_may_write_only_where_it_says(hub, admin, base, to):
    admin.create_repo("fine/model")
    token = hub.add_user("fine", role="fineGrained", writable=["fine/model"])
    fine = HubSession.open(endpoint=hub.endpoint, token=token)
    assert preflight(to(repo_id="fine/model"), base=base, session=fine).exists
    with pytest.raises(PermissionDeniedError, match="may not create repos in fine"):
        preflight(to(repo_id="fine/other"), base=base, session=fine)


def test_a_pull_request_needs_no_write_access_but_a_repo(admin, session, base, to):
    admin.create_repo("strangers/open")
    assert preflight(to(repo_id="strangers/open", create_pr=True), base=base, session=session).create_pr
    with pytest.raises(PermissionDeniedError, match="to open a pull request on"):
        preflight(to(repo_id="strangers/none", create_pr=True), base=base, session=session)


def test_a_card_that_was_written_by_hand_stops_before_compute(admin, session, base, to):
    admin.create_repo("acme/handmade")
    commit_files(admin, "acme/handmade", {"README.md": b"---\nlicense: mit\n---\n# Mine"})
    with pytest.raises(ConflictError, match=r"not written by hubprune.*--overwrite-card"):
        preflight(to(repo_id="acme/handmade"), base=base, session=session)
    assert preflight(to(repo_id="acme/handmade"), base=base, session=session, overwrite="card").exists


def test_a_local_base_cannot_be_published(session, base, recipe):
    with pytest.raises(RecipeError, match="names its base on the Hub"):
        preflight(recipe, base=base.model_copy(update={"commit": None}), session=session)


def test_a_full_disk_is_seen_with_both_figures(monkeypatch, base, tmp_path):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(free=1000))
    uncached = base.model_copy(update={"name": "nobody/fetched-this"})
    with pytest.raises(DiskSpaceError, match=r"needs 840\.\d\d kB .* has 1\.00 kB free"):
        check_disk(uncached, folder=tmp_path / "not" / "yet")
    with pytest.raises(DiskSpaceError, match=r"needs 560\.\d\d kB"):
        check_disk(uncached.model_copy(update={"folder": str(tmp_path)}), folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "copies"),
    [({}, 2), ({"written": True}, 1), ({"loads_back": False}, 1), ({"written": True, "loads_back": False}, 0)],
)
def test_a_result_needs_room_to_be_written_and_to_be_loaded_back(monkeypatch, base, tmp_path, options, copies):
    downloaded = base.model_copy(update={"folder": str(tmp_path)})
    free = copies * len(BASE_FILES["model.safetensors"])
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(free=free))
    check_disk(downloaded, folder=tmp_path, **options)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(free=free - 1))
    if copies:
        with pytest.raises(DiskSpaceError):
            check_disk(downloaded, folder=tmp_path, **options)


def test_metadata_that_the_hub_refuses_is_refused_early(hub, monkeypatch, session, base, recipe):
    monkeypatch.setattr(module, "skeleton", lambda *a, **k: "---\nlicense: [\n---\n")
    with pytest.raises(RecipeError, match="refuses the card's metadata"):
        preflight(recipe, base=base, session=session)


def test_the_skeleton_is_metadata_that_the_hub_accepts(hub, session, base, recipe):
    hub.clear_log()
    preflight(recipe, base=base, session=session)
    assert [r.status for r in hub.log if "validate-yaml" in r.path] == [200]


def test_libraries_that_talk_to_different_hubs_are_refused(monkeypatch, session, base, recipe):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://elsewhere.example")
    with pytest.raises(RecipeError, match=r"different Hubs.*https://elsewhere\.example.*before the program starts"):
        preflight(recipe, base=base, session=session)


def test_a_namespace_and_a_name_may_each_be_as_long_as_the_hub_allows(user, session, base, to):
    assert preflight(to(repo_id="x" * 96), base=base, session=session).repo_id == f"{user[0]}/{'x' * 96}"
    assert TargetSpec(repo_id=f"{'n' * 96}/{'x' * 96}")
    for repo_id in ("x" * 97, f"me/{'x' * 97}", f"{'x' * 97}/y"):
        with pytest.raises(RecipeError, match=r"The name x{97} has 97 characters, and the Hub allows 96"):
            parse(TargetSpec, {"repo_id": repo_id})


def test_a_name_that_is_derived_and_too_long_is_refused_with_the_option_for_another(session, base, recipe, user):
    long = recipe.model_copy(update={"base": BaseModelSpec(repo_id=f"acme/{'b' * 96}")})
    with pytest.raises(RecipeError, match=r"would be called b{96}-attn-drop-3, which has 108 characters") as caught:
        preflight(long, base=base, session=session)
    assert "--repo-id" in caught.value.hint


def test_a_name_under_which_nobody_could_load_a_modeling_file_is_refused(user, session, base, to, recipe):
    assert preflight(to(repo_id="a-" * 28 + "b"), base=base, session=session)  # 28 times _hyphen_, and 29 letters
    long = TargetSpec(repo_id="a-" * 28 + "bcdefg")
    with pytest.raises(RecipeError, match=r"each hyphen as _hyphen_ .* makes 258 characters") as caught:
        preflight(recipe.model_copy(update={"target": long}), base=base, session=session)
    assert "--repo-id" in caught.value.hint
    blocks = {"drop": DropSpec(block_drop=1), "target": long}
    assert preflight(recipe.model_copy(update=blocks), base=base, session=session)


# ---- who may see it ----------------------------------------------------------------------------------------------


def test_what_is_to_be_private_never_goes_to_a_public_repo(hub, admin, session, base, to):
    admin.create_repo("acme/in-public")
    with pytest.raises(RecipeError, match=rf"is public, and --private was .*{hub.endpoint}/acme/in-public/set"):
        preflight(to(repo_id="acme/in-public", private=True), base=base, session=session)
    with pytest.raises(RecipeError, match="is public"):
        preflight(to(repo_id="acme/in-public", private=True, create_pr=True), base=base, session=session)
    admin.create_repo("acme/hidden", private=True)
    assert preflight(to(repo_id="acme/hidden", private=True), base=base, session=session).private


def test_what_is_made_of_a_private_base_stays_private(admin, session, base, to):
    hidden = base.model_copy(update={"private": True})
    admin.create_repo("acme/shown")
    admin.create_repo("acme/kept-back", private=True)
    with pytest.raises(RecipeError, match=rf"would be public, and the base {BASE_ID} is private\. Pass --private"):
        preflight(to(repo_id="acme/not-there"), base=hidden, session=session)
    with pytest.raises(RecipeError, match=rf"is public, and the base {BASE_ID} is private"):
        preflight(to(repo_id="acme/shown"), base=hidden, session=session)
    assert preflight(to(repo_id="acme/not-there", private=True), base=hidden, session=session).private
    assert preflight(to(repo_id="acme/kept-back"), base=hidden, session=session).private


# ---- which branch ------------------------------------------------------------------------------------------------


def test_a_tag_or_a_commit_is_no_place_for_a_result(admin, session, base, to):
    admin.create_repo("acme/tagged")
    head = commit_files(admin, "acme/tagged", {"a.txt": b"a"})
    admin.create_tag("acme/tagged", tag="v1")
    admin.create_branch("acme/tagged", branch="deadbeef")
    for revision, why in (("v1", "is a tag"), (head, "id of a commit"), (head[:7], "id of a commit")):
        with pytest.raises(RecipeError, match=rf"'{revision}' {'' if why[:2] == 'is' else '.*'}{why}.*--revision"):
            preflight(to(repo_id="acme/tagged", revision=revision), base=base, session=session)
    assert preflight(to(repo_id="acme/tagged", revision="deadbeef"), base=base, session=session).branch_exists


@pytest.mark.parametrize("name", ["a b", "a..b", "-a", "a.lock", "a/", "refs/pr/1", "a@{1}", "a~1", "é"])
def test_what_git_takes_for_no_branch_is_refused_before_compute(session, base, to, name):
    with pytest.raises(RecipeError, match="cannot be the name of one"):
        preflight(to(repo_id="acme/not-there", revision=name), base=base, session=session)


@pytest.mark.parametrize("name", ["next", "exp/attn-drop_3", "v1.0", "a"])
def test_ordinary_names_of_branches_are_taken(session, base, to, name):
    assert preflight(to(repo_id="acme/not-there", revision=name), base=base, session=session).revision == name


# ---- the name that the licence asks for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("tiny", "Llama-tiny"),
        ("my-llama", "Llama-my-llama"),
        ("Meta-Llama-3.1-8B-attn-drop-3", "Llama-3.1-8B-attn-drop-3"),
    ],
)
def test_a_name_that_the_licence_does_not_allow_is_refused_with_one_that_it_does(session, base, to, name, allowed):
    llama = base.model_copy(update={"card": BaseCard(license="other", license_name="llama3.1")})
    with pytest.raises(RecipeError, match=rf"llama3\.1, '{name}' .* Pass --repo-id acme/{allowed}, for"):
        preflight(to(repo_id=f"acme/{name}"), base=llama, session=session)
    assert preflight(to(repo_id=f"acme/{allowed}"), base=llama, session=session).repo_id == f"acme/{allowed}"


@pytest.mark.parametrize("licence", ["apache-2.0", "llama2", "gemma", None])
def test_other_licences_leave_the_name_free(session, base, to, licence):
    free = base.model_copy(update={"card": BaseCard(license=licence)})
    assert preflight(to(repo_id="acme/tiny"), base=free, session=session).repo_id == "acme/tiny"


def test_upper_and_lower_case_of_the_name_count_as_the_same(session, base, to):
    llama = base.model_copy(update={"card": BaseCard(license="llama3.2")})
    assert preflight(to(repo_id="acme/llama-tiny"), base=llama, session=session).repo_id == "acme/llama-tiny"


def test_llama_3_asks_for_its_number_and_the_default_name_has_it(session, base, to, recipe):
    llama = base.model_copy(update={"card": BaseCard(license="llama3")})
    with pytest.raises(RecipeError, match=r"has to begin with 'Llama 3'\. Pass --repo-id acme/Llama-3-Llama-tiny, for"):
        preflight(to(repo_id="acme/Llama-tiny"), base=llama, session=session)
    meta = recipe.model_copy(update={"base": BaseModelSpec(repo_id="meta-llama/Meta-Llama-3-8B")})
    assert preflight(meta, base=llama, session=session).repo_id.endswith("/Llama-3-8B-attn-drop-3")


def test_a_user_can_answer_for_a_name(session, base, to):
    llama = base.model_copy(update={"card": BaseCard(license="llama3.2")})
    assert preflight(to(repo_id="acme/tiny", allow_name=True), base=llama, session=session).repo_id == "acme/tiny"


def test_a_licence_can_be_given_only_where_the_card_of_the_base_names_none(session, base, to):
    named = base.model_copy(update={"card": BaseCard(license="apache-2.0")})
    with pytest.raises(RecipeError, match=r"--license mit is not the licence of .*, whose card says apache-2\.0"):
        preflight(to(license="mit"), base=named, session=session)
    assert preflight(to(license="apache-2.0"), base=named, session=session)
    bare = base.model_copy(update={"card": BaseCard()})
    assert preflight(to(license="mit"), base=bare, session=session)
    with pytest.raises(RecipeError, match="has to begin with 'Llama'"):
        preflight(to(license="llama3.2", repo_id="acme/tiny"), base=bare, session=session)
