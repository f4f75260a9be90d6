"""Which rows a program of the wide Hopper kernel holds, and which key blocks they step through."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .. import hopper_launch, hopper_wide_launch

QUERY_ROWS = gl.constexpr(hopper_launch.QUERY_ROWS)
KEYS = gl.constexpr(hopper_launch.STEP_KEYS)
GROUPS = gl.constexpr(hopper_wide_launch.GROUPS)
WORD_BITS = gl.constexpr(32)


@gluon.jit
def anew(x):
    """``x``, unknown to the compiler: what follows from it is worked out again, not kept."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def rows_of_tile(tile, h, lists, tokens, EXTRA: gl.constexpr):
    """(first row, whether of extra tokens, whether it exists, its list's bits, its number).

    ``tile``: of a head ``h``, those of its extra tokens first: they compute every block, which
    takes longest. ``lists``: (bits, query blocks, words of a list, tokens of a query block);
    ``tokens``: (S, of the grid, first position of the extra ones).
    """
    computed_bits, query_blocks, bit_words, query_block = lists
    S, grid_tokens, extra_start = tokens
    first_row = tile * QUERY_ROWS
    extra_rows = False
    exists = first_row < grid_tokens
    if EXTRA:
        extra_tiles = gl.cdiv(S - grid_tokens, QUERY_ROWS)
        extra_rows = tile < extra_tiles
        of_grid = first_row - extra_tiles * QUERY_ROWS
        exists = extra_rows | (of_grid < grid_tokens)
        first_row = gl.where(extra_rows, extra_start + first_row, of_grid)
    # One that does not exist reads any rows and writes none.
    first_row = gl.where(exists, first_row, 0)
    list_row = h * query_blocks + first_row // query_block
    if EXTRA:
        list_row = gl.where(extra_rows, 0, list_row)
    return first_row, extra_rows, exists, computed_bits + list_row * bit_words, list_row


@gluon.jit
def ends_of(tokens, key_blocks, EXTRA: gl.constexpr):
    """(whole blocks of the grid, behind the last whole one, its ragged block's keys, the other's).

    Blocks are counted through those of the extra tokens, which follow the grid's. 0 keys: no such
    block.
    """
    S, grid_tokens, _extra_start = tokens
    grid_keys = grid_tokens % KEYS
    whole_grid = grid_tokens // KEYS
    end = whole_grid
    extra_keys = 0
    if EXTRA:
        extra_keys = (S - grid_tokens) % KEYS
        end = key_blocks + (S - grid_tokens) // KEYS
    return whole_grid, end, grid_keys, extra_keys


@gluon.jit
def bits_below(end):
    """The bits of a word below ``end``, which may lie outside of it."""
    inside = (1 << (end & (WORD_BITS - 1))) - 1
    return gl.where(end >= WORD_BITS, -1, gl.where(end <= 0, 0, inside))


@gluon.jit
def words_of(
    which: gl.constexpr, first_tile, h, index, lists, tokens, key_blocks, EXTRA: gl.constexpr
):
    """(bits of a program's ``which``-th tile, union of all its tiles' bits).

    Bits say which of the whole blocks from ``32 * index`` on are computed.
    """
    first_tile = anew(first_tile)
    whole_grid, end, _grid_keys, _extra_keys = ends_of(tokens, key_blocks, EXTRA)
    first = index * WORD_BITS
    of_grid = bits_below(whole_grid - first)
    behind_grid = ~bits_below(key_blocks - first)  # pyright: ignore[reportOperatorIssue]
    of_extra = bits_below(end - first) & behind_grid
    own = 0
    union = 0
    for i in gl.static_range(GROUPS):  # pyright: ignore[reportGeneralTypeIssues]
        row = rows_of_tile(first_tile + i, h, lists, tokens, EXTRA)
        _first_row, extra_rows, exists, words, _list_row = row
        word = gl.load(words + index, mask=exists & (index < lists[2]), other=0)
        if EXTRA:
            word = gl.where(extra_rows, -1, word)
        word = word & of_grid
        if EXTRA:
            word = gl.where(exists, word | of_extra, 0)
        if i == which:
            own = word
        union = union | word
    return own, union


@gluon.jit
def number_of(bit):
    """The number of the one bit that is set."""
    return gl.inline_asm_elementwise(
        "bfind.u32 $0, $1;", "=r,r", [bit], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def biased_steps(
    which: gl.constexpr, first_tile, h, row_offsets, lists, tokens, key_blocks,
    TAIL: gl.constexpr, EXTRA: gl.constexpr,
):  # fmt: skip
    """(tiles of the tail, those and the grid's ragged block, those and the extra tokens' ragged
    block, whether the ``which``-th tile computes the tail, whether the grid's ragged block).

    Steps with biases, which are there where one of a program's tiles computes them.
    """
    _whole_grid, _end, grid_keys, extra_keys = ends_of(tokens, key_blocks, EXTRA)
    last = key_blocks - 1
    own_tail = False
    own_ragged = False
    any_tail = 0
    any_ragged = 0
    for i in gl.static_range(GROUPS):  # pyright: ignore[reportGeneralTypeIssues]
        row = rows_of_tile(first_tile + i, h, lists, tokens, EXTRA)
        _first_row, extra_rows, exists, words, list_row = row
        word = gl.load(words + last // WORD_BITS, mask=exists & (key_blocks > 0), other=0)
        count = gl.load(row_offsets + list_row + 1) - gl.load(row_offsets + list_row)
        tail = exists & (count < key_blocks)
        if EXTRA:
            word = gl.where(extra_rows, -1, word)
            tail = tail & (extra_rows == 0)
        ragged = (grid_keys > 0) & exists & (((word >> (last % WORD_BITS)) & 1) != 0)
        if i == which:
            own_tail = tail
            own_ragged = ragged
        any_tail = any_tail | tail.to(gl.int32)
        any_ragged = any_ragged | ragged.to(gl.int32)
    tail_tiles = 0
    if TAIL:
        tail_tiles = any_tail * gl.cdiv(key_blocks, KEYS)
    of_grid = tail_tiles + any_ragged
    steps = of_grid
    if EXTRA:
        steps += (extra_keys > 0).to(gl.int32)
    return tail_tiles, of_grid, steps, own_tail, own_ragged
