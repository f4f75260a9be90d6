"""The procedural clips show what their labels say."""

from __future__ import annotations

import pytest
import torch
from paro_attention.demo.scenes import (
    SceneLabels,
    _shape_distance,
    render,
    sample_labels,
    word_ids,
)
from paro_attention.demo.vocabulary import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    encode,
    word_id,
)


def labels_of(shape: int, colour: int, direction: int, background: int, camera: int) -> SceneLabels:
    return SceneLabels(
        *(torch.full((4,), i) for i in (shape, colour, direction, background, camera))
    )


def test_render_is_a_function_of_its_seed() -> None:
    labels = sample_labels(3, torch.Generator().manual_seed(0))
    a, b = (render(labels, 4, 32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert a.shape == (3, 4, 32, 32, 3) and a.dtype == torch.float32
    assert torch.equal(a, b)
    assert a.min() >= 0 and a.max() <= 1


@pytest.mark.parametrize("camera", range(len(CAMERAS)))
@pytest.mark.parametrize("direction", range(len(DIRECTIONS)))
def test_main_object_moves_as_named_under_every_camera(direction: int, camera: int) -> None:
    # A red disc on clouds: the redness of the picture follows the object.
    labels = labels_of(0, 0, direction, 0, camera)
    video = render(labels, 8, 48, torch.Generator().manual_seed(direction + 10 * camera))
    red = (video[..., 0] - video[..., 1:].amax(-1)).clamp_min(0) > 0.25
    weight = red.float() / red.float().sum((2, 3), keepdim=True)
    axis = torch.linspace(-1, 1, 48)
    x, y = (weight.sum(2) * axis).sum(-1), (weight.sum(3) * axis).sum(-1)
    moved = torch.stack([x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]], dim=1).median(0).values
    expected = torch.tensor([(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)][direction])
    assert (moved * expected).sum() > 0.5
    assert (moved * expected.flip(0)).abs().sum() < 0.4


def test_panning_right_moves_the_background_left() -> None:
    pan_right = CAMERAS.index("pan-right")
    labels = labels_of(0, 0, 2, BACKGROUNDS.index("stone"), pan_right)
    video = render(labels, 8, 64, torch.Generator().manual_seed(1)).mean(-1)
    strip = video[:, :, :8] - video[:, :, :8].mean((2, 3), keepdim=True)
    scores = {
        shift: (strip[:, 0, :, 16 + shift : 48 + shift] * strip[:, 1, :, 16:48]).sum().item()
        for shift in range(-12, 13)
    }
    assert max(scores, key=lambda shift: scores[shift]) > 0


def test_shapes_differ_and_fill_their_radius() -> None:
    axis = torch.linspace(-1.5, 1.5, 61)
    u, v = axis.expand(1, 1, 61, 61), axis[:, None].expand(1, 1, 61, 61)
    masks = [_shape_distance(torch.tensor([i]), u, v)[0, 0] < 0 for i in range(len(SHAPES))]
    for i, mask in enumerate(masks):
        area = mask.float().mean().item() * 9
        assert 0.8 < area < 3.2
        assert not mask[0].any() and not mask[:, 0].any()
        for other in masks[:i]:
            assert (mask ^ other).float().mean() > 0.04
    assert not masks[SHAPES.index("ring")][30, 30]


def test_prompts_and_word_ids_agree() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = sample_labels(8, generator)
    ids = word_ids(labels, generator)
    for prompt, row in zip(labels.prompts(), ids, strict=True):
        context, unknown = encode(prompt)
        assert unknown == []
        words = {word_id(w) for w in prompt.replace(",", "").split() if w in _ALL}
        assert words == set(row[row > 0].tolist())
        assert int(context.abs().sum(-1).gt(0).sum()) == 5


_ALL = set(SHAPES + COLOURS + DIRECTIONS + BACKGROUNDS + CAMERAS)


def test_dropout_keeps_shape_and_direction_unless_the_prompt_goes() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = sample_labels(64, generator)
    ids = word_ids(labels, generator, word_dropout=1.0)
    assert ((ids > 0).sum(1) == 2).all()
    assert not word_ids(labels, generator, prompt_dropout=1.0).any()


def test_too_small_clips_are_refused() -> None:
    labels = sample_labels(1, torch.Generator())
    with pytest.raises(ValueError, match="got 1 and 32"):
        render(labels, 1, 32, torch.Generator())
