"""`hubprune compare` of folders and of repos at revisions."""

import json

import pytest
from little import BASE, SMALL


@pytest.mark.slow
def test_folders_and_repos_are_compared_through_the_command_line(hubprune, base_folder):
    *done, ended = hubprune.each(
        ("prune", base_folder, "--attn-layers", "1,3", "--out", "a"),
        ("prune", base_folder, "--attn-layers", "1", "--mlp-layers", "2", "--out", "b"),
        ("compare", "a", "b", "--json"),
    )
    assert [d.code for d in (*done, ended)] == [0, 0, 0], ended.err
    seen = json.loads(ended.out)
    assert [(d["both"], d["only_first"], d["only_second"]) for d in seen["dropped"]] == [([1], [3], []), ([], [], [2])]
    attention, mlp = 32 * 32 * 2 + 2 * 32 * 16 + 32, 3 * 32 * 48 + 32
    assert seen["second"]["parameters"] - seen["first"]["parameters"] == attention - mlp
    assert seen["second"]["kv_bytes_per_token"] == 1.5 * seen["first"]["kv_bytes_per_token"]

    targets = [("--attn-drop", count, "--repo-id", f"local/compared-{count}") for count in (1, 2)]
    *done, ended = hubprune.each(
        *(("publish", BASE, *SMALL, *target) for target in targets),
        ("compare", "local/compared-1", "local/compared-2@main", "--json"),
    )
    assert [d.code for d in (*done, ended)] == [0, 0, 0], [d.err for d in done]
    seen = json.loads(ended.out)
    assert (seen["base"], len(seen["dropped"][0]["both"]), len(seen["dropped"][0]["only_second"])) == ("same", 1, 1)
    assert [a["spearman"] for a in seen["agreements"]] == [1, 1, 1]
    assert [pair["task"] for pair in seen["benchmarks"]] == ["little"]
