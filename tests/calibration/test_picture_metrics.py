"""PSNR, SSIM and cosine similarity against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
from paro_attention.calibration import picture_metrics
from paro_attention.calibration.picture_metrics import cosine_similarity, psnr_db, ssim


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 8, 8, 3)
    b = torch.full_like(a, 0.1)
    assert psnr_db(a, b) == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(a, b, peak=2.0) == pytest.approx(20 + 20 * math.log10(2), abs=1e-4)


def test_identical_pictures():
    a = torch.rand(3, 16, 20, 3)
    assert psnr_db(a, a.clone()) is None
    assert ssim(a, a.clone()) == pytest.approx(1.0, abs=1e-6)
    assert cosine_similarity(a, a.clone()) == pytest.approx(1.0, abs=1e-12)


def test_psnr_is_taken_over_all_frames_at_once():
    a = torch.rand(4, 8, 8, 3)
    b = a.clone()
    b[0] += 0.2
    assert psnr_db(a, b) == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-4)


def test_ssim_of_flat_pictures_is_their_luminance_term():
    a, b = torch.full((1, 16, 16, 1), 0.4), torch.full((1, 16, 16, 1), 0.6)
    c1 = 0.01**2
    expected = (2 * 0.4 * 0.6 + c1) / (0.4**2 + 0.6**2 + c1)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-4)


def test_ssim_falls_with_noise_and_serves_small_pictures():
    a = torch.rand(1, 32, 32, 3)
    scores = [ssim(a, (a + s * torch.randn_like(a)).clamp(0, 1)) for s in (0.02, 0.1, 0.4)]
    assert scores[0] > scores[1] > scores[2]
    assert -1 <= ssim(torch.rand(5, 4, 3), torch.rand(5, 4, 3)) <= 1


def test_cosine_of_orthogonal_and_zero_tensors():
    assert cosine_similarity(torch.tensor([1.0, 0]), torch.tensor([0, 1.0])) == 0
    assert cosine_similarity(torch.zeros(3), torch.zeros(3)) == 1
    assert cosine_similarity(torch.zeros(3), torch.ones(3)) == 0


def test_long_videos_are_compared_in_parts(monkeypatch):
    a, b = torch.rand(3, 8, 8, 3), torch.rand(3, 8, 8, 3)
    whole = psnr_db(a, b), cosine_similarity(a, b)
    monkeypatch.setattr(picture_metrics, "_PART", 7)
    assert (psnr_db(a, b), cosine_similarity(a, b)) == pytest.approx(whole, rel=1e-12)


def test_bad_pairs_are_refused():
    with pytest.raises(ValueError, match=r"same shape.*\(4,\).*\(5,\)"):
        psnr_db(torch.zeros(4), torch.zeros(5))
    with pytest.raises(TypeError, match="a must be a real tensor, got list"):
        cosine_similarity([1.0], torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="peak"):
        psnr_db(torch.zeros(4), torch.ones(4), peak=0.0)
