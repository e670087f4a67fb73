import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError


def client(hub, token):
    return HfApi(endpoint=hub.endpoint, token=token)


def status(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


@pytest.mark.parametrize("role", ["write", "read", "fineGrained"])
def test_whoami_names_the_user_the_organizations_and_the_role(local_hub, role):
    token = local_hub.add_user("alice", role=role, orgs=["acme", "labs"])
    who = client(local_hub, token).whoami()
    assert who["name"] == "alice"
    assert [org["name"] for org in who["orgs"]] == ["acme", "labs"]
    assert who["auth"]["accessToken"]["role"] == role


def test_the_admin_is_a_member_of_every_namespace_that_holds_something(local_hub, api, repo):
    assert repo.split("/")[0] in {org["name"] for org in api.whoami()["orgs"]}


@pytest.mark.parametrize("expired", [True, False])
def test_a_bad_token_is_turned_down_even_where_none_is_needed(local_hub, repo, expired):
    token = local_hub.add_user("alice", expired=True) if expired else "hf_unknown"
    assert client(local_hub, False).model_info(repo).id == repo
    with pytest.raises(HfHubHTTPError) as error:
        client(local_hub, token).model_info(repo)
    assert status(error) == 401
    assert not isinstance(error.value, RepositoryNotFoundError)


def test_repositories_are_created_in_own_namespaces_only(local_hub):
    alice = client(local_hub, local_hub.add_user("alice", orgs=["acme"]))
    assert alice.create_repo("named-after-nobody").repo_id == "alice/named-after-nobody"
    assert alice.create_repo("acme/of-the-organization", repo_type="dataset").repo_type == "dataset"
    with pytest.raises(HfHubHTTPError, match="rights to create a model") as error:
        alice.create_repo("bob/not-mine")
    assert status(error) == 403


def test_creating_twice_conflicts_unless_that_is_fine(api, repo):
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo)
    assert status(error) == 409
    assert api.create_repo(repo, exist_ok=True).repo_id == repo


def test_a_read_token_reads_and_does_not_write(local_hub, repo):
    reader = client(local_hub, local_hub.add_user("rita", role="read", orgs=["acme"]))
    assert reader.model_info(repo).id == repo
    reader.auth_check(repo)
    with pytest.raises(HfHubHTTPError) as error:
        reader.auth_check(repo, write=True)
    assert status(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        reader.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    assert status(error) == 403


def test_a_fine_grained_token_writes_to_its_repositories_only(local_hub, api, repo):
    token = local_hub.add_user("ci", role="fineGrained", writable=[repo])
    ci = client(local_hub, token)
    ci.auth_check(repo, write=True)
    ci.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    api.create_repo("acme/another", exist_ok=True)
    for forbidden in (lambda: ci.auth_check("acme/another", write=True), lambda: ci.create_repo("ci/new")):
        with pytest.raises(HfHubHTTPError) as error:
            forbidden()
        assert status(error) == 403
    with pytest.raises(HfHubHTTPError):
        ci.delete_repo(repo)


def test_a_fine_grained_token_creates_where_it_says_and_reads_gated_repos_if_it_says_so(local_hub, api, repo):
    api.update_repo_settings(repo, gated="manual")
    token = local_hub.add_user("fine", role="fineGrained", creatable=["fine"], granted=[repo], reads_gated=False)
    fine = client(local_hub, token)
    fine.create_repo("fine/new")
    fine.auth_check("fine/new", write=True)
    (scope,) = fine.whoami()["auth"]["accessToken"]["fineGrained"]["scoped"]
    assert scope["entity"] == {"type": "user", "name": "fine"}
    with pytest.raises(GatedRepoError, match="enable access to public gated repositories"):
        fine.auth_check(repo)
    client(local_hub, local_hub.add_user("fine", role="fineGrained", granted=[repo])).auth_check(repo)


def test_the_identity_of_a_trusted_publisher_is_exchanged_for_a_token_of_one_repo(local_hub, api, repo):
    from huggingface_hub._oidc import exchange_oidc_token

    api.update_repo_settings(repo, private=True)
    answer = exchange_oidc_token(subject_token=local_hub.trust(repo), resource=repo, endpoint=local_hub.endpoint)
    job = client(local_hub, answer["access_token"])
    assert (answer["access_token"][:7], answer["expires_in"]) == ("hf_jwt_", 3600)
    assert job.model_info(repo).private
    job.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    api.create_repo("acme/not-listed", exist_ok=True)
    for forbidden in (
        lambda: job.auth_check("acme/not-listed", write=True),
        lambda: job.create_repo("acme/new"),
        job.whoami,
    ):
        with pytest.raises(HfHubHTTPError):
            forbidden()


def test_an_identity_that_nobody_trusts_gets_no_token(local_hub, repo):
    from huggingface_hub._oidc import exchange_oidc_token

    with pytest.raises(HfHubHTTPError, match="invalid_grant"):
        exchange_oidc_token(subject_token=local_hub.trust(repo), resource="acme/x", endpoint=local_hub.endpoint)


def test_a_token_can_run_out(local_hub, repo):
    token = local_hub.add_user("alice")
    assert client(local_hub, token).whoami()["name"] == "alice"
    local_hub.expire(token)
    with pytest.raises(HfHubHTTPError) as error:
        client(local_hub, token).whoami()
    assert status(error) == 401


def test_a_private_repository_does_not_exist_for_strangers(local_hub, api, repo):
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    api.update_repo_settings(repo, private=True)
    member = client(local_hub, local_hub.add_user("member", role="read", orgs=["acme"]))
    assert member.model_info(repo).private
    for token in (False, local_hub.add_user("stranger")):
        stranger = client(local_hub, token)
        assert not stranger.repo_exists(repo)
        with pytest.raises(RepositoryNotFoundError):
            stranger.auth_check(repo)
        with pytest.raises(RepositoryNotFoundError):
            stranger.list_repo_files(repo)


def test_a_gated_repository_shows_its_names_and_keeps_its_content(local_hub, api, repo, tmp_path):
    api.upload_file(path_or_fileobj=b"secret", path_in_repo="a.txt", repo_id=repo)
    api.update_repo_settings(repo, gated="manual")
    granted = client(local_hub, local_hub.add_user("granted", granted=[repo]))
    assert granted.hf_hub_download(repo, "a.txt", local_dir=tmp_path)
    for token in (False, local_hub.add_user("stranger")):
        stranger = client(local_hub, token)
        assert stranger.model_info(repo).gated == "manual"
        with pytest.raises(GatedRepoError):
            stranger.auth_check(repo)
        with pytest.raises(GatedRepoError):
            stranger.hf_hub_download(repo, "a.txt", cache_dir=tmp_path / "cache")


def test_a_deleted_repository_is_gone_and_its_name_is_free(api, repo):
    api.delete_repo(repo)
    assert not api.repo_exists(repo)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(repo)
    api.create_repo(repo)
    assert api.repo_exists(repo)


def test_a_model_and_a_data_set_may_share_a_name(api, repo):
    api.create_repo(repo, repo_type="dataset")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="rows.txt", repo_id=repo, repo_type="dataset")
    assert api.list_repo_files(repo, repo_type="dataset") == [".gitattributes", "rows.txt"]
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_a_name_without_a_namespace_is_a_repository_that_does_not_exist(api, tmp_path):
    assert not api.repo_exists("gpt2")
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("gpt2", "config.json", cache_dir=tmp_path)
