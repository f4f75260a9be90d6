"""Pixels to latents and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paro_attention.demo.pixel_packing import pack, unpack


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_unpack_inverts_pack(batch: int, frames: int, height: int, width: int) -> None:
    video = torch.rand(batch, frames, 2 * height, 2 * width, 3)
    latent = pack(video)
    assert latent.shape == (batch, 16, frames, height, width)
    torch.testing.assert_close(unpack(latent), video)


def test_channels_are_pixels_of_a_square() -> None:
    video = torch.zeros(1, 1, 4, 6, 3)
    video[0, 0, 3, 4, 1] = 1  # row 3 = square 1, dy 1; column 4 = square 2, dx 0; green
    latent = pack(video)
    assert latent[0, 1 * 4 + 1 * 2 + 0, 0, 1, 2] == 1
    assert latent[:, :12].sum() == 2 - latent[:, :12].numel()
    assert (latent[:, 12:] == 0).all()


def test_unpack_clamps() -> None:
    assert unpack(torch.full((1, 16, 1, 1, 1), 3.0)).max() == 1
    assert unpack(torch.full((1, 16, 1, 1, 1), -3.0)).min() == 0


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="got \\[1, 3, 2, 4, 4\\]"):
        pack(torch.rand(1, 3, 2, 4, 4))
    with pytest.raises(ValueError, match="even height and width, got 3x4"):
        pack(torch.rand(1, 2, 3, 4, 3))
    with pytest.raises(TypeError, match="uint8"):
        pack(torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="got \\[1, 4, 2, 4, 4\\]"):
        unpack(torch.rand(1, 4, 2, 4, 4))
