import base64
import io
import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from small_audit import (
    ABOUT,
    PREPROCESSING,
    candidate,
    evidence,
    finding,
    score,
    whole,
)

from vimlrp.audit.records import Channel, Screening, Verdict
from vimlrp.audit.reporting import words, write_report, writing
from vimlrp.errors import InputError, MissingDependencyError
from vimlrp.evaluation.data import Problem

VOID = {"meta", "img", "input", "link", "br", "hr"}


class Page(HTMLParser):
    """A page's elements and text; complains of what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.errors = [], [], [], []
        self.feed(text)
        self.errors += self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return re.sub(r"[\s\u00a0]+", " ", "".join(self.words))


def report(folder, *audit, **options):
    options = {"about": ABOUT, "preprocessing": PREPROCESSING} | options
    files = write_report(folder, *audit, **options)
    return Page(files[0].read_text()), files


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def page(audit, tmp_path_factory):
    return report(tmp_path_factory.mktemp("report"), *audit)[0]


def picture_of(address):
    kind, data = address.split(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_page_is_well_formed_and_its_ids_are_distinct(page):
    assert page.errors == []
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert set(links) <= set(ids)


def test_the_page_loads_nothing(page):
    addresses = [a[k] for _, a in page.elements for k in ("src", "srcset", "data") if a.get(k)]
    assert addresses
    assert all(address.startswith("data:image/webp;base64,") for address in addresses)
    assert page.all("link") == []
    assert not any("url(" in value for _, a in page.elements for value in a.values() if value)
    (policy,) = [m["content"] for m in page.all("meta") if "Policy" in m.get("http-equiv", "")]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_picture_is_described_and_small(page):
    pictures = page.all("img")
    # Six carriers with three pictures each, six others with two, a crop, two means, two maps.
    assert len(pictures) == 6 * 3 + 6 * 2 + 5
    assert all(picture["alt"] for picture in pictures)
    assert max(max(picture_of(p["src"]).size) for p in pictures) == 128


def test_maps_and_regions_lie_over_the_pictures_that_they_belong_to(audit, page):
    found, _, (one,) = audit
    first = found.samples[one.candidate.carriers[0]]
    shown = {p["alt"]: np.asarray(picture_of(p["src"]), float) for p in page.all("img")}
    seen = shown[f"{first.name} as the model sees it"]
    original = np.asarray(Image.open(first.path), float)
    assert np.abs(seen - original).mean() < 6  # WebP loses a little
    region = shown[f"Region of the cue in {first.name}"]
    inside = np.zeros((48, 48), dtype=bool)
    inside[6:14, 6:14] = True
    assert np.abs(region - original)[inside].mean() < 12
    assert region[24:].mean() == pytest.approx(0.35 * original[24:].mean(), abs=4)


def test_the_figures_of_a_finding_are_told(page):
    text = page.text
    assert "6 of 16 pictures of “class 1” (38 %) are taken to show this cue." in text
    assert "Removing it lowers the logit by 1.50." in text
    assert "Inserting it raises the logit by 2.00 and turns 30 % of the pictures" in text
    assert "90 % of the regions' area lies off the object" in text
    assert "+1.25 to +2.75" in text
    assert "jpeg quality0.88" in text.replace(" 0.88", "0.88")
    assert "Crop it." in text
    assert "Seen once." in text


def test_the_summary_counts_what_was_found(page):
    assert (
        "1 of 2 screened classes stands out from what chance gives, at a false-discovery rate of "
        "10 %. 1 cue was examined: 1 causal. For 1 of them" in page.text
    )
    assert "classifies 75 % of 32 labelled pictures rightly" in page.text
    assert (
        "a cue on less than about 38 % of a class's pictures is likely to go unnoticed" in page.text
    )


def test_nothing_found_is_said_honestly(audit, tmp_path):
    found, _, _ = audit
    none = Screening((score(0, 0.4), score(1, 0.7)), 0.05)
    page, _ = report(tmp_path, found, none, ())
    assert "None of 2 screened classes stands out" in page.text
    assert "That is no proof" in page.text
    assert "a group of fewer than 6 is tied to the rest" in page.text
    assert "No cue was examined." in page.text


def test_an_audit_without_a_screened_class_says_so(audit, tmp_path):
    problem = Problem("class 0", "too few pictures", "16 of 20")
    page, _ = report(tmp_path, audit[0], Screening((), 0.1, (problem,)), ())
    assert "No class could be screened" in page.text
    assert "No class was screened." in page.text
    assert "16 of 20" in page.text


@pytest.mark.parametrize(
    ("count", "group"), [(1, 6), (50, 6), (1300, 8), (100_000, 11), (244, 6), (245, 7)]
)
def test_the_smallest_group_has_one_more_than_the_neighbours(count, group):
    # round(log 1300) is 7, log(100,000) is above 10, and e^5.5 is 244.7.
    assert words.detectable(count) == (group, min(1.0, group / count))


def test_the_limit_is_that_of_the_samples_screened(audit):
    found = audit[0]
    thinned = Screening((score(0, 0.5, count=10), score(1, 0.5, count=12)), 0.1)
    assert words.sizes(found, thinned) == [10, 12]
    assert words.sizes(found, Screening((), 0.1)) == [16, 16]


def test_samples_without_labels_have_no_accuracy(tmp_path):
    found = evidence(tmp_path, labelled=False)
    assert words.accuracy(found)[1] == 0
    page, _ = report(tmp_path / "report", found, Screening((score(0, 0.5),), 0.1), ())
    assert "have no labels, so the predicted class of each was audited" in page.text


def test_the_same_audit_gives_the_same_bytes(audit, tmp_path):
    first, second = (report(tmp_path / name, *audit)[1] for name in ("one", "two"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_pictures_that_have_gone_are_listed(tmp_path):
    found, screening, findings = whole(tmp_path / "pictures")
    found.samples[16].path.unlink()
    found.samples[17].path.write_bytes(b"no picture")
    page, files = report(tmp_path / "report", found, screening, findings)
    assert len(page.all("img")) == 4 * 3 + 6 * 2 + 5
    assert page.text.count("cannot be read any more") == 2
    problems = json.loads(files[1].read_text())["problems"]
    assert [p["sample"] for p in problems] == ["1/16.png", "1/17.png"]


def test_no_picture_left_is_no_reason_to_fail(tmp_path):
    found, screening, findings = whole(tmp_path / "pictures")
    shutil.rmtree(tmp_path / "pictures")
    page, _ = report(tmp_path / "report", found, screening, findings)
    assert page.text.count("cannot be read any more") == 12
    assert "Mean relevance of carriers" in page.text


def test_a_finding_without_carriers_regions_or_effects_is_shown(audit, tmp_path):
    found, screening, _ = audit
    bare = finding(
        candidate(found, 1, 0, local=False), Verdict.NOT_ENOUGH, (), off_object=None, action=""
    )
    page, _ = report(tmp_path, found, screening, (bare,))
    assert "No picture is taken to show the cue." in page.text
    assert "Nothing was changed: no effect is known." in page.text
    assert "The cue lies nowhere in particular." in page.text


def test_proven_findings_come_first(audit, tmp_path):
    found, screening, (causal,) = audit
    quiet = finding(candidate(found, 1, 4, Channel.LATENT), Verdict.UNUSED)
    shared = finding(candidate(found, 0), Verdict.ASSOCIATIVE)
    page, _ = report(tmp_path, found, screening, (quiet, shared, causal))
    shown = [a["id"] for a in page.all("article")]
    assert shown == ["finding-1-relevance", "finding-0-relevance", "finding-1-latent"]


def test_copies_are_shown_once_and_labels_that_disagree_are_listed(tmp_path):
    found, screening, findings = whole(tmp_path / "pictures")
    originals = found.originals.copy()
    originals[17], originals[30] = 16, 2
    copied = replace(found, originals=originals)
    page, _ = report(tmp_path / "report", copied, screening, findings)
    names = [p["alt"] for p in page.all("img")]
    assert "1/16.png as the model sees it" in names
    assert "1/17.png as the model sees it" not in names
    assert "1 more, copies among them" in page.text
    assert "same picture in two classes" in page.text
    assert "class 1, and as 0/2.png class 0" in page.text


def test_classes_without_pictures_are_listed(tmp_path):
    found = evidence(tmp_path, names=("class 0", "class 1", "never seen"))
    page, _ = report(tmp_path / "report", found, Screening((score(0, 0.5),), 0.1), ())
    assert "never seenclass without pictures" in page.text


def test_names_are_escaped_everywhere(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}"
    found, screening, findings = whole(tmp_path / "pictures")
    samples = tuple(replace(s, name=f"{evil}{i}") for i, s in enumerate(found.samples))
    found = replace(found, samples=samples, class_names=(evil, evil + "1"))
    bad = replace(findings[0], action=evil, notes=(evil,))
    problems = (Problem(evil, evil, evil),)
    about = {evil: evil, "model": evil}
    page, _ = report(tmp_path / "report", found, screening, (bad,), about=about, problems=problems)
    assert page.errors == []
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 6 * 3 + 6 * 2 + 5
    assert not any(key.startswith("on") for _, a in page.elements for key in a)
    assert "{{ 7 * 7 }}" in page.text
    assert evil in page.text


def many_classes(folder, count):
    found = evidence(folder, counts=(3,) * count)
    findings = [finding(candidate(found, label, 2)) for label in range(count)]
    return found, Screening((), 0.1), findings


def test_more_than_fifty_classes_get_a_page_each(tmp_path):
    names = ["a/b", "A_b", *(f"class {c}" for c in range(49))]
    found, screening, findings = many_classes(tmp_path / "pictures", 51)
    found = replace(found, class_names=tuple(names))
    page, files = report(tmp_path / "report", found, screening, findings)
    assert page.all("img") == []
    links = [a["href"] for a in page.all("a") if a["href"].startswith("classes/")]
    assert len(links) == len(files) - 3 == 51
    assert all((tmp_path / "report" / link.partition("#")[0]).is_file() for link in links)
    own = Page(files[3].read_text())
    assert own.errors == []
    assert len(own.all("article")) == 1
    assert len(own.all("img")) == 2 * 3 + 2 + 5
    # Decisions are taken in one place.
    assert own.all("fieldset") == []
    assert len(page.all("fieldset")) == 51

    page, files = report(tmp_path / "report", found, screening, findings[:50])
    assert len(files) == 3
    assert page.all("img")
    assert not (tmp_path / "report" / "classes").exists()


def test_a_page_that_would_grow_too_large_is_split(audit, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_MOST_BYTES", 1000)
    page, files = report(tmp_path, *audit)
    assert page.all("img") == []
    assert [file.name for file in files[3:]] == ["class_1.html"]


def test_pages_never_replace_a_folder_of_somebody_else(audit, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_MOST_BYTES", 1000)
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files but no classes\.json"):
        report(tmp_path, *audit)
    assert (tmp_path / "classes" / "mine.txt").read_text() == "mine"


def test_thumbnails_have_the_size_asked_for(audit, tmp_path):
    page, _ = report(tmp_path, *audit, thumbnails=32)
    assert {max(picture_of(p["src"]).size) for p in page.all("img")} == {32}
    with pytest.raises(InputError, match="thumbnails is 1000; give 32 to 256"):
        report(tmp_path, *audit, thumbnails=1000)


def test_without_a_preprocessing_the_page_says_that_it_assumes_one(audit, tmp_path):
    page, _ = report(tmp_path, *audit, preprocessing=None)
    assert "The model's preprocessing was not given" in page.text


def test_a_file_in_the_place_of_the_folder_is_refused(audit, tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(InputError, match="is a file, where the report's folder"):
        report(tmp_path / "report", *audit)
    assert (tmp_path / "report").read_text() == "mine"


def test_a_missing_jinja2_is_named_with_its_extra(audit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vimlrp\[audit\]'"):
        report(tmp_path, *audit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("decisions", [{"9-latent": "accept"}, {"1-relevance": "maybe"}])
def test_impossible_decisions_are_refused(decisions, audit, tmp_path):
    with pytest.raises(InputError, match="is none of accept, reject, open"):
        report(tmp_path, *audit, decisions=decisions)


def test_decisions_are_shown(audit, tmp_path):
    found, screening, (one,) = audit
    findings = (one, finding(candidate(found, 0)))
    decisions = {"1-relevance": "accept"}
    page, _ = report(tmp_path, found, screening, findings, decisions=decisions)
    checked = {a["name"]: a["value"] for a in page.all("input") if "checked" in a}
    assert checked == {"decision-1-relevance": "accept", "decision-0-relevance": "open"}
