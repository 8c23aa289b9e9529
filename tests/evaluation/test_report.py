from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from discern.evaluation import measurement, report
from discern.evaluation.measurement import measure
from discern.evaluation.selection import Comparison
from discern.evaluation.verdict import judge
from tests.evaluation.test_evaluation import ODD, LinearModel, made_up

VOID = {"meta", "img", "link", "br", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a page holds."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def found():
    data = made_up(ODD, ["T <b>cells</b>", "B & C", "$x^2$"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "auc", lambda ours, real: 0.75)
        chosen = Comparison.choose(data.obs, ODD[2], ODD[:2], "celltype")
        return measure(LinearModel(data.n_vars, sorted(ODD)), data, chosen)


@pytest.fixture
def page(found, monkeypatch):
    monkeypatch.setattr(report, "umap_coordinates", lambda values: np.asarray(values)[:, :2])
    return report.render(found)


def test_the_page_is_well_formed_and_asks_for_nothing(page):
    parsed = Page(page)

    assert page.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    loaded = [value for _, name, value in parsed.attributes if name in ("src", "href", "srcset", "data")]
    assert loaded
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import", page)
    assert ("meta", "content", "width=device-width, initial-scale=1") in parsed.attributes


def test_pictures_are_inside_and_have_a_text(page):
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)">', page)

    assert len(pictures) == page.count("<img")
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data, _ in pictures)
    captions = [text for _, text in pictures]
    assert {"as measured", "latent code", "reconstructed"} <= set(captions)
    assert any(text.startswith("B &amp; C, as measured: r = ") for text in captions)


def test_names_from_files_are_shown_not_interpreted(page):
    text = Page(page).text

    assert "alert" in text
    for name in [*ODD, "T <b>cells</b>", "B & C", "$x^2$"]:
        assert name in text
    assert "<script" not in page
    assert "cells</b>" not in page.replace("cells&lt;/b&gt;", "")
    assert "$held_out" not in page


def test_the_tables_show_the_figures(found, page):
    text = Page(page).text

    for source in found.result.sources.values():
        for values in source.methods.values():
            assert f"{values.mean_r:.3f}" in text
            assert f"{values.auc:.3f}" in text
    assert "its validation cells, the experiment having no test cells" in text
    assert "input_ds.split.test_cells" in text, "20 cells are few"


def test_verdict_pictures_and_tables_stand_in_this_order(found, page):
    places = [page.index(part) for part in ('<section class="verdict', "<summary>The rule", "<img", "<h2>All figures")]

    assert places == sorted(places)
    assert "<table" not in page[: places[2]]
    assert "<img" not in page[places[3] :]
    for source in found.result.sources:
        assert judge(found.result.sources[source], found.result.reference).reason in Page(page).text


def test_detection_of_estimates_is_not_shown(found, page):
    cells = re.findall(r"<tr><th scope=\"row\">r of detection</th>(.*?)</tr>", page)

    assert len(cells) == len(found.result.sources)
    assert all(re.findall(r"<td[^>]*>(.*?)</td>", row)[2] == "-" for row in cells)


def test_no_table_has_more_columns_than_a_phone_shows(page):
    for table in re.findall(r"<table>.*?</table>", page):
        assert 2 <= table.partition("</tr>")[0].count("<th ") <= 5
