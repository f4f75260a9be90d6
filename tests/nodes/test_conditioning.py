"""Conditioning of calibration runs."""

from __future__ import annotations

import torch
from paro_attention.nodes.conditioning import with_text, zero_negative


def test_lines_of_prompts_keep_the_start_image_but_not_the_text():
    image = torch.ones(1, 16, 2, 4, 4)
    base = [[torch.ones(1, 3, 8), {"concat_latent_image": image, "pooled_output": torch.ones(1)}]]
    text = [[torch.zeros(1, 5, 8), {"pooled_output": None}]]
    ((cond, extras),) = with_text(base, text)
    assert cond is text[0][0]
    assert extras["concat_latent_image"] is image
    assert extras["pooled_output"] is None
    assert with_text(None, text) is text


def test_a_missing_negative_is_zeros_of_the_same_shape():
    positive = [[torch.ones(1, 3, 8), {"pooled_output": torch.ones(1, 4), "frame_rate": 25}]]
    ((cond, extras),) = zero_negative(positive)
    assert cond.shape == (1, 3, 8) and not cond.any()
    assert not extras["pooled_output"].any() and extras["frame_rate"] == 25
    assert positive[0][0].all() and positive[0][1]["pooled_output"].all(), "left as it was"
