"""`hubprune compare` of folders and of repos at revisions."""

import json


def test_folders_and_repos_are_compared_through_the_command_line(publish, hubprune, base_folder, files):
    for name, options in (("a", ["--drop-attn", "1,3"]), ("b", ["--drop-attn", "1", "--drop-mlp", "2"])):
        done = hubprune("prune", base_folder, *options, "--out", name)
        assert done.code == 0, done.err
    ended = hubprune("compare", "a", "b", "--json")
    assert ended.code == 0, ended.err
    seen = json.loads(ended.out)
    assert [(d["both"], d["only_first"], d["only_second"]) for d in seen["dropped"]] == [([1], [3], []), ([], [], [2])]
    attention, mlp = 32 * 32 * 2 + 2 * 32 * 16 + 32, 3 * 32 * 48 + 32
    assert seen["second"]["parameters"] - seen["first"]["parameters"] == attention - mlp
    assert seen["second"]["kv_bytes_per_token"] == 1.5 * seen["first"]["kv_bytes_per_token"]

    for count in (1, 2):
        done = publish("--attn-drop", count, "--repo-id", f"local/compared-{count}")
        assert done.code == 0, done.err
    ended = hubprune("compare", "local/compared-1", "local/compared-2@main", "--json")
    assert ended.code == 0, ended.err
    seen = json.loads(ended.out)
    assert (seen["base"], len(seen["dropped"][0]["both"]), len(seen["dropped"][0]["only_second"])) == ("same", 1, 1)
    assert [a["spearman"] for a in seen["agreements"]] == [1, 1, 1]
    assert [pair["task"] for pair in seen["benchmarks"]] == ["little"]
