"""The demo page: one HTML file that explains the runs of a report to someone new to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from .charts import Line, bar_chart, legend, line_chart, number
from .findings import findings, headline, run_of
from .settings import DENSITIES, Setting, plain, recipe

Report = Mapping[str, Any]
STYLE_FILE = Path(__file__).with_name("page.css")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its caption: a bold title and a note (either may be empty)."""

    uri: str
    title: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """Pictures that belong side by side: one prompt's videos, or one head's maps and masks."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Everything that the page shows beside the report's numbers.

    Attributes:
        clips: videos of one prompt and seed under several settings.
        heads: attention maps before and after reordering, and masks, of one head each.
        orders: how many heads chose each order, most frequent first.
    """

    clips: Sequence[Strip] = ()
    heads: Sequence[Strip] = ()
    orders: Mapping[str, int] = field(default_factory=dict)


def render(report: Report, gallery: Gallery) -> str:
    """Return the page as HTML with everything inside it."""
    frames, height, width = report["grid"]
    device = "a processor (CPU)" if report["device"] == "cpu" else escape(report["device"])
    tokens = frames * height * width
    cards = "".join(
        f"<li><b>{escape(value)}</b><span>{escape(text)}</span></li>"
        for value, text in headline(report)
    )
    sections = [
        f"""<h1>PARO Attention on a small video model</h1>
<p class="lead">A video model spends most of its time on attention: every patch of the video is
compared with every other patch. PARO sorts the patches so that those which matter to each other lie
side by side, computes only the blocks of the comparison table that matter, and computes them in
fewer bits.</p>
<p>This page shows what that does to the videos of a small model that comes with PARO Attention. It
was trained on moving shapes and runs here with {frames} × {height} × {width} = {tokens:,} patches
(“tokens”) on {device}.</p>
<ul class="cards">{cards}</ul>""",
        _clips(gallery.clips),
        _heads(gallery),
        _curves(report),
        _bits(report),
        '<h2>What to conclude</h2><ul class="findings">'
        + "".join(f"<li>{escape(text)}</li>" for text in findings(report))
        + "</ul>",
        _table(report),
        _method(report),
    ]
    style = STYLE_FILE.read_text(encoding="utf-8")
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>PARO Attention demo</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _figure(picture: Picture) -> str:
    alt = escape(" ".join(part for part in (picture.title, picture.note) if part), quote=True)
    return (
        f'<figure><img src="{picture.uri}" alt="{alt}" loading="lazy"><figcaption>'
        f"<b>{escape(picture.title)}</b><br>{escape(picture.note)}</figcaption></figure>"
    )


def _strip(strip: Strip, kind: str = "") -> str:
    pictures = "".join(_figure(picture) for picture in strip.pictures)
    return (
        f'<div class="clip {kind}"><h3>{escape(strip.title)}</h3>'
        f'<div class="row">{pictures}</div></div>'
    )


def _clips(clips: Sequence[Strip]) -> str:
    if not clips:
        return ""
    return (
        "<h2>Same prompt, same noise</h2><p>Left: full attention, every patch compared with every "
        "other. Beside it: what the same model makes of the same starting noise when only a part "
        "of the comparison table is computed. PSNR says how close a video is to full attention's: "
        "at 40 dB hardly anyone sees a difference, at 20 dB it is another video of the same thing."
        f'</p><div class="clips">{"".join(_strip(clip) for clip in clips)}</div>'
    )


def _heads(gallery: Gallery) -> str:
    if not gallery.heads:
        return ""
    total = sum(gallery.orders.values())
    bars = bar_chart([(name, count) for name, count in gallery.orders.items()])
    return (
        "<h2>Why the order matters</h2><p>Each picture is one head’s table of comparisons: rows "
        "ask, columns answer, bright cells matter. In the model’s own order (frame by frame, line "
        "by line) neighbours in the video lie far apart in the table, and the bright cells form "
        "stripes. After reordering they form blocks, and blocks are what a graphics card can "
        "compute or skip. The mask (amber = computed) was fixed beforehand, from other prompts."
        f'</p><div class="heads">{"".join(_strip(s, "maps") for s in gallery.heads)}</div>'
        f'<p class="small">An order such as “8x2x4” lays the video out in boxes of 8 frames × 2 '
        f"lines × 4 columns of patches; one such as “HWF” takes all frames of a patch first, "
        f'then goes along the width, then down the height.</p><div class="panel"><h3>Orders '
        f"chosen by the {total} heads</h3>{bars}"
        "</div>"
    )


def _series(report: Report, field_name: str) -> list[Line]:
    """The four methods that the curves compare, each with the runs that the report has."""
    families = [
        ("own order, the rest dropped", 0, lambda d: plain(d)),
        ("reordered, the rest dropped", 1, lambda d: plain(d, orders="tiles")),
        ("reordered, the rest pooled", 2, lambda d: plain(d, orders="tiles", tail=True)),
        ("whole recipe", 3, lambda d: recipe(d)),
    ]
    lines = []
    for label, colour, make in families:
        points = []
        for density in DENSITIES:
            run = run_of(report, make(density))
            if run is not None and run[field_name] is not None:
                points.append((density, run[field_name]))
        if points:
            lines.append(Line(label, points, colour))
    return lines


def _curves(report: Report) -> str:
    charts = [
        ("step_error", "step error (lower is better)", True),
        ("psnr_db", "PSNR of the video, dB (higher is better)", False),
        ("recall", "recall (higher is better)", False),
    ]
    drawn, key = [], ""
    for name, label, from_zero in charts:
        lines = _series(report, name)
        if lines:
            key = key or legend(lines)
            chart = line_chart(lines, "density", label, from_zero=from_zero)
            drawn.append(f"<figure><h3>{escape(label[0].upper() + label[1:])}</h3>{chart}</figure>")
    if not drawn:
        return ""
    return (
        "<h2>How much may be left out</h2><p>Density is the part of the table that is computed: "
        "0.3 means 30 %. All points here compute in 16 bits, without dense warm-up. The whole "
        "recipe is reordering, a pooled stand-in for each skipped block, one budget that all heads "
        "share, and a larger part of it for the noisy first steps, where the video is decided.</p>"
        f'{key}<div class="charts">{"".join(drawn)}</div>'
    )


def _bits(report: Report) -> str:
    panels = []
    for title, make in (
        ("Whole recipe at density 0.3", lambda q, p: recipe(0.3, qk_bits=q, pv_bits=p)),
        ("Whole recipe at density 0.5", lambda q, p: recipe(0.5, qk_bits=q, pv_bits=p)),
    ):
        bars = []
        for q, p in ((16, 16), (8, 8), (8, 4), (4, 8), (4, 4)):
            run = run_of(report, make(q, p))
            if run is not None:
                bars.append((f"{q} bits × {p} bits", run["step_error"]))
        if len(bars) > 1:
            panels.append(f'<div class="panel"><h3>{title}: step error</h3>{bar_chart(bars)}</div>')
    if not panels:
        return ""
    return (
        "<h2>How many bits</h2><p>The first number is for comparing the patches (Q·K), the second "
        "for mixing their contents (P·V). Fewer bits mean faster arithmetic on cards that have it."
        f'</p><div class="two">{"".join(panels)}</div>'
    )


def _table(report: Report) -> str:
    names = ("orders", "rest", "budget", "shares", "warm-up", "density", "bits")
    measures = ("PSNR dB", "SSIM", "cos", "recall", "layer err", "step err", "seconds")
    head = "".join(f"<th>{name}</th>" for name in (*names, *measures))
    rows = "".join(_row(run) for run in report["runs"])
    return (
        f"<h2>All {len(report['runs'])} runs</h2>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
        f'<p class="small">The same numbers are in <code>report.json</code> beside this page. Rows '
        "in bold are the whole recipe. Shares: whether all steps have the same density, or noisy "
        "ones more of it.</p>"
    )


def _row(run: Mapping[str, Any]) -> str:
    psnr = "identical" if run["psnr_db"] is None else f"{run['psnr_db']:.1f}"
    cells = [
        {"fhw": "own", "axes": "axes", "tiles": "axes + tiles"}[run["orders"]],
        "pooled" if run["tail"] else "dropped",
        {"head": "per head", "global": "shared"}[run["budget"]],
        "by noise" if run["shares"] else "even",
        f"{run['warmup']:.0%}",
        number(run["density"]),
        f"{run['qk_bits']}/{run['pv_bits']}",
        psnr,
        f"{run['ssim']:.4f}",
        f"{run['cossim']:.4f}",
        f"{run['recall']:.3f}",
        f"{run['layer_error']:.4f}",
        f"{run['step_error']:.4f}",
        f"{run['seconds']:.1f}",
    ]
    names = Setting.__dataclass_fields__
    ours = Setting(**{name: run[name] for name in names}).is_recipe
    row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr class="ours">{row}</tr>' if ours else f"<tr>{row}</tr>"


def _method(report: Report) -> str:
    calibration = report["calibration"]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.get("notes", ()))
    terms = {
        "density": "computed blocks / all blocks, counted on the masks that the kernel executed, "
        "averaged over heads and over the steps that are not dense",
        "recall": "share of the attention probability that lies in computed blocks",
        "step error": "relative error of the model’s guided prediction, when it is given exactly "
        "the state that full attention has at that step",
        "layer error": "relative error of the attention output of one layer and head, on full "
        "attention’s own input",
        "PSNR, SSIM, cos": "how close the decoded video is to full attention’s video of the same "
        "prompt and noise",
        "warm-up": "share of the steps that run with full attention first",
    }
    words = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in terms.items())
    return (
        "<h2>How it was measured</h2>"
        f"<p>Everything that PARO fixes beforehand came from {calibration['prompts']} prompts "
        f"(calibration took {calibration['seconds']:.0f} s). The videos above and all numbers are "
        f'of other prompts and other noise.</p><ul class="findings small">{notes}</ul>'
        f"<details><summary>The words on this page</summary><dl>{words}</dl></details>"
    )
