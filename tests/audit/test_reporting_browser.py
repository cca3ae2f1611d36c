"""The page in a browser: what it loads, how it sorts, what it exports, whether it fits."""

import json
import shutil
import time

import pytest
from small_audit import ABOUT, PREPROCESSING, candidate, evidence, finding, score

from vimlrp.audit.records import Channel, Screening, Verdict
from vimlrp.audit.reporting import read_decisions, write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="there is no chromium with its chromedriver"
)

EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    names = ("zebra", EVIL, "a" * 60, "gull")
    found = evidence(tmp_path_factory.mktemp("pictures"), counts=(14,) * 4, names=names)
    scores = (
        score(1, 0.0004, flagged=True),
        score(0, 0.02),
        score(3, 0.3, Channel.LATENT, count=9),
        score(2, 1.0),
    )
    findings = (
        finding(candidate(found, 1, statistics=(("jpeg_quality", 0.9),)), action=EVIL),
        finding(candidate(found, 3, 4, Channel.LATENT, local=False), Verdict.UNUSED),
    )
    return found, Screening(scores, 0.1), findings


@pytest.fixture(scope="module")
def address(audit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    files = write_report(folder, *audit, about=ABOUT, preprocessing=PREPROCESSING)
    return files[0].as_uri()


@pytest.fixture
def page(browser, address):
    # What earlier tests did must not count: neither decisions kept, nor logs.
    browser.get(address)
    browser.execute_script("localStorage.clear()")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(address)
    return browser


def texts(page, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.trim())"
    return page.execute_script(script, selector)


def click(page, selector, number=0):
    script = "document.querySelectorAll(arguments[0])[arguments[1]].click()"
    page.execute_script(script, selector, number)


def test_nothing_but_the_page_is_asked_for_and_no_error_is_logged(page, address):
    requests = [
        message["params"]["request"]["url"]
        for entry in page.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert address in requests
    assert [url for url in requests if url != address and not url.startswith("data:")] == []
    assert page.get_log("browser") == []


def test_all_pictures_are_drawn(page):
    # Six and four carriers, six others each; maps beside all, regions beside the first six; means.
    script = "return [...document.images].map((i) => [i.complete, i.naturalWidth])"
    time.sleep(0.2)
    drawn = page.execute_script(script)
    assert len(drawn) == 6 * 3 + 4 * 2 + 2 * 6 * 2 + 5 + 4
    assert all(complete and width > 0 for complete, width in drawn)


def test_names_run_no_script(page):
    assert page.title == "Audit of small"
    assert EVIL in texts(page, "article h3")


def test_a_script_that_slips_in_is_refused(page):
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = `owned`';"
        "document.body.append(s)"
    )
    assert page.title == "Audit of small"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_tables_sort_by_the_heading_pressed(page):
    def classes():
        return [name.removesuffix("flagged").strip() for name in texts(page, "#ranking tbody th")]

    assert classes() == [EVIL, "zebra", "gull", "a" * 60]
    click(page, "#ranking thead button", 1)
    assert classes() == [EVIL, "a" * 60, "gull", "zebra"]
    click(page, "#ranking thead button", 1)
    assert classes() == ["zebra", "gull", "a" * 60, EVIL]
    click(page, "#ranking thead button", 8)  # by p
    assert classes() == [EVIL, "zebra", "gull", "a" * 60]
    click(page, "#ranking thead button", 3)
    assert classes()[0] == "gull"
    headings = "return [...document.querySelectorAll('#ranking th[aria-sort]')].length"
    assert page.execute_script(headings) == 1


def test_the_ranking_can_be_narrowed(page):
    rows = "return [...document.querySelectorAll('#ranking tbody tr')].filter((r) => !r.hidden)"
    page.find_element("id", "search").send_keys("ZEB")
    assert len(page.execute_script(rows)) == 1
    page.find_element("id", "search").clear()
    page.find_element("id", "search").send_keys(" ")
    click(page, "#only-flagged")
    assert len(page.execute_script(rows)) == 1


def exported(page):
    for old in page.downloads.iterdir():
        old.unlink()
    click(page, "#decisions button")
    file = page.downloads / "decisions.json"
    end = time.monotonic() + 20
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return file


def test_decisions_are_exported_and_read_back(page, audit):
    assert texts(page, "#decisions output") == ["0 accepted, 0 rejected, 2 open"]
    click(page, "input[name='decision-1-relevance'][value=accept]")
    page.find_element("css selector", "fieldset input[type=text]").send_keys("a “mark”")
    click(page, "input[name='decision-3-latent'][value=reject]")
    assert texts(page, "#decisions output") == ["1 accepted, 1 rejected, 0 open"]
    file = exported(page)
    content = json.loads(file.read_text())
    assert content["format"] == 1
    assert content["decisions"] == {
        "1-relevance": {
            "class": 1,
            "name": EVIL,
            "channel": "relevance",
            "verdict": "causal",
            "decision": "accept",
            "note": "a “mark”",
        },
        "3-latent": {
            "class": 3,
            "name": "gull",
            "channel": "latent",
            "verdict": "visible but unused",
            "decision": "reject",
            "note": "",
        },
    }
    assert read_decisions(file, audit[2]) == {"1-relevance": "accept", "3-latent": "reject"}


def give(page, path):
    page.find_element("css selector", "#decisions input[type=file]").send_keys(str(path))
    end = time.monotonic() + 20
    while not texts(page, "#decisions [role=status]")[0] and time.monotonic() < end:
        time.sleep(0.05)
    return texts(page, "#decisions [role=status]")[0]


def test_decisions_are_imported(page, tmp_path):
    entries = {
        "3-latent": {"decision": "accept", "note": "seen"},
        "8-latent": {"decision": "accept"},
    }
    path = tmp_path / "given.json"
    path.write_text(json.dumps({"format": 1, "decisions": entries}))
    status = give(page, path)
    assert status.startswith("1 of 2 decisions of given.json were taken over.")
    assert texts(page, "#decisions output") == ["1 accepted, 0 rejected, 1 open"]
    notes = "return [...document.querySelectorAll('fieldset input[type=text]')].map((i) => i.value)"
    assert page.execute_script(notes) == ["", "seen"]


def test_what_holds_no_decisions_changes_nothing(page, tmp_path):
    click(page, "input[name='decision-3-latent'][value=reject]")
    path = tmp_path / "other.json"
    path.write_text("[]")
    assert give(page, path) == "other.json holds no decisions of a report; nothing was changed."
    assert texts(page, "#decisions output") == ["0 accepted, 1 rejected, 1 open"]


def test_decisions_outlive_a_reload(page, address):
    click(page, "input[name='decision-1-relevance'][value=accept]")
    page.get(address)
    assert texts(page, "#decisions output") == ["1 accepted, 0 rejected, 1 open"]


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_phones_and_desks(page, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        script = "return [document.documentElement.scrollWidth, window.innerWidth]"
        needed, given = page.execute_script(script)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert given == width
    assert needed <= width


def test_the_page_fits_paper(page):
    metrics = {"width": 794, "height": 1123, "deviceScaleFactor": 1, "mobile": False}  # A4
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 794
        assert not page.find_element("id", "decisions").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        pairs = page.execute_script(COLOURS)
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(pairs) > 40
    # The contrast that WCAG 2.2 asks of text, 1.4.3.
    assert [pair for pair in pairs if contrast(*map(rgb, pair[:2])) < 4.5] == []


COLOURS = """
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
  }
  return "rgb(255, 255, 255)";
};
const text = "h1, h2, h3, h4, p, a, b, td, th, dt, dd, li, span, button, label, caption";
return [...document.querySelectorAll(text + ", figcaption, legend")]
  .filter((e) => e.offsetParent && e.textContent.trim())
  .map((e) => [getComputedStyle(e).color, ground(e), e.className || e.tagName]);
"""


def rgb(text):
    return [float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def contrast(one, other):
    def luminance(colour):
        shares = [c / 255 for c in colour]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_without_scripts_all_is_there_but_what_needs_them(browser, address):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        assert browser.find_elements("css selector", "#ranking tbody tr")
        assert not browser.find_element("id", "decisions").is_displayed()
        assert browser.find_element("id", "finding-1-relevance").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
