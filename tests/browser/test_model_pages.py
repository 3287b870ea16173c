"""The pages of the model journey, on answers that a running service gave: datasets, training, evaluations, releases, drift, refreshes."""

from typing import Any

import pytest
from tests.browser.readable import faults

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PAGES = {
    "/datasets": "数据集", "/training": "训练", "/evaluations": "评测", "/releases": "发布", "/drift": "漂移", "/refreshes": "更新",
}  # fmt: skip


def dialog(page: Any) -> Any:
    return page.get_by_role("dialog")


def row(page: Any, text: str) -> Any:
    return page.locator("main li, tbody tr").filter(has_text=text).first


def first(mock: Any, what: str, **wanted: Any) -> dict[str, Any]:
    return next(x for x in mock.journey.now[what] if all(x[k] == v for k, v in wanted.items()))


def test_a_dataset_shows_where_its_version_comes_from_and_other_versions(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/datasets")
    expect(row(page, "helpdesk")).to_contain_text("train 1,639, validation 113, test 221")
    page.get_by_role("link", name="helpdesk").click()
    expect(page.get_by_role("heading", name="helpdesk")).to_be_visible()
    latest, older = mock.journey.now["versions"][0], mock.journey.now["versions"][-1]
    expect(page.get_by_text(latest["id"])).to_be_visible()
    page.get_by_label("Version").select_option(older["id"])
    expect(page.get_by_text("tickets of last quarter").first).to_be_visible()
    expect(page.locator(".pairs")).to_contain_text("nothing earlier: it is the first")
    expect(page.locator(".pairs")).to_contain_text("data_v1.jsonl")
    assert f"version={older['id'].replace(':', '%3A')}" in page.url
    page.goto(page.url.split("/datasets")[0] + f"/datasets/-?version={older['id']}")  # as a training knows it
    expect(page.get_by_role("heading", name="helpdesk")).to_be_visible()


def test_rows_are_paged_and_found_by_what_they_say(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/datasets/helpdesk?tab=rows")
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("tbody tr")).to_have_count(len(mock.journey.now["rows"]))
    page.get_by_role("button", name="test 221").click()
    tested = [r for r in mock.journey.now["rows"] if r["split"] == "test"]
    expect(page.locator("tbody tr")).to_have_count(len(tested))
    said = tested[3]["row"]["messages"][-1]["content"]
    page.get_by_label("Find in what the rows say").fill(said.upper())
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr")).to_contain_text(said)
    expect(page.get_by_text("1 found in")).to_be_visible()


def test_what_was_left_out_stands_beside_what_was_kept_and_versions_are_compared(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    page = visit(mock, "/datasets/helpdesk?tab=out")
    near = first(mock, "rejections", rule="near")
    kept = next(s for s in mock.journey.now["survivors"] if s["id"] == near["survivor"])
    page.get_by_role("button", name="duplicate: nearly the same").click()
    line = row(page, near["content"]["messages"][-1]["content"])
    expect(line).to_contain_text("against a limit of 0.5")
    expect(line).to_contain_text(kept["row"]["messages"][-1]["content"])
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("dl")).to_contain_text("train 925, validation 8, test 17")
    expect(
        page.locator("li").filter(has_text=mock.journey.now["diff"]["added"][0]["row"]["messages"][-1]["content"])
    ).to_be_visible()


def test_a_job_is_watched_stopped_and_resumed(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    job = first(mock, "jobs", state="stopped")
    job["state"] = "running"
    page = visit(mock, "/training")
    expect(row(page, "running")).to_contain_text("step")
    row(page, "running").get_by_role("link").first.click()
    expect(page.locator(".phases .now")).to_have_text("training")
    progress = page.locator("dl").first
    begun = progress.inner_text()
    expect(progress).not_to_have_text(begun)  # it goes on while it is looked at
    expect(page.get_by_role("img", name="Loss by step")).to_be_visible()
    expect(progress).to_contain_text("1 min 15 s")
    page.get_by_role("button", name="Stop").click()
    dialog(page).get_by_role("button", name="Stop").click()
    expect(page.locator(".state")).to_have_text("stopped")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".state")).to_have_text("running")
    assert [(what, action) for what, action, _ in mock.journey.said] == [(job["id"], "stop"), (job["id"], "resume")]


def test_a_finished_job_shows_what_it_made_and_whether_that_is_what_was_trained(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    job = first(mock, "jobs", state="done")
    checked = {
        "at_ns": 1,
        "rows": 64,
        "agreement": 0.91,
        "trained_accuracy": 0.938,
        "served_accuracy": 0.891,
        "threshold": 0.95,
    }
    job["checked"] = [
        {"file": "adapter.gguf", "equivalent": True, "code": "", "says": "", **checked},
        {
            "file": "merged-q4_k_m.gguf",
            "equivalent": False,
            "code": "not_equivalent",
            "says": "It answers 91 % as trained.",
            **checked,
        },
    ]
    page = visit(mock, f"/training/{job['id']}")
    expect(row(page, "tiny.model")).to_contain_text("1.13 MB")
    expect(page.locator(".check").first).to_contain_text("Yes.")
    expect(page.locator(".check").last).to_contain_text("No: it would not be served.")
    expect(page.locator(".check").last).to_contain_text("91.0 % of 64 answers are the same")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)


def test_an_evaluation_shows_intervals_classes_and_its_worst_answers(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    run = first(mock, "evaluations", release_name="damaged")
    page = visit(mock, "/evaluations")
    page.get_by_role("link", name="helpdesk@damaged").click()
    low, high = (run["report"]["estimates"]["label"][k] for k in ("low", "high"))
    line = page.locator(".estimates li").filter(has_text="label")
    expect(line).to_contain_text(f"{100 * low:.1f} % – {100 * high:.1f} %")
    expect(line.get_by_role("img")).to_have_attribute("aria-label", f"label 5.0 %, {100 * low:.1f} % to {100 * high:.1f} %")
    assert page.locator(".classes tbody tr").count() == 18
    worst = run["report"]["items"][0]
    expect(page.locator(".worst tbody tr").first).to_contain_text(worst["answer"])
    expect(page.locator(".worst tbody tr").first.get_by_role("link")).to_have_attribute("href", f"/traces/{worst['exchange']}")
    expect(page.get_by_role("link", name="HTML report")).to_have_attribute(
        "href", f"/api/evaluations/{run['id']}/report?lang=en"
    )


def test_two_evaluations_are_compared_and_an_open_question_says_how_many_more(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    mock.journey.now["comparisons"][1] |= {"verdict": "need_more", "more": 480}
    mock.journey.now["evaluations"][4]["report"]["hash"] = "q1:other"
    page = visit(mock, "/evaluations")
    boxes = page.get_by_role("checkbox")
    boxes.nth(1).check()
    expect(page.get_by_text("Tick a second one, to judge it against helpdesk@tuned.")).to_be_visible()
    boxes.nth(0).check()
    result = page.get_by_role("region", name="Comparison")
    expect(result.get_by_role("heading")).to_have_text("helpdesk@tuned-9882e41e against helpdesk@tuned")
    expect(result.locator("li").nth(0)).to_contain_text("better")
    expect(result.locator("li").nth(1)).to_contain_text("About 480 more items would tell.")
    result.get_by_role("button", name="5 points").click()
    expect(result.locator("line.mark")).to_have_count(6)  # the margin beside zero
    result.get_by_role("button", name="Swap").click()
    expect(result.get_by_role("heading")).to_have_text("helpdesk@tuned against helpdesk@tuned-9882e41e")
    expect(boxes.nth(4)).to_be_disabled()  # it was judged otherwise


def test_a_comparison_is_not_asked_anew_each_time_that_the_list_is(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    second, first_ = (e["id"] for e in mock.journey.now["evaluations"][:2])
    page = visit(mock, "/evaluations")
    page.clock.install()
    page.goto(page.url + f"?compare={first_},{second}")
    expect(page.get_by_role("region", name="Comparison").locator("li")).to_have_count(3)
    for _ in range(3):
        page.clock.run_for(3100)
    expect(page.get_by_role("region", name="Comparison").locator("li")).to_have_count(3)
    assert mock.journey.compared == 1


def test_a_rollout_shows_how_sure_it_is_and_takes_a_persons_word_with_a_reason(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    rollout = mock.journey.now["rollouts"][0]
    rollout |= {"state": "running", "ended_ns": "0", "step": 1, "reason": ""}
    page = visit(mock, "/releases")
    expect(row(page, "helpdesk")).to_contain_text("under way")
    page.get_by_role("link", name="helpdesk", exact=True).click()
    expect(page.get_by_role("img", name="How sure one is")).to_be_visible()
    expect(page.locator(".steps .now")).to_contain_text("50 %")
    expect(page.get_by_role("link", name="refresh …")).to_have_attribute(
        "href", f"/refreshes/{rollout['by'].partition(':')[2]}"
    )
    page.get_by_role("button", name="Roll back").click()
    dialog(page).get_by_role("button", name="Roll back").click()
    assert mock.journey.said == []  # the reason is missing
    dialog(page).get_by_label("Why").fill("complaints")
    dialog(page).get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("admin: complaints")).to_be_visible()
    assert mock.journey.said == [(rollout["id"], "rollback", "complaints")]
    page.get_by_role("button", name="rejected at the gate").click()
    expect(page.get_by_text("There is no evidence").first).to_be_visible()


def test_a_release_shows_its_parts_and_an_artifact_that_is_refused_says_why(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    verified = mock.journey.now["verified"]["helpdesk/tuned-9882e41e"]
    page = visit(mock, "/releases/helpdesk")
    line = page.get_by_role("button", name="tuned-9882e41e r1:").locator("xpath=..")
    line.get_by_role("button").click()
    expect(line).to_contain_text("verified")
    expect(line).to_contain_text("Name the topic of the customer's message.")
    line.get_by_role("button").click()
    verified["artifacts"] = dict.fromkeys(verified["artifacts"], "Its signature is not by a trusted key.")
    line.get_by_role("button").click()
    expect(line.locator(".bad").filter(has_text="Its signature is not by a trusted key.")).to_be_visible()


def test_drift_shows_signals_words_and_examples(serve: Any, visit: Any) -> None:
    mock = serve(count=3)
    report = mock.journey.now["drift"]["reports"][0]
    report["examples"] = [mock.exchanges[0]["row"]["id"], "gone"]
    page = visit(mock, "/drift")
    expect(row(page, "helpdesk")).to_contain_text("alert")
    page.get_by_role("link", name="helpdesk").click()
    expect(row(page, "What is asked")).to_contain_text("changed")
    expect(row(page, "Labels from feedback")).to_contain_text("insufficient data")
    expect(row(page, "Labels from feedback")).to_contain_text("50 are needed in each window")
    expect(row(page, "lilypad")).to_contain_text("0.0 % → 3.4 %")
    expect(page.locator(".examples li")).to_have_count(2)
    expect(page.locator(".examples li").last).to_contain_text("not stored any more")
    page.get_by_role("button", name="Compare now").click()
    expect(page.get_by_role("button", name="Compare now")).to_be_enabled()
    assert mock.journey.said == [("helpdesk", "run", "")]


def test_a_turn_asks_a_person_and_goes_on_with_their_word(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    mock.journey.refresh("asks")
    page = visit(mock, "/refreshes")
    expect(page.locator("tbody tr").first).to_contain_text("asks a person")
    page.get_by_role("link", name="helpdesk").first.click()
    expect(page.locator(".timeline > li")).to_have_count(12)
    expect(page.locator(".timeline > li.done")).to_have_count(10)
    expect(page.get_by_text("A person is asked before “Rollout”.")).to_be_visible()
    done = mock.journey.now["refreshes"][0]["steps"]
    job, compared = done[4]["output"]["job"], done[8]["output"]
    expect(page.get_by_role("link", name="training job").first).to_have_attribute("href", f"/training/{job}")
    expect(page.get_by_role("link", name="comparison")).to_have_attribute(
        "href", f"/evaluations?compare={compared['current']},{compared['candidate']}"
    )
    page.get_by_role("button", name="Reject").click()
    dialog(page).get_by_role("button", name="Reject").click()
    expect(dialog(page)).to_be_visible()  # not without a reason
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Approve").click()
    dialog(page).get_by_role("button", name="Approve").click()
    expect(page.locator(".word")).to_contain_text("Approved")
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    assert mock.journey.said == [("refresh_asks", "approve", "")]


def test_a_turn_under_way_shows_how_far_its_step_is_and_a_rejected_one_can_be_waived(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    turn = mock.journey.refresh("running")
    page = visit(mock, "/refreshes/refresh_running")
    step = page.locator(".timeline > li.running")
    expect(step).to_contain_text("40 / 120")
    expect(step).to_contain_text("1 min 20 s left")
    expect(step.get_by_role("link", name="training job")).to_have_attribute("href", "/training/train_1")
    turn["progress"]["step"] = 90
    expect(step).to_contain_text("90 / 120")
    rejected = mock.journey.refresh("asks")
    rejected |= {"state": "rejected", "at": "gate", "says": "The gate did not let it pass."}
    rejected["steps"][10]["state"] = "waiting"
    page.goto(page.url.replace("running", "asks"))
    page.get_by_role("button", name="Waive the gate").click()
    dialog(page).get_by_label("Why").fill("the canary shall tell")
    dialog(page).get_by_role("button", name="Waive the gate").click()
    expect(page.locator(".word")).to_contain_text("the canary shall tell")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_without_anything_tells_the_command_that_fills_it(serve: Any, visit: Any, path: str) -> None:
    page = visit(serve(count=0, nobody=True), path)
    expect(page.locator(".empty h2")).to_be_visible()
    expect(page.locator(".empty code")).to_contain_text("noria ")


def test_what_the_server_refuses_is_told_with_another_try(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    mock.journey.failing = "drift"
    page = visit(mock, "/drift")
    expect(page.get_by_role("alert")).to_contain_text("Noria made a mistake with this request.")
    mock.journey.failing = ""
    page.get_by_role("button", name="Try again").click()
    expect(row(page, "helpdesk")).to_be_visible()


def test_all_fit_their_screens_in_both_languages_with_readable_text(serve: Any, visit: Any) -> None:
    mock = serve(count=0)
    mock.journey.refresh("asks")
    now = mock.journey.now
    whole = {
        "/datasets/helpdesk": "helpdesk", "/datasets/helpdesk?tab=rows": "", "/datasets/helpdesk?tab=out": "", "/datasets/helpdesk?tab=compare": "",
        f"/training/{now['jobs'][0]['id']}": "", f"/evaluations/{now['evaluations'][0]['id']}": "", "/releases/helpdesk": "", "/drift/helpdesk": "",
        "/refreshes/refresh_asks": "", f"/evaluations?compare={now['evaluations'][1]['id']},{now['evaluations'][0]['id']}": "",
    }  # fmt: skip
    for size, scheme, locale in ((WIDE, "dark", "zh-CN"), (PHONE, "light", "en-US")):
        page = visit(mock, "/datasets", viewport=size, color_scheme=scheme, locale=locale, reduced_motion="reduce")
        for path, title in (PAGES | whole).items():
            page.goto(f"http://127.0.0.1:{mock.server_port}{path}")
            page.locator("main tbody tr, main li").first.wait_for()
            if title and locale == "zh-CN":
                expect(page.locator("h1")).to_have_text(title)
            assert faults(page) == [], (path, size["width"], scheme)


def test_the_two_journeys_and_governance_are_groups_that_remember_their_page(serve: Any, visit: Any) -> None:
    page = visit(serve(count=0), "/cost")
    pages = page.get_by_role("navigation", name="Pages")
    expect(pages.get_by_role("link")).to_have_text(["Cost", "Budgets", "Limits", "Keys", "Organisations"])
    for letter, title in (
        ("d", "Datasets"),
        ("n", "Training"),
        ("v", "Evaluations"),
        ("r", "Releases"),
        ("f", "Drift"),
        ("h", "Refreshes"),
    ):
        page.keyboard.press("g")
        page.keyboard.press(letter)
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        expect(pages.locator("[aria-current]")).to_have_text(title)
    groups = page.get_by_role("navigation", name="Noria")
    groups.get_by_role("link", name="Prompts").click()
    expect(pages.get_by_role("link")).to_have_text(["Traces", "Playground", "Endpoints", "Batches"])
    groups.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="Refreshes", exact=True)).to_be_visible()
