"""Words to context rows."""

from __future__ import annotations

import pytest
import torch
from paro_attention.demo.vocabulary import WORDS, context_table, encode, hadamard_rows, word_id


def test_rows_are_orthogonal() -> None:
    table = context_table()
    gram = table @ table.T
    expected = 4096 * torch.eye(len(WORDS) + 1)
    expected[0, 0] = 0
    assert torch.equal(gram, expected)


def test_rows_are_the_hadamard_matrix() -> None:
    small = hadamard_rows(torch.arange(4))[:, :4]
    expected = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    assert torch.equal(small, expected.float())


def test_words_keep_their_order_and_strangers_are_named() -> None:
    context, unknown = encode("A RED circle, moving pan-left over lava!")
    table = context_table()
    assert context.shape == (1, 16, 4096) and context.dtype == torch.float32
    for row, word in enumerate(("red", "circle", "pan-left")):
        assert torch.equal(context[0, row], table[word_id(word)])
    assert not context[0, 3:].any()
    assert unknown == ["lava"]


def test_empty_prompt_is_all_zeros() -> None:
    context, unknown = encode("")
    assert not context.any() and unknown == []


def test_too_many_or_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 16 known words, got 17"):
        encode("red " * 17)
    with pytest.raises(ValueError, match="got 'lava'"):
        word_id("lava")


def test_words_are_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS)
