"""The demo page says what its report says, and stands alone."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from paro_attention.demo.charts import Line, line_chart, number, ticks
from paro_attention.demo.findings import findings, headline, run_of
from paro_attention.demo.page import Gallery, Picture, Strip, render
from paro_attention.demo.pictures import attention_uri, mask_uri, video_uri
from paro_attention.demo.settings import Setting, full_table, plain, quick_table, recipe

VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Checks that elements are closed in order, and collects every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        pass  # SVG shapes close themselves

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_run(setting: Setting, error: float, psnr: float | None) -> dict:
    names = Setting.__dataclass_fields__
    return {name: getattr(setting, name) for name in names} | {
        "block": [64, 64],
        "psnr_db": psnr,
        "ssim": 0.9,
        "cossim": 0.99,
        "recall": 0.8,
        "layer_error": 0.1,
        "step_error": error,
        "seconds": 1.25,
    }


def make_report(table: tuple[Setting, ...]) -> dict:
    runs = [
        make_run(s, 0.01 * (index + 1), None if s.density == 1 else 30.0 + index)
        for index, s in enumerate(table)
    ]
    return {
        "device": "cpu",
        "grid": [4, 16, 16],
        "calibration": {"prompts": 4, "seconds": 12.0},
        "runs": runs,
        "notes": ["a <note>"],
    }


@pytest.mark.parametrize("table", [full_table(), quick_table(), (plain(0.3),)])
def test_page_is_well_formed_and_self_contained(table):
    video = video_uri(torch.rand(3, 8, 8, 3))
    strips = [Strip("a “prompt” & more", [Picture(video, "full attention", "<all>")])]
    heads = [Strip("head", [Picture(mask_uri(torch.eye(4) > 0), "mask")])]
    page = render(make_report(table), Gallery(strips, heads, {"8x2x4": 3, "HWF": 1}))
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert all(address.startswith("data:") for address in balance.addresses)
    assert "a &lt;note&gt;" in page and "&lt;all&gt;" in page


def test_findings_state_the_change_between_two_runs():
    report = make_report(())
    report["runs"] = [make_run(plain(0.3), 0.08, 20.0), make_run(recipe(0.3), 0.02, 30.0)]
    text = "\n".join(findings(report))
    assert "0.0800 → 0.0200 (-75%)" in text
    assert "20.0 dB → 30.0 dB" in text
    assert ("−75 %", "step error against plain skipping, same 30 %, in 16 bits") in headline(report)


def test_run_of_needs_every_field_to_agree():
    report = make_report((recipe(0.3),))
    assert run_of(report, recipe(0.3)) is report["runs"][0]
    assert run_of(report, recipe(0.3, warmup=0.2)) is None


def test_line_chart_rejects_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one point"):
        line_chart([Line("empty", [], 0)], "x", "y")


@pytest.mark.parametrize(("low", "high"), [(0, 0.0371), (18.2, 36.4), (0.5, 0.5), (0, 1)])
def test_ticks_cover_the_range_in_equal_steps(low, high):
    values = ticks(low, high)
    steps = {round(b - a, 9) for a, b in pairwise(values)}
    assert values[0] <= low and values[-1] >= high - 1e-9 and len(steps) == 1
    assert len(values) <= 8


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.3, "0.3"), (12.345, "12.3"), (0.01234, "0.0123"), (120, "120")]
)
def test_number_is_short(value, text):
    assert number(value) == text


def test_attention_picture_takes_any_square_map():
    for side in (5, 256, 400):
        mass = torch.softmax(torch.randn(side, side), dim=-1)
        assert attention_uri(mass, 64).startswith("data:image/png;base64,")
