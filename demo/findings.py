"""What the runs of a report say, in sentences that hold for the numbers they are made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .charts import number
from .settings import DENSITIES, WARMUP, Setting, plain, recipe

Run = Mapping[str, Any]


def run_of(report: Mapping[str, Any], setting: Setting) -> Run | None:
    """Return the report's run with this setting, None where it was not made."""
    names = Setting.__dataclass_fields__
    for run in report["runs"]:
        if all(run[name] == getattr(setting, name) for name in names):
            return run
    return None


def decibels(run: Run) -> str:
    return "identical videos" if run["psnr_db"] is None else f"{run['psnr_db']:.1f} dB"


def headline(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return up to four (number, explanation) pairs for the top of the page."""
    cards = []
    ours = run_of(report, recipe(0.3, qk_bits=8, pv_bits=8)) or run_of(report, recipe(0.3))
    base = run_of(report, plain(0.3))
    dense = run_of(report, plain(1.0, orders="tiles"))
    if ours:
        bits = f"{ours['qk_bits']} bits"
        cards.append(("30 %", f"of the comparison table computed, in {bits}"))
        cards.append((decibels(ours), "PSNR of those videos against full attention"))
    if ours and base:
        change = ours["step_error"] / base["step_error"] - 1
        cards.append(
            (
                f"{100 * change:+.0f} %".replace("-", "−"),
                "step error against plain skipping, same 30 %, in 16 bits",
            )
        )
    if dense:
        value = "0 error" if dense["psnr_db"] is None else decibels(dense)
        cards.append(
            (value, "with every block computed in 16 bits: our path itself adds only rounding")
        )
    return cards


def findings(report: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each comparison that the report's runs allow."""
    sentences = [
        *_exactness(report),
        *_reordering(report),
        *_parts(report),
        *_recipe(report),
        *_bits(report),
        *_warmup(report),
    ]
    if report["device"] == "cpu":
        sentences.append(
            "The seconds of this table are those of the plain PyTorch reference on a processor and "
            "say nothing about speed: the fast kernels need an NVIDIA GPU."
        )
    return sentences


def _exactness(report: Mapping[str, Any]) -> list[str]:
    run = run_of(report, plain(1.0, orders="tiles"))
    if run is None:
        return []
    return [
        f"With every block computed in 16 bits the reordered path gives full attention’s videos "
        f"({decibels(run)}): whatever differs elsewhere comes from what is left out or rounded."
    ]


def _reordering(report: Mapping[str, Any]) -> list[str]:
    sentences = []
    for density in DENSITIES:
        before, after = (
            run_of(report, plain(density)),
            run_of(report, plain(density, orders="tiles")),
        )
        if before and after:
            sentences.append(
                f"Reordering alone at density {number(density)}: recall "
                f"{before['recall']:.3f} → {after['recall']:.3f}, step error "
                f"{_change(before, after)}."
            )
    return sentences


def _parts(report: Mapping[str, Any]) -> list[str]:
    whole = run_of(report, recipe(0.3))
    if whole is None:
        return []
    sentences = []
    for without, part in (
        (recipe(0.3, tail=False), "the pooled tail"),
        (recipe(0.3, budget="head"), "the shared budget of the heads"),
        (recipe(0.3, shares=False), "the larger share of the noisy steps"),
        (recipe(0.3, orders="fhw"), "reordering"),
    ):
        run = run_of(report, without)
        if run:
            sentences.append(
                f"Taking {part} out of the recipe at density 0.3: step error "
                f"{_change(whole, run)}, PSNR {decibels(whole)} → {decibels(run)}."
            )
    return sentences


def _recipe(report: Mapping[str, Any]) -> list[str]:
    sentences = []
    for density in DENSITIES:
        before, after = run_of(report, plain(density)), run_of(report, recipe(density))
        if before and after:
            sentences.append(
                f"The whole recipe against plain skipping in the own order at density "
                f"{number(density)}: step error {_change(before, after)}, PSNR "
                f"{decibels(before)} → {decibels(after)}."
            )
    return sentences


def _bits(report: Mapping[str, Any]) -> list[str]:
    sentences = []
    for density in (0.5, 0.3):
        full = run_of(report, recipe(density))
        for bits in (8, 4):
            low = run_of(report, recipe(density, qk_bits=bits, pv_bits=bits))
            if full and low:
                sentences.append(
                    f"{bits} bits instead of 16 in the whole recipe at density {number(density)}: "
                    f"step error {_change(full, low)}, PSNR {decibels(full)} → {decibels(low)}."
                )
    return sentences


def _warmup(report: Mapping[str, Any]) -> list[str]:
    without, with_warmup = run_of(report, recipe(0.3)), run_of(report, recipe(0.3, warmup=WARMUP))
    if not without or not with_warmup:
        return []
    return [
        f"Running the first {WARMUP:.0%} of the steps with full attention: PSNR "
        f"{decibels(without)} → {decibels(with_warmup)} at density 0.3 of the remaining steps."
    ]


def _change(before: Run, after: Run) -> str:
    a, b = before["step_error"], after["step_error"]
    share = f" ({b / a - 1:+.0%})" if a > 0 else ""
    return f"{a:.4f} → {b:.4f}{share}"
