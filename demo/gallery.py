"""Which pictures the page shows: videos side by side, and heads before and after reordering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..calibration import Plan, PlanRuntime, TokenGrid
from ..calibration.metrics import recall
from ..calibration.token_order import grid_permutation
from .experiment import Experiment, Sampled
from .findings import run_of
from .measure import Probe, TestMass
from .page import Picture, Strip
from .pictures import attention_uri, comparison, mask_uri, video_uri
from .settings import Setting, plain

CLIPS = 4
COMPARED = ("whole recipe, 30 %, 8 bits", "whole recipe, 10 %", "plain skipping, 30 %")
COMPARED_ROWS = 2
HEADS = 6
CELLS = 256
MASK_DENSITIES = (0.3, 0.1)
PICTURE_PIXELS = 256


def clip_strips(
    experiment: Experiment,
    expected: Tensor,
    sampled: Mapping[str, Sampled],
    runs: Sequence[Mapping[str, Any]],
    shown: Sequence[tuple[str, Setting]],
) -> list[Strip]:
    """Return the first test videos under full attention and under each shown setting.

    Args:
        expected: [N, F, H, W, 3], full attention's videos.
        sampled: what was sampled for the titles of `shown`; titles without a run are left out.
        runs: rows of the report, for the captions.
        shown: (title, setting) from left to right.
    """
    scale = max(1, PICTURE_PIXELS // expected.shape[-2])
    videos = {title: sampled[title].videos() for title, _ in shown if title in sampled}
    strips = []
    for index in range(min(CLIPS, len(expected))):
        pictures = [Picture(video_uri(expected[index], scale), "full attention", "100 %, 16 bits")]
        for title, setting in shown:
            run = run_of({"runs": runs}, setting)
            if title not in videos or run is None:
                continue
            error = (videos[title][index] - expected[index]).square().mean()
            decibels = "identical" if error == 0 else f"{float(-10 * error.log10()):.1f} dB here"
            picture = video_uri(videos[title][index], scale)
            pictures.append(Picture(picture, title, decibels))
        title = f"“{experiment.prompts[index]}”, seed {experiment.seeds[index]}"
        strips.append(Strip(title, pictures))
    return strips


def comparison_picture(expected: Tensor, sampled: Mapping[str, Sampled]) -> bytes:
    """Return a WebP of two test videos under full attention and under the settings of COMPARED."""
    titles = [title for title in COMPARED if title in sampled]
    videos = [sampled[title].videos() for title in titles]
    rows = [
        [expected[index], *(of_setting[index] for of_setting in videos)]
        for index in range(min(COMPARED_ROWS, len(expected)))
    ]
    return comparison(rows, ["full attention", *titles])


def attention_map(q: Tensor, k: Tensor, order: str, grid: TokenGrid) -> Tensor:
    """Return one head's attention map in an order, summed into at most 256 x 256 cells.

    Args:
        q, k: [S, D] in the model's order.
        order: name of the order to lay both out in.
        grid: the token grid, S tokens.
    """
    permutation = grid_permutation(order, grid).to(q.device)
    q, k = q[permutation].float(), k[permutation].float()
    p = torch.softmax(q @ k.T * q.shape[-1] ** -0.5, dim=-1)
    cells = min(CELLS, len(p))
    pooled = F.adaptive_avg_pool2d(p[None, None], cells)[0, 0]
    return pooled * (len(p) / cells)


def head_strips(
    probes: Sequence[Probe],
    runtime: PlanRuntime,
    plan: Plan,
    experiment: Experiment,
    mass: TestMass,
) -> list[Strip]:
    """Return heads that reordering gathers most, at most one per layer, with maps and masks.

    Args:
        probes: the full-attention trajectory.
        runtime: of the plan with axis and tile orders.
        plan: that plan.
        experiment: what the probes are of.
        mass: the test videos' block mass in the orders "fhw" and "tiles".
    """
    at = probes[len(probes) // 2]
    masks = {}
    for density in MASK_DENSITIES:
        ready = experiment.runtime(plan, plain(density, orders="tiles"))
        masks[density] = [ready.mask(layer, at.sigma).to_dense() for layer in range(len(at.inputs))]
    gains = []
    for layer in range(len(at.inputs)):
        own, ours = mass["fhw", at.step, layer], mass["tiles", at.step, layer]
        share = MASK_DENSITIES[0]
        gain = _best_recall(ours, share) - _best_recall(own, share)
        # A head that keeps the model's own order has nothing to show.
        kept = torch.tensor([name == "FHW" for name in runtime.orders(layer)], device=gain.device)
        gain = gain.masked_fill(kept, -1.0)
        head = int(gain.argmax())
        if not kept[head]:
            gains.append((float(gain[head]), layer, head))
    strips = []
    for _, layer, head in sorted(sorted(gains, reverse=True)[:HEADS], key=lambda g: g[1]):
        q, k, _ = at.inputs[layer]
        order = runtime.orders(layer)[head]
        before = attention_map(q[0, head], k[0, head], "FHW", runtime.grid)
        after = attention_map(q[0, head], k[0, head], order, runtime.grid)
        pictures = [
            Picture(attention_uri(before), "own order"),
            Picture(attention_uri(after), f"order {order}"),
        ]
        for density, of_layers in masks.items():
            kept = of_layers[layer][head]
            held = float(recall(mass["tiles", at.step, layer][head].to(kept.device), kept))
            note = f"holds {held:.0%} of the attention"
            pictures.append(Picture(mask_uri(kept), f"mask, {density:.0%}", note))
        strips.append(Strip(f"Layer {layer + 1}, head {head + 1}", pictures))
    return strips


def _best_recall(mass: Tensor, density: float) -> Tensor:
    """[H]: mass in the densest share of the blocks of each head."""
    flat = mass.flatten(1)
    kept = flat.topk(max(1, round(density * flat.shape[1])), sorted=False).values
    return kept.sum(1) / mass.shape[1]
