"""What each licence asks for is on the card and among the files, to the letter."""

from __future__ import annotations

import made
import pytest
from card_text import card, split

from hubprune.cards import provenance as terms
from hubprune.core.artifacts import BaseCard, RepoFile
from hubprune.core.recipe import TargetSpec

LLAMA = (
    "Llama {0} is licensed under the Llama {0} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)
NOTICES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights"
    " Reserved.",
    "llama3": "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, Inc. All"
    " Rights Reserved.",
    **{f"llama{version}": LLAMA.format(version) for version in ("3.1", "3.2", "3.3", "4")},
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    "apache-2.0": None,
    "mit": None,
    "cc-by-4.0": None,
}
LINES = {
    "llama3": "Built with Meta Llama 3",
    **dict.fromkeys(("llama3.1", "llama3.2", "llama3.3", "llama4"), "Built with Llama"),
}
PREFIXES = {"llama3": "Llama 3", **dict.fromkeys(("llama3.1", "llama3.2", "llama3.3", "llama4"), "Llama")}


def licensed(name, *files, **changes):
    held = (*made.base().files, *(RepoFile(path=path, size=1) for path in files))
    return made.base(card=BaseCard(license=name), files=held, **changes)


def legal(text):
    """The licence section without Markdown's escapes."""
    return text.split("## Licence and attribution")[1].split("## Citation")[0].replace("\\", "")


@pytest.mark.parametrize("name", NOTICES)
def test_notice_line_and_name_are_those_of_the_licence(name, tmp_path):
    base = BaseCard(license=name)
    assert terms.notice_text(base) == NOTICES[name]
    assert terms.attribution_line(base) == LINES.get(name)
    terms.add_notice(tmp_path, card=base)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert written == ({"NOTICE": f"{NOTICES[name]}\n"} if NOTICES[name] else {})
    text = card(base=licensed(name))
    assert (NOTICES[name] or "The licence of the base applies") in legal(text)
    assert (f"\n**{LINES[name]}**\n" in text) if name in LINES else "Built with" not in text
    if prefix := PREFIXES.get(name):
        with pytest.raises(terms.RecipeError, match=f"has to begin with '{prefix}'"):
            terms.check_name("tiny", card=base)
    else:
        terms.check_name("tiny", card=base)


@pytest.mark.parametrize("name", NOTICES)
def test_the_card_says_that_files_were_changed_and_where_the_terms_are(name):
    text = legal(card(base=licensed(name, "LICENSE.txt", "USE_POLICY.md", "original/LICENSE", "NOTICE a.md")))
    assert "The files of meta-llama/Llama-3.2-3B were changed: sublayers were removed" in text
    assert f"({name})" in text or f"applies: {name}." in text
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- [LICENSE.txt](LICENSE.txt)", "- [NOTICE a.md](NOTICE%20a.md)", "- [USE_POLICY.md](USE_POLICY.md)"
    ]  # fmt: skip
    assert "holds none that could be copied" not in text


def test_a_text_that_the_licence_wants_and_the_base_lacks_is_said_to_be_missing():
    assert "holds none that could be copied" in legal(card(base=licensed("apache-2.0")))
    assert "holds none that could be copied" not in legal(card(base=licensed("cc-by-4.0")))


def test_a_notice_of_the_base_stays_and_the_line_is_added_beside_it(tmp_path):
    (tmp_path / "NOTICE").write_text("Somebody's notice\n")
    terms.add_notice(tmp_path, card=BaseCard(license="llama3.2"))
    assert (tmp_path / "NOTICE").read_text() == "Somebody's notice\n"
    assert (tmp_path / "NOTICE.base-licence").read_text(encoding="utf-8") == f"{NOTICES['llama3.2']}\n"
    terms.add_notice(tmp_path, card=BaseCard(license="llama3.2"))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("unknown", [BaseCard(), BaseCard(license="unknown"), BaseCard(license="")])
def test_no_licence_is_a_warning_on_top_and_no_guess(unknown):
    text = card(base=made.base(card=unknown))
    assert "> **Warning:** the card of the base names no licence. Find out what" in text.split("## At a glance")[0]
    assert "names no licence, so none is given here" in legal(text)


def test_a_licence_by_the_publisher_is_said_to_be_one():
    recipe = made.recipe(target=TargetSpec(license="llama3.2"))
    text = card(base=made.base(card=BaseCard()), recipe=recipe)
    assert "> **Warning:** the card of the base names no licence; llama3.2 was given by whoever published" in text
    assert "whoever published this model gave this one: Llama 3.2 Community License" in legal(text)
    assert split(text)[0]["license"] == "llama3.2"
    assert "**Built with Llama**" in text
    assert "--license llama3.2" in text


def test_what_the_bases_card_says_wins():
    text = card(base=licensed("mit"), recipe=made.recipe(target=TargetSpec(license="mit")))
    assert "**Warning:**" not in text
    assert "The licence of the base applies: MIT License (mit)." in legal(text)


def test_a_name_that_was_allowed_all_the_same_is_told():
    said = "The licence asks for a name that begins with “Llama”, which this one does not."
    assert said in legal(card(repo_id="me/tiny"))
    assert said not in legal(card())
