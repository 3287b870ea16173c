"""The pages for those who operate the service: cost, budgets, limits, endpoints, batches; and bodies in protocols of their own."""

import json
from typing import Any

import pytest
from tests.browser.readable import faults

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PAGES = {"/cost": "费用", "/budgets": "预算", "/limits": "限流", "/endpoints": "端点", "/batches": "批处理"}
FIRST_PAINT = 48 * 1024
"""Bytes of scripts and styles, compressed, until the list of traces stands."""


def dialog(page: Any) -> Any:
    return page.get_by_role("dialog")


def row(page: Any, text: str) -> Any:
    return page.locator("main li, tbody tr").filter(has_text=text).first


def test_cost_is_split_by_what_the_reader_chooses_and_the_url_holds_it(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/cost")
    expect(page.get_by_role("img", name="Spend by day and Model")).to_be_visible()
    expect(page.locator("canvas")).to_have_count(1)
    expect(page.locator("figure li")).to_have_count(7)
    expect(page.locator("figure li").last).to_have_text("2 others")
    expect(page.locator(".tiles")).to_contain_text("1.9 % of exchanges")
    expect(page.locator(".tiles")).to_contain_text("$1.25 spared")
    expect(row(page, "house-model")).to_contain_text("90 unknown")
    page.get_by_role("button", name="Tag").click()
    expect(row(page, "env=prod")).to_be_visible()
    expect(page.get_by_text("counts once for each of its tags")).to_be_visible()
    page.get_by_role("button", name="7 days").click()
    expect(page.get_by_role("img", name="Spend by day and Tag, 7 days")).to_be_visible()
    assert page.url.endswith("/cost?by=tag&days=7")
    expect(page.get_by_role("link", name="env=prod")).to_have_attribute("href", "/traces?filter=tag%3Denv%3Dprod")
    page.get_by_label("Only exchanges where").fill("app=support nothing=1")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="No exchange in this time")).to_be_visible()
    asked = mock.operations.asked[-1]
    assert asked["filter"] == ["app=support nothing=1"]
    page.go_back()
    expect(row(page, "env=prod")).to_be_visible()


def test_the_chart_is_read_by_keyboard(serve: Any, visit: Any) -> None:
    page = visit(serve(count=0), "/cost?days=7")
    page.get_by_role("img", name="Spend by day").focus()
    page.keyboard.press("ArrowLeft")
    last = page.locator("figure [role=status]")
    expect(last).to_contain_text("gpt-5-mini $")
    told = last.inner_text()
    page.keyboard.press("ArrowLeft")
    expect(last).not_to_have_text(told)
    page.get_by_text("The same as a table").click()
    expect(page.locator("table.days tbody tr")).to_have_count(7)


def test_a_budget_is_made_changed_and_removed(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/budgets")
    expect(page.locator("main li").first).to_contain_text("$0.50 over")  # what is worst stands first
    expect(row(page, "search")).to_contain_text("80 % reached")
    expect(row(page, "acme")).to_contain_text("begins anew Fri, Feb 1, 00:00 (Europe/Berlin)")
    expect(row(page, "acme").get_by_role("button")).to_have_count(0)
    page.get_by_role("button", name="New budget").click()
    dialog(page).get_by_label("Scope").select_option("tag")
    dialog(page).get_by_label("Which").fill("env=prod")
    dialog(page).get_by_label("Limit, US dollars").fill("12.5")
    dialog(page).get_by_label("Time zone").fill("Mars/Olympus")
    dialog(page).get_by_role("button", name="Save").click()
    expect(dialog(page).get_by_role("alert")).to_contain_text("'Mars/Olympus' is no time zone")
    dialog(page).get_by_label("Time zone").fill("UTC")
    dialog(page).get_by_label("Tell at, in percent").fill("much")
    dialog(page).get_by_role("button", name="Save").click()
    expect(dialog(page).get_by_role("alert")).to_contain_text("Write shares of the limit in percent")
    dialog(page).get_by_label("Tell at, in percent").fill("50，90%")
    dialog(page).get_by_role("button", name="Save").click()
    expect(row(page, "env=prod")).to_contain_text("alerts at 50 %, 90 %")
    made = mock.operations.lists["budgets"][-1]
    assert (made["scope"], made["usd"], made["alerts"], made["hard"]) == ("tag:env=prod", 12.5, [0.5, 0.9], True)
    page.get_by_role("button", name="Edit: tag:env=prod").click()
    dialog(page).get_by_label("Limit, US dollars").fill("20")
    dialog(page).get_by_label("Refuse what does not fit").uncheck()
    dialog(page).get_by_role("button", name="Save").click()
    expect(row(page, "env=prod")).to_contain_text("/ $20.00")
    assert made["hard"] is False
    page.get_by_role("button", name="Remove: tag:env=prod").click()
    dialog(page).get_by_role("button", name="Remove for good").click()
    expect(row(page, "env=prod")).to_have_count(0)


def test_limits_say_how_full_they_are_and_are_made_and_removed(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/limits")
    expect(page.locator("main li").first).to_contain_text("32 / 32 at once")  # what is fullest stands first
    expect(row(page, "everybody")).to_contain_text("120 / 6,000 requests a minute")
    expect(row(page, "everybody")).to_contain_text("anew in 18 s")
    page.get_by_role("button", name="New limit").click()
    dialog(page).get_by_role("button", name="Save").click()
    expect(dialog(page).get_by_role("alert")).to_have_text("Give at least one of the three.")
    dialog(page).get_by_label("Scope").select_option("app")
    dialog(page).get_by_label("Which").select_option("analyst")
    dialog(page).get_by_label("Requests a minute").fill("90")
    dialog(page).get_by_role("button", name="Save").click()
    expect(row(page, "analyst")).to_contain_text("0 / 90 requests a minute")
    page.get_by_role("button", name="Remove: app:analyst").click()
    dialog(page).get_by_role("button", name="Remove for good").click()
    expect(row(page, "analyst")).to_have_count(0)
    assert [x["id"] for x in mock.operations.lists["limits"]] == ["everybody", "limit_1"]


def test_endpoints_show_the_worst_first_with_the_reason(serve: Any, visit: Any) -> None:
    page = visit(serve(count=0), "/endpoints")
    expect(page.get_by_text("2 of 4 are out")).to_be_visible()
    names = page.locator("td.name a")
    expect(names).to_have_text(["vendor", "eu-1", "claude", "spare"])
    expect(row(page, "vendor")).to_contain_text("key refused")
    expect(row(page, "eu-1")).to_contain_text("out of memory")
    expect(row(page, "eu-1")).to_contain_text("1 min 15 s ago")
    expect(row(page, "eu-1")).to_contain_text("22 failures in a row")
    expect(row(page, "claude")).to_contain_text("p95 2.40 s")
    expect(page.locator("table.workers tbody tr")).to_have_count(2)
    names.first.click()
    expect(page).to_have_url(page.url.split("/traces")[0] + "/traces?filter=endpoint%3Dvendor")


def test_batches_show_how_far_they_are_and_are_cancelled(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/batches")
    expect(row(page, "in progress")).to_contain_text("132 of 400, 2 failed")
    expect(row(page, "completed")).to_contain_text("1 min 06 s")
    page.get_by_text("1 mistake").click()
    expect(row(page, "line 161")).to_contain_text("not parseable")
    expect(page.get_by_text("2 files, 49.9 KB")).to_be_visible()
    page.get_by_role("button", name="Cancel batch").click()
    dialog(page).get_by_role("button", name="Cancel it").click()
    expect(row(page, "cancelling")).to_be_visible()
    assert mock.operations.lists["batches"][0]["status"] == "cancelling"
    expect(page.get_by_role("button", name="Cancel batch")).to_have_count(0)


@pytest.mark.parametrize("path", ["/budgets", "/limits", "/endpoints", "/batches", "/cost"])
def test_a_page_without_anything_says_what_could_be_there(serve: Any, visit: Any, path: str) -> None:
    mock = serve(count=0, nobody=True)
    page = visit(mock, path)
    expect(page.locator(".empty h2")).to_be_visible()


def test_all_fit_their_screens_in_both_languages_with_readable_text(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    for size, scheme, locale in (
        (WIDE, "light", "en-US"),
        (WIDE, "dark", "zh-CN"),
        (PHONE, "light", "zh-CN"),
        (PHONE, "dark", "en-US"),
    ):
        first = visit(mock, "/cost", viewport=size, color_scheme=scheme, locale=locale, reduced_motion="reduce")
        for path, title in PAGES.items():
            first.goto(f"http://127.0.0.1:{mock.server_port}{path}")
            first.locator("main tbody tr, main li").first.wait_for()
            if locale == "zh-CN":
                expect(first.locator("h1")).to_have_text(title)
            assert faults(first) == [], (path, size["width"], scheme)


def test_the_keyboard_leads_to_every_page(serve: Any, visit: Any) -> None:
    page = visit(serve(count=0), "/orgs")
    for letter, title in (("c", "Cost"), ("b", "Budgets"), ("l", "Limits"), ("e", "Endpoints"), ("a", "Batches")):
        page.keyboard.press("g")
        page.keyboard.press(letter)
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        expect(page.locator("nav a[aria-current]")).to_have_text(title)


def test_the_first_page_loads_no_other_and_stays_small(serve: Any, visit: Any, browser: Any) -> None:
    context = browser.new_context(viewport=WIDE)
    loaded: dict[str, int] = {}
    context.on(
        "response", lambda r: loaded.update({r.url: int(r.headers.get("content-length", 0))}) if "/assets/" in r.url else None
    )
    page = visit(serve(count=3), "/traces", context=context)
    expect(page.locator("tbody tr")).to_have_count(3)
    assert not [url for url in loaded if "Cost" in url or "words.zh" in url], "pages are loaded when they are opened"
    assert sum(loaded.values()) < FIRST_PAINT, loaded
    context.close()


# -- bodies in protocols of their own -------------------------------------------------------------------

CALLED = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "苏州"}}
FAILED = {
    "type": "tool_result",
    "tool_use_id": "toolu_1",
    "is_error": True,
    "content": [{"type": "text", "text": '{"code": 503}'}],
}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
NATIVE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "anthropic": (
        {
            "system": [{"type": "text", "text": "Be terse."}],
            "tools": [{"name": "get_weather"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "How is it there?"}, PNG]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "Ask."}, CALLED]},
                {"role": "user", "content": [FAILED, {"type": "text", "text": "And in 杭州?"}]},
            ],
        },
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Mild."}, CALLED | {"id": "toolu_2"}]},
    ),
    "responses": (
        {
            "instructions": "Be terse.",
            "tools": [{"type": "function", "name": "get_weather"}],
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "How is it there?"}, {"type": "input_image", "image_url": "data:image/png;base64,iVBO"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Ask."}]},
                {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "苏州"}'},
                {"type": "function_call_output", "call_id": "c1", "output": '{"code": 503}'},
                {"role": "user", "content": "And in 杭州?"},
            ],
        },
        {
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Mild."}]},
                {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": "{}"},
            ]
        },
    ),
    "gemini": (
        {
            "systemInstruction": {"parts": [{"text": "Be terse."}]},
            "tools": [{"functionDeclarations": [{"name": "get_weather"}]}],
            "contents": [
                {"role": "user", "parts": [{"text": "How is it there?"}, {"inlineData": {"mimeType": "image/png", "data": "iVBO"}}]},
                {"role": "model", "parts": [{"text": "Ask.", "thought": True}, {"functionCall": {"name": "get_weather", "args": {"city": "苏州"}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"code": 503}}}]},
                {"role": "user", "parts": [{"text": "And in 杭州?"}]},
            ],
        },
        {"candidates": [{"content": {"parts": [{"text": "Hm.", "thought": True}, {"text": "Mild."}, {"functionCall": {"name": "get_weather", "args": {}}}]}}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("dialect", NATIVE)
def test_a_native_body_is_read_in_its_own_order_and_its_json_is_a_click_away(serve: Any, visit: Any, dialect: str) -> None:
    mock = serve(count=1)
    request, answer = NATIVE[dialect]
    detail = mock.exchanges[0]
    detail |= {"request": request, "answer": answer, "chat": {"request": None, "answer": None}}
    detail["row"] |= {"dialect": dialect, "native": True, "rulings": [], "warnings": ["`top_k` was left out."], "cache": ""}
    page = visit(mock, f"/traces/{detail['row']['id']}")
    turns = page.locator("#panel ol > li")
    expect(turns.locator("h3")).to_contain_text(["System", "User", "Assistant", "Tool result", "User", "Assistant"])
    expect(turns.nth(1)).to_contain_text("[image, image/png: not shown]")
    expect(turns.nth(2)).to_contain_text("苏州")
    expect(turns.nth(3).locator("h3")).to_contain_text("get_weather")
    assert ("failed" in turns.nth(3).inner_text()) == (dialect == "anthropic")
    kinds = (
        turns.nth(5)
        .locator(".items > *")
        .evaluate_all("all => all.map(e => e.tagName + ' ' + e.textContent.trim().split(/\\s+/)[0])")
    )
    assert [k.split()[1] for k in kinds] == ["Reasoning", "Mild.", "calls"]
    expect(page.locator(".tools")).to_have_text("1 tool offered: get_weather")
    expect(page.get_by_text("`top_k` was left out.")).to_be_visible()
    expect(page.get_by_text("passed through as it came")).to_be_visible()
    page.get_by_role("tab", name="JSON").click()
    page.get_by_role("button", name="Request").click()
    assert json.loads(page.locator("pre.raw").inner_text()) == request
