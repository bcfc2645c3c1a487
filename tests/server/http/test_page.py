"""The page's files over HTTP, and what colors and addresses are in them."""

import re

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from sounding.server.http import page

FILES = sorted(path for path in page.FOLDER.iterdir() if path.is_file())


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=[Route(*served) for served in page.endpoints().items()]))


def test_files_are_served_as_what_they_are(client: TestClient) -> None:
    index = client.get("/")
    assert index.text == (page.FOLDER / "index.html").read_text()
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    script = client.get("/ui/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get("/ui/icon.svg").headers["content-type"] == "image/svg+xml"
    for path in ("/ui/", "/ui/nothing.js", "/ui/../page.py", "/ui/%2e%2e/page.py", "/app.js"):
        assert client.get(path).status_code == 404
    assert client.post("/").status_code == 405


@pytest.mark.parametrize("path", ["/", "/ui/style.css"])
def test_a_browser_keeps_what_has_not_changed(client: TestClient, path: str) -> None:
    first = client.get(path)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f'"other", W/{tag}'):
        again = client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_nothing_may_come_from_or_go_elsewhere(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == rules.pop("frame-ancestors") == "'none'"
    assert rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert set(rules.values()) == {"'self'"}
    assert client.get("/").headers["x-content-type-options"] == "nosniff"
    for path in FILES:
        addresses = re.findall(r"""(?:https?:)?//[\w-]+\.[\w.-]+""", path.read_text())
        assert set(addresses) <= {"http://www.w3.org"}, path  # the name of SVG


def test_what_the_page_loads_is_there(client: TestClient) -> None:
    loaded = re.findall(r'(?:src|href)="(/ui/[^"]+)"', client.get("/").text)
    for path in FILES:
        names = re.findall(r'from "\./([^"]+)"', path.read_text())
        loaded += [f"/ui/{name}" for name in names]
    assert len(loaded) > 8
    assert {client.get(path).status_code for path in loaded} == {200}


def luminance(color: str) -> float:
    """Of WCAG 2.2: relative luminance of #rrggbb."""
    channels = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_in_light_and_dark() -> None:
    style = (page.FOLDER / "style.css").read_text()
    blocks = re.findall(r"(?s)\{([^{}]*--paper:[^{}]*)\}", style)
    light, system_dark, chosen_dark = (
        dict(re.findall(r"(--[\w-]+): (#\w{6});", block)) for block in blocks
    )
    assert system_dark == chosen_dark
    pairs = [(text, on) for text in ("ink", "soft", "faint") for on in ("paper", "raised", "sunk")]
    pairs += [("accent-ink", "accent"), ("ink", "accent-tint"), ("warn", "warn-tint")]
    pairs += [("warn", "raised"), ("accent", "raised")]
    for colors in (light, system_dark):
        for text, on in pairs:
            dark, bright = sorted(luminance(colors[f"--{name}"]) for name in (text, on))
            contrast = (bright + 0.05) / (dark + 0.05)
            # A ghost of text is dim on purpose; everything else meets the rule for small text.
            assert contrast >= 4.5, f"{text} on {on} has {contrast:.2f}"
