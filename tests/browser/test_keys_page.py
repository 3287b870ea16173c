"""The pages of keys and organisations: what an operator does there, in both languages, on a desk and on a phone."""

import json
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def heard(page: Any) -> list[tuple[str, str, Any]]:
    """Every changing call that the page makes."""
    calls: list[tuple[str, str, Any]] = []

    def note(request: Any) -> None:
        if request.method != "GET":
            path = request.url.partition("/api/")[2]
            calls.append((request.method, path, json.loads(request.post_data) if request.post_data else None))

    page.on("request", note)
    return calls


def rows(page: Any) -> Any:
    return page.locator("tbody tr")


def dialog(page: Any) -> Any:
    return page.get_by_role("dialog")


def test_the_first_key_is_made_shown_once_and_listed(serve: Any, visit: Any) -> None:
    mock = serve(count=0, nobody=True)
    page = visit(mock, "/keys")
    calls = heard(page)
    expect(page.get_by_role("heading", name="No key yet")).to_be_visible()
    page.get_by_role("button", name="New key").click()
    dialog(page).get_by_label("Name", exact=True).fill("shop")
    dialog(page).get_by_role("button", name="support").click()
    dialog(page).get_by_label("Endpoints").fill("/v1/chat/*\n/v1/models*")
    dialog(page).get_by_label("Guard").select_option("strict")
    dialog(page).get_by_label("Budget, US dollars").fill("12.5")
    dialog(page).get_by_label("Tags").fill("env=prod\nfeature=a=b")
    dialog(page).get_by_role("button", name="Create key").click()
    text = dialog(page).locator("code").first
    expect(text).to_contain_text("nk-")
    shown = text.inner_text()
    assert calls == [
        ("POST", "keys", {
            "name": "shop", "apps": ["support"], "endpoints": ["/v1/chat/*", "/v1/models*"], "guard": "strict",
            "budget_usd": 12.5, "tags": {"env": "prod", "feature": "a=b"},
        }),
    ]  # fmt: skip
    dialog(page).get_by_role("button", name="Done").click()
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("shop")
    assert shown not in page.content()
    page.go_back()
    assert shown not in page.content()


def test_a_change_sends_only_what_changed(serve: Any, visit: Any) -> None:
    page = visit(serve(count=0), "/keys")
    calls = heard(page)
    page.get_by_role("button", name="search indexer").click()
    dialog(page).get_by_label("Requests a minute").fill("30")
    dialog(page).get_by_role("button", name="Save").click()
    expect(dialog(page).get_by_text("Saved.")).to_be_visible()
    dialog(page).get_by_label("Requests a minute").fill("")
    dialog(page).get_by_label("User").select_option("")
    dialog(page).get_by_role("button", name="Save").click()
    expect(page.locator("tr", has_text="search indexer")).not_to_contain_text("bob@acme.example")
    assert [body for _, _, body in calls] == [{"rpm": 30}, {"rpm": None, "org": "acme", "team": "search", "user": ""}]


def test_a_wrong_line_is_named_and_nothing_is_sent(serve: Any, visit: Any) -> None:
    page = visit(serve(count=0), "/keys?key=new")
    calls = heard(page)
    dialog(page).get_by_label("Tags").fill("prod")
    dialog(page).get_by_role("button", name="Create key").click()
    expect(dialog(page).get_by_role("alert")).to_contain_text("“prod” is no name=value pair")
    assert calls == []


def test_a_key_is_rotated_disabled_and_revoked(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/keys")
    calls = heard(page)
    key = mock.people.keys[0]["id"]
    page.get_by_role("button", name="shop frontend").click()
    dialog(page).get_by_role("button", name="Rotate").click()
    dialog(page).get_by_label("The old text works for").select_option("1h")
    dialog(page).get_by_role("button", name="Rotate").last.click()
    expect(dialog(page).locator("code").first).to_contain_text("nk-")
    expect(dialog(page).get_by_text("old text until")).to_be_visible()
    dialog(page).get_by_role("button", name="Done").click()
    page.get_by_role("button", name="shop frontend").click()
    dialog(page).get_by_role("button", name="Disable").click()
    expect(dialog(page).get_by_role("button", name="Enable")).to_be_visible()
    dialog(page).get_by_role("button", name="Revoke").click()
    dialog(page).get_by_role("button", name="Revoke for good").click()
    expect(page.get_by_role("button", name="shop frontend")).to_have_count(0)
    assert calls == [
        ("POST", f"keys/{key}/rotate", {"overlap": "1h"}),
        ("PATCH", f"keys/{key}", {"disabled": True}),
        ("DELETE", f"keys/{key}", None),
    ]


def test_a_key_is_found_by_whose_it_is_and_leads_to_its_traces(serve: Any, visit: Any) -> None:
    mock = serve(count=3)
    page = visit(mock, "/keys")
    page.get_by_role("searchbox").fill("acme search")
    expect(rows(page)).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    dialog(page).get_by_role("link", name="Its traces").click()
    expect(page).to_have_url(f"http://127.0.0.1:{mock.server_port}/traces?filter=key%3D{mock.people.keys[1]['id']}")


def test_the_door_that_a_key_closed_is_opened_on_purpose(serve: Any, visit: Any) -> None:
    mock = serve(count=0, nobody=True)
    mock.people.closed = True
    page = visit(mock, "/keys")
    expect(page.get_by_text("nobody can call it")).to_be_visible()
    page.get_by_role("button", name="Let this machine ask without a key").click()
    expect(page.get_by_text("answers this machine only")).to_be_visible()


def test_organisations_teams_and_users_are_added_and_removed(serve: Any, visit: Any) -> None:
    mock = serve(count=0, nobody=True)
    page = visit(mock, "/orgs")
    expect(page.get_by_role("heading", name="Nobody yet")).to_be_visible()
    page.get_by_role("button", name="Organisation").click()
    dialog(page).get_by_label("Name").fill("acme corp")
    dialog(page).get_by_role("button", name="Save").click()
    expect(dialog(page).get_by_role("alert")).to_contain_text("cannot name")
    dialog(page).get_by_label("Name").fill("acme")
    dialog(page).get_by_role("button", name="Save").click()
    section = page.get_by_role("region", name="acme")
    expect(section).to_be_visible()
    page.get_by_role("button", name="Team").click()
    dialog(page).get_by_label("Name").fill("search")
    dialog(page).get_by_role("button", name="Save").click()
    expect(section).to_contain_text("search")
    page.get_by_role("button", name="User").click()
    dialog(page).get_by_label("Name").fill("ann@acme.example")
    dialog(page).get_by_role("button", name="search").click()
    dialog(page).get_by_role("button", name="Save").click()
    expect(section).to_contain_text("ann@acme.example")
    assert mock.people.members["user"]["ann@acme.example"]["teams"] == ["search"]
    assert mock.people.members["user"]["ann@acme.example"]["org"] == "acme"
    section.get_by_role("button", name="Remove: acme", exact=True).click()
    dialog(page).get_by_role("button", name="Remove for good").click()
    expect(page.get_by_role("region", name="acme")).to_have_count(0)
    assert mock.people.members["org"] == {}


def test_removing_says_how_many_keys_go_with_it(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/orgs")
    page.get_by_role("button", name="Remove: checkout").click()
    expect(dialog(page)).to_contain_text("Its live key is revoked with it")
    dialog(page).get_by_role("button", name="Cancel").click()
    assert "checkout" in mock.people.members["team"]
    page.get_by_role("button", name="Remove: checkout").click()
    dialog(page).get_by_role("button", name="Remove for good").click()
    expect(page.get_by_role("button", name="Remove: checkout")).to_have_count(0)
    assert "shop frontend" not in [k["name"] for k in mock.people.keys]


@pytest.mark.parametrize("path", ["/keys", "/keys?key=new", "/orgs"])
@pytest.mark.parametrize(("size", "locale"), [(WIDE, "en-US"), (PHONE, "en-US"), (PHONE, "zh-CN")])
def test_no_page_is_wider_than_the_window_and_the_open_one_shows_in_the_header(
    serve: Any, visit: Any, path: str, size: dict[str, int], locale: str
) -> None:
    page = visit(serve(count=0), path, viewport=size, locale=locale)
    expect(page.locator("h1")).to_have_text(
        {"/orgs": ("Organisations", "组织")}.get(path, ("API keys", "API 密钥"))[locale == "zh-CN"]
    )
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    current = page.locator("nav a[aria-current]").bounding_box()
    assert current["x"] >= 0
    assert current["x"] + current["width"] <= size["width"]


def test_the_keyboard_leads_there(serve: Any, visit: Any) -> None:
    page = visit(serve(count=0), "/traces")
    page.locator("h1, main").first.wait_for()
    page.keyboard.press("g")
    page.keyboard.press("k")
    expect(page.get_by_role("heading", name="API keys")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("o")
    expect(page.get_by_role("heading", name="Organisations", exact=True)).to_be_visible()
