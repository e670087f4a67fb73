"""Collections on the local Hub, through the real client."""

import pytest
from huggingface_hub.errors import HfHubHTTPError


def test_a_collection_is_made_once_and_holds_each_repo_once(api, repo):
    made = api.create_collection("Pruned models", namespace="acme", description="small ones")
    assert made.slug.startswith("acme/pruned-models-")
    assert api.create_collection("Pruned models", namespace="acme", exists_ok=True).slug == made.slug
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_collection("Pruned models", namespace="acme")

    api.add_collection_item(made.slug, repo, "model", note="the first")
    again = api.add_collection_item(made.slug, repo, "model", exists_ok=True)
    assert [(item.item_id, item.note) for item in again.items] == [(repo, "the first")]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.add_collection_item(made.slug, repo, "model")
    assert [c.slug for c in api.list_collections(owner="acme") if c.title == "Pruned models"] == [made.slug]
    assert [item.item_id for item in api.get_collection(made.slug).items] == [repo]


def test_others_neither_change_a_collection_nor_see_a_private_one(api, repo, local_hub):
    from huggingface_hub import HfApi

    stranger = HfApi(endpoint=local_hub.endpoint, token=local_hub.add_user("stranger"))
    public = api.create_collection("For all", namespace="acme")
    private = api.create_collection("For few", namespace="acme", private=True)
    assert stranger.get_collection(public.slug).title == "For all"
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.add_collection_item(public.slug, repo, "model")
    with pytest.raises(HfHubHTTPError, match="404"):
        stranger.get_collection(private.slug)
    assert "For few" not in {c.title for c in stranger.list_collections(owner="acme")}
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.create_collection("Mine", namespace="acme")


def test_what_does_not_exist_cannot_be_collected(api):
    slug = api.create_collection("Nothing", namespace="acme").slug
    with pytest.raises(HfHubHTTPError, match="404"):
        api.add_collection_item(slug, "acme/absent", "model")
    with pytest.raises(HfHubHTTPError, match="1 to 60 characters"):
        api.create_collection(" ", namespace="acme")
