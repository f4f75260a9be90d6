"""The demo model's fixed vocabulary and its text encoding: one Hadamard row per word.

A word becomes a row of the 4096x4096 Sylvester-Hadamard matrix, so that any two words are
orthogonal and no text encoder has to be shipped. The order of the words in a prompt is kept in the
rows but has no meaning to the model, whose cross-attention sees a set.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "ring")
COLOURS = ("red", "yellow", "blue", "white", "purple")
DIRECTIONS = ("left", "right", "up", "down")
BACKGROUNDS = ("clouds", "wood", "stone", "grass", "sand", "brick")
CAMERAS = ("static", "pan-left", "pan-right", "pan-up", "pan-down", "zoom-in", "zoom-out")

# The index of a word is part of the trained file: append, never reorder.
WORDS = SHAPES + COLOURS + DIRECTIONS + BACKGROUNDS + CAMERAS
FILLERS = frozenset(
    ("a", "an", "the", "moving", "moves", "over", "on", "with", "camera", "and", "to", "of", "in")
)
ROWS = 16
TEXT_DIM = 4096
_INDEX = {word: index for index, word in enumerate(WORDS)}


def hadamard_rows(rows: Tensor) -> Tensor:
    """Rows of the Sylvester-Hadamard matrix of order 4096.

    Args:
        rows: integer tensor of any shape, values in 0..4095.

    Returns:
        float32 ``[*rows.shape, 4096]`` of +1 and -1: entry (i, j) is -1 to the number of bits that
        i and j have in common.
    """
    common = rows[..., None].long() & torch.arange(TEXT_DIM, device=rows.device)
    for shift in (8, 4, 2, 1):
        common = common ^ (common >> shift)
    return 1.0 - 2.0 * (common & 1).float()


def context_table(device: torch.device | str = "cpu") -> Tensor:
    """The context row of every id: float32 ``[len(WORDS) + 1, 4096]``, id 0 = no word = zeros."""
    table = hadamard_rows(torch.arange(len(WORDS) + 1, device=device))
    table[0] = 0
    return table


def word_id(word: str) -> int:
    """The id (1-based) of a vocabulary word.

    Raises:
        ValueError: The word is not in the vocabulary.
    """
    if word not in _INDEX:
        raise ValueError(f"word must be one of {', '.join(WORDS)}, got {word!r}; pick one of them")
    return _INDEX[word] + 1


def encode(prompt: str) -> tuple[Tensor, list[str]]:
    """Encode a prompt for the demo model.

    Args:
        prompt: words of the vocabulary in any order, case and punctuation ignored; filler words
            such as "a" or "camera" may stand between them. Empty means unconditional.

    Returns:
        The context, float32 ``[1, 16, 4096]`` with one row per known word and zeros after them, and
        the list of words that the model does not know (left out of the context).

    Raises:
        ValueError: The prompt holds more than 16 known words.
    """
    words = re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", prompt.lower())
    known = [word for word in words if word in _INDEX]
    unknown = [word for word in words if word not in _INDEX and word not in FILLERS]
    if len(known) > ROWS:
        raise ValueError(f"prompt must hold at most {ROWS} known words, got {len(known)}; cut it")
    context = torch.zeros(1, ROWS, TEXT_DIM)
    if known:
        context[0, : len(known)] = hadamard_rows(torch.tensor([word_id(word) for word in known]))
    return context, unknown
