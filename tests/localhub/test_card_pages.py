"""The page of a card shows what the Hub would, and nothing that a card holds runs in it or reaches beyond loopback."""

from __future__ import annotations

import html
import os
import random
import re
import struct
import subprocess
import sys
import zlib

import pytest
from browser import CHROMIUM, browser
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from hubprune.cards.markdown import fence, md, visible
from hubprune.core.console import Reporter
from hubprune.core.errors import BaseNotFoundError
from hubprune.core.requests import CardRequest
from hubprune.localhub import Preview
from hubprune.localhub.cards import render
from hubprune.localhub.pages import build_preview
from hubprune.workflows.card import preview

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x30\x60\x90" * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


GOOD = """---
license: llama3.2
language: [en, de]
library_name: transformers
base_model: meta-llama/Llama-3.2-3B
datasets: [HuggingFaceTB/cosmopedia]
tags: [hubprune, pruned]
model-index:
- name: m
  results:
  - task: {type: text-generation}
    dataset: {name: arc_easy, type: allenai/ai2_arc}
    metrics: [{type: accuracy, value: 0.7104, name: acc_norm (0-shot)}]
---
# Pruned

| Task | Base | This model |
| --- | ---: | ---: |
| arc_easy | 0.7180 | 0.7104 |

![Bars of the scores](assets/importance.png)

```python
print("hello")
```

[The recipe](recipe.yaml)
"""
ATTACKS = (
    "<script>document.title = 'owned'; fetch('http://127.0.0.2:9/script')</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<img src='http://127.0.0.2:9/image.png'><svg onload=\"document.title='owned'\"></svg>",
    "![pixel](http://127.0.0.2:9/pixel.png)",
    "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "<style>@import 'http://127.0.0.2:9/style.css'; * { background: url(http://127.0.0.2:9/bg) }</style>",
    "<link rel=stylesheet href=http://127.0.0.2:9/link.css><base href=http://127.0.0.2:9/>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.2:9/refresh'>",
    "<form action=http://127.0.0.2:9/><input autofocus onfocus=\"document.title='owned'\"></form>",
    "<object data=http://127.0.0.2:9/object></object><embed src=http://127.0.0.2:9/embed>",
    "<picture><source srcset=http://127.0.0.2:9/source></picture><video autoplay src=http://127.0.0.2:9/v></video>",
    "[link](javascript:document.title='owned') <a href=\"javascript:document.title='owned'\">a</a>",
    "<details open ontoggle=\"document.title='owned'\"><summary>x</summary></details>",
    "| a | b |\n| --- | --- |\n| <script>document.title='owned'</script> | <b onmouseover=x>b</b> |",
    "```\n</code></pre><script>document.title='owned'</script>\n```",
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">',
)
ACTIVE = (
    "document.querySelectorAll('script, iframe, object, embed, form, input, style, base, video, svg,"
    " meta[http-equiv]').length"
)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    (made / "assets").mkdir(parents=True)
    (made / "README.md").write_text(GOOD, encoding="utf-8")
    (made / "recipe.yaml").write_text("<script>seed: 0</script>\n")
    (made / "assets" / "importance.png").write_bytes(png(40, 20))
    return made


@pytest.fixture
def page(folder):
    """Ask the preview of the folder."""
    return TestClient(
        build_preview(Preview(title="me/model", subtitle="here", folder=folder)), base_url="http://127.0.0.1"
    )


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def address(folder):
    """The address that `hubprune card --preview --no-open` prints."""
    command = [sys.executable, "-m", "hubprune", "card", str(folder), "--preview", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield process.stdout.readline().strip()
        process.terminate()
        assert process.wait(30) == 0


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_table_picture_code_and_panel_at_any_width(chromium, address, width, scheme):
    chromium.look(width, scheme=scheme)
    chromium.open(address)
    assert chromium.run("document.title") == "model"
    assert chromium.run("[...document.querySelectorAll('.card td')].map(cell => cell.innerText)") == [
        "arc_easy", "0.7180", "0.7104"
    ]  # fmt: skip
    assert chromium.run("getComputedStyle(document.querySelectorAll('.card td')[1]).textAlign").endswith("right")
    assert chromium.run("document.querySelector('.card img').naturalWidth") == 40
    assert chromium.run("document.querySelector('pre .nb').innerText") == "print"
    panel = chromium.run("document.querySelector('aside').innerText")
    for text in ("llama3.2", "en", "de", "meta-llama/Llama-3.2-3B", "hubprune", "arc_easy", "0.7104"):
        assert text in panel
    assert chromium.run("document.documentElement.scrollWidth") <= width
    bright = chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert bright == (scheme == "light")
    assert all(url.startswith(address) for url in chromium.requests)


@needs_chromium
def test_a_hostile_card_runs_nothing_and_asks_nobody(chromium, address, folder):
    matter = (
        "---\ntags: ['<script>document.title=1</script>']\nlicense: '\"><img src=x onerror=document.title=1>'\n---\n"
    )
    (folder / "README.md").write_text(matter + "\n\n".join(ATTACKS), encoding="utf-8")
    chromium.look(1280)
    chromium.open(address)
    assert chromium.run("document.title") == "model"
    assert chromium.run(ACTIVE) == 0
    handlers = (
        "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => /^on|^style$/.test(n))"
    )
    assert chromium.run(handlers) == []
    assert [url for url in chromium.requests if not url.startswith(address)] == []
    chromium.open(f"{address}/file/recipe.yaml")
    assert chromium.run("document.scripts.length") == 0


@needs_chromium
def test_even_what_is_not_sanitised_cannot_run(chromium, address, folder):
    """The policy of the page alone holds, should the sanitiser ever let something through."""
    policy = TestClient(
        build_preview(Preview(title="x", subtitle="x", folder=folder)), base_url="http://127.0.0.1"
    ).get("/").headers["content-security-policy"]  # fmt: skip
    chromium.open(address)
    chromium.run("document.querySelector('.card').innerHTML = '<img src=x onerror=\"document.title = 1\">'; 1")
    chromium.run("new Promise(done => setTimeout(done, 150))")
    assert chromium.run("document.title") == "model"
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


@settings(max_examples=300)
@given(st.lists(st.one_of(st.sampled_from(ATTACKS), st.text(max_size=30)), max_size=5))
def test_no_text_becomes_markup_that_does_something(pieces):
    made = render("".join(pieces), address_of=lambda path: f"/file/{path}")
    tags = re.findall(r"<\s*([a-zA-Z]+)([^>]*)>", made)
    assert not {tag.lower() for tag, _ in tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "style",
        "base",
        "meta",
    }
    for _, attributes in tags:
        outside = re.sub(r'"[^"]*"', '""', attributes)
        assert not re.search(r"\bon\w+\s*=|style\s*=", outside), made
        assert not re.search(r'(src|srcset)="(?!/file/)', attributes), made
        assert not re.search(r'href="\s*javascript', html.unescape(attributes), re.IGNORECASE), made


def test_links_lead_to_the_files_of_the_repo_and_pictures_never_elsewhere():
    made = render(
        "[a](recipe.yaml#x) [b](#b) [c](https://example.org) ![d](./assets/d%20e.png) ![f](../f.png) ![g](//h/g.png)",
        address_of=lambda path: f"/file/{path}",
    )
    assert re.findall(r'(?:href|src)="([^"]*)"', made) == [
        "/file/recipe.yaml", "#b", "https://example.org", "/file/assets/d e.png"
    ]  # fmt: skip


def test_files_are_listed_and_sent_as_what_they_are(page, folder):
    listing = page.get("/files").text
    assert [name in listing for name in ("README.md", "recipe.yaml", "assets/importance.png")] == [True] * 3
    assert page.get("/file/assets/importance.png").headers["content-type"] == "image/png"
    assert page.get("/file/recipe.yaml").headers["content-type"].startswith("text/plain")
    assert "sandbox" in page.get("/file/recipe.yaml").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["../secret", "%2e%2e/secret", "..%2fsecret", "/etc/passwd", "a%00b", "link", "assets"]
)
def test_no_address_leads_out_of_the_folder(page, folder, path):
    (folder.parent / "secret").write_text("secret")
    (folder / "link").symlink_to(folder.parent / "secret")
    assert page.get(f"/file/{path}").status_code == 404


def test_another_name_for_this_machine_is_turned_away(page):
    assert page.get("/", headers={"Host": "rebound.example.org"}).status_code == 400


def test_front_matter_that_cannot_be_read_is_told(page, folder):
    (folder / "README.md").write_text("---\na: [\n---\n# Still there\n")
    text = page.get("/").text
    assert "The front matter cannot be read." in text
    assert "Still there</h1>" in text


def test_of_a_repo_only_the_card_and_its_pictures_are_fetched(local_hub, api, repo, tmp_path, monkeypatch):
    from huggingface_hub import CommitOperationAdd, constants

    from hubprune.hub.session import HubSession

    files = {"README.md": GOOD.encode(), "assets/importance.png": png(4, 4), "config.json": b"{}", "w.bin": b"\0" * 999}
    api.create_commit(repo, [CommitOperationAdd(path, data) for path, data in files.items()], commit_message="Add")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    session = HubSession(endpoint=local_hub.endpoint, given_token=local_hub.token)
    shown = preview(CardRequest(repo), session=session, reporter=Reporter(quiet=True))
    client = TestClient(build_preview(shown), base_url="http://127.0.0.1")
    assert "0.7104" in client.get("/").text
    assert client.get("/file/assets/importance.png").content == files["assets/importance.png"]
    assert client.get("/file/w.bin").status_code == 404
    assert "w.bin" in client.get("/files").text


@pytest.mark.parametrize("name", ["no/such/thing", "a b"])
def test_what_is_neither_a_folder_nor_a_repo_is_named(name):
    with pytest.raises(BaseNotFoundError, match="neither a folder nor a repo id"):
        preview(CardRequest(name), reporter=Reporter(quiet=True))


def test_a_folder_without_a_card_says_how_to_get_one(tmp_path):
    with pytest.raises(BaseNotFoundError, match=r"holds no README\.md.*hubprune card "):
        preview(CardRequest(str(tmp_path)), reporter=Reporter(quiet=True))


def hostile_strings(number, *, seed):
    """Strings of attacks, of what Markdown and HTML give a meaning to, and of letters that hide or turn text around."""
    pieces = (
        *ATTACKS,
        *"|`*_[]()<>&#!-+=~\\\"':;@^${}%\n\t \r\u202e\u200b\ufeff\x00aZ9é𝔘",
        "```",
        "-->",
        "]]>",
        "&lt;",
        "{{ 7*7 }}",
    )
    source = random.Random(seed)
    return ["".join(source.choices(pieces, k=source.randrange(1, 9))) for _ in range(number)]


@needs_chromium
def test_hostile_text_that_a_card_escapes_is_shown_as_that_text(chromium, address, folder):
    """What a card's filters make of a string is, in a browser, one cell and one code block with just that string."""
    texts = hostile_strings(int(os.environ.get("HOSTILE_STRINGS", "300")), seed=0)
    for start in range(0, len(texts), 1000):
        part = texts[start : start + 1000]
        rows = "".join(f"| {n} | {md(text)} |\n" for n, text in enumerate(part))
        fences = "\n\n".join(map(fence, part))
        (folder / "README.md").write_text(f"# x\n\n| n | text |\n| --- | --- |\n{rows}\n{fences}\n", encoding="utf-8")
        chromium.open(address)
        assert (chromium.run("document.title"), chromium.run(ACTIVE)) == ("model", 0)
        assert [url for url in chromium.requests if not url.startswith(address)] == []
        assert chromium.run("document.querySelectorAll('.card td *, .card pre code *, .card img').length") == 0
        cells = chromium.run("[...document.querySelectorAll('.card tbody tr')].map(row => row.cells[1].textContent)")
        assert cells == [visible(" ".join(text.split())).strip() for text in part]
        blocks = chromium.run("[...document.querySelectorAll('.card pre code')].map(code => code.textContent)")
        assert blocks == [visible(text.replace("\r\n", "\n"), keep="\n\t") + "\n" for text in part]


# ---- the pages of a hub ------------------------------------------------------------------------------------------


@pytest.fixture
def filled(api, repo):
    """A repo with a card, a picture and a large file; its id and commit."""
    from huggingface_hub import CommitOperationAdd

    files = {"README.md": GOOD.encode(), "assets/importance.png": png(40, 20), "w.safetensors": b"\0" * 999}
    adds = [CommitOperationAdd(path, data) for path, data in files.items()]
    title = "Publish <script>document.title='owned'</script>"
    return repo, api.create_commit(repo, adds, commit_message=title, commit_description="hubprune-run: 1").oid


@needs_chromium
def test_a_repo_of_the_hub_shows_its_card_its_files_and_its_commits(local_hub, chromium, filled):
    repo, commit = filled
    chromium.look(1280)
    chromium.open(local_hub.endpoint)
    assert repo in chromium.run("document.body.innerText")
    chromium.open(f"{local_hub.endpoint}/{repo}")
    assert chromium.run("document.title") == repo
    assert chromium.run("document.querySelector('.card img').naturalWidth") == 40
    assert "llama3.2" in chromium.run("document.querySelector('aside').innerText")
    tabs = chromium.run("[...document.querySelectorAll('nav a')].map(tab => [tab.innerText, tab.href])")
    assert [name for name, _ in tabs] == ["Card", "Files", "Commits", "Discussions"]
    chromium.open(tabs[1][1])
    rows = chromium.run("[...document.querySelectorAll('.list tr')].map(row => row.innerText)")
    assert [row.split("\t")[0] for row in rows] == [
        ".gitattributes", "README.md", "assets/importance.png", "w.safetensors"
    ]  # fmt: skip
    chromium.open(f"{local_hub.endpoint}/{repo}/commit/{commit}")
    text = chromium.run("document.querySelector('main').innerText")
    assert "Publish <script>document.title='owned'</script>" in text
    assert commit[:8] in text
    assert chromium.run("document.title") == repo
    assert all(url.startswith(local_hub.endpoint) for url in chromium.requests)


def test_a_private_repo_is_shown_to_nobody_without_a_token(api, raw, filled):
    repo, commit = filled
    api.update_repo_settings(repo, private=True)
    for path in ("", "/tree/main", "/commits/main", f"/commit/{commit}", "/media/main/README.md"):
        answer = raw("GET", f"/{repo}{path}")
        assert answer.status == 404
        assert b"There is no such repository" in answer.body
    assert repo.encode() not in raw("GET", "/").body


def test_a_gated_repo_shows_its_file_names_and_not_its_card(api, raw, filled):
    repo, _ = filled
    api.update_repo_settings(repo, gated="manual")
    assert raw("GET", f"/{repo}/tree/main").status == 200
    assert raw("GET", f"/{repo}").status == raw("GET", f"/{repo}/media/main/README.md").status == 401
    assert b"0.7104" not in raw("GET", f"/{repo}").body


def test_files_of_a_repo_are_sent_under_a_policy_that_forbids_everything(raw, filled):
    repo, commit = filled
    for path, kind in (("README.md", "text/plain"), ("assets/importance.png", "image/png")):
        answer = raw("GET", f"/{repo}/media/{commit}/{path}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].endswith("sandbox")
    for path in ("%2e%2e/x", "..%2fx", "missing.txt"):
        assert 400 <= raw("GET", f"/{repo}/media/{commit}/{path}").status < 500
