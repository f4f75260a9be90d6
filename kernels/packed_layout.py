"""Where the tokens of a joint sequence lie once the kernels have packed them into blocks. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MIN_PADDED_HEAD_DIM = 64


def padded_head_dim(head_dim: int) -> int:
    """Channels of a row inside the kernels: a power of two that holds ``head_dim``."""
    return max(MIN_PADDED_HEAD_DIM, 1 << (head_dim - 1).bit_length())


def low_tail(qk_bits: int, pv_bits: int) -> bool:
    """Whether the tail's pooled keys have 8 bits, and its values as many as the grid's.

    It is then computed as the grid's keys are, from the same Q. 4-bit values are relative to the
    pooled ones, which stay in 16 bits, and so do the keys beside them.
    """
    return qk_bits == 8 and pv_bits != 4


def pooled_tile(key_block: int, head_dim: int) -> int:
    """Pooled rows that an 8-bit tail quantises together, and with 8-bit values computes together.

    Narrow key blocks have many pooled rows, so that their tail takes wider tiles than they do; rows
    of more than 128 channels leave no room for it.
    """
    return key_block if padded_head_dim(head_dim) > 128 else max(key_block, 128)


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Positions of grid and extra tokens in the kernels' order.

    Grid tokens lie at [0, grid_tokens) in the head's order, extra tokens at [extra_start,
    extra_start + extra tokens); what lies between them is holes, so that no block holds both.

    Attributes:
        tokens: sequence length S, grid and extra tokens.
        grid_tokens: tokens that the block mask covers.
        extra_start: first position of the extra tokens, a multiple of both block sides.
        rows: positions of the stored tensors, whole key blocks and whole query tiles.
        key_blocks: key blocks of the grid; the last may be ragged.
        stored_blocks: key blocks of the stored tensors, those of the extra tokens included.
    """

    tokens: int
    grid_tokens: int
    extra_start: int
    rows: int
    key_blocks: int
    stored_blocks: int

    @classmethod
    def of(cls, tokens: int, grid_tokens: int, block: tuple[int, int]) -> PackedLayout:
        side = max(block)
        extra_start = _round_up(grid_tokens, side)
        end = extra_start + tokens - grid_tokens
        key_blocks = -(-grid_tokens // block[1])
        return cls(
            tokens=tokens,
            grid_tokens=grid_tokens,
            extra_start=extra_start,
            rows=_round_up(end, side),
            key_blocks=key_blocks,
            stored_blocks=-(-end // block[1]) if tokens > grid_tokens else key_blocks,
        )


def _round_up(count: int, side: int) -> int:
    return -(-count // side) * side
