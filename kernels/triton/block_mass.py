"""Block mass of whole attention maps, each in an order of its own, in one pass over Q.K.

One program owns a tile of query rows. It walks the key blocks and notes, per row, the log-sum-exp
over each of them; the row's own log-sum-exp, which turns these into probabilities, is known only at
the end. The notes of a tile (rows x key blocks) lie in a piece of memory that belongs to the
program, and are read back at once, out of the cache, and summed over the rows of each query block.
So Q.K is formed once instead of twice, and every sum has a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packed_layout import padded_head_dim
from .primitives import LOG2_E, head_offset, row_mask, stride_alignment

GATHER_ROWS = 64
# Notes of one step of the final sum; a program holds this many in registers.
NOTES_AT_ONCE = 4096
INTERPRETED_PROGRAMS = 3  # fewer than tiles, so that the interpreter sees programs go on


@dataclass(frozen=True, slots=True)
class MassLaunch:
    """How the kernel is launched.

    Attributes:
        query_tile: query rows of one program; the query block where that is larger.
        num_warps, num_stages: Triton's launch options.
        programs: programs per multiprocessor.
    """

    query_tile: int
    num_warps: int
    num_stages: int
    programs: int

    def programs_of(self, device: torch.device) -> int:
        """Programs of a launch that fills the device."""
        if device.type == "cpu":
            return INTERPRETED_PROGRAMS
        return self.programs * torch.cuda.get_device_properties(device).multi_processor_count


def select_mass_launch(width: int, device: torch.device) -> MassLaunch:
    """The launch for a padded head dimension; only Hopper's was timed."""
    capability = (9, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)
    # 99 KiB of shared memory on sm_86, sm_89 and sm_120: fewer tiles of keys in flight.
    roomy = capability in ((8, 0), (9, 0), (10, 0))
    if width > 128:
        return MassLaunch(64, 8, 2 if roomy else 1, 1)
    # Only Hopper's matrix instructions leave four warps the registers for 128 channels.
    warps = 4 if capability[0] == 9 or width <= 64 else 8
    return MassLaunch(64, warps, 3 if roomy else 2, 2)


@triton.jit(do_not_specialize=("S", "rows", "blocks"))
def gather_kernel(
    X, permutation, head_of_map, order_of_map, out, pooled,
    stride_h, stride_s, S, rows, blocks,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """Grid (rows / ROWS, maps): rows of X [H, S, HEAD_DIM] in a map's order, zeros behind the end.

    POOL: also the mean of each ROWS tokens, float32 [maps, blocks, D].
    """
    block = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    h = tl.load(head_of_map + n).to(tl.int64)
    order = tl.load(order_of_map + n).to(tl.int64)
    d = tl.arange(0, D)
    position = block * ROWS + tl.arange(0, ROWS)
    valid = position < S
    token = tl.load(permutation + order * S + position, mask=valid, other=0).to(tl.int64)
    X += head_offset(0, h, 0, stride_h, ALIGNMENT)
    mask = row_mask(valid, d, HEAD_DIM, D)
    x = tl.load(X + token[:, None] * stride_s + d[None, :], mask=mask, other=0.0)
    tl.store(out + (n * rows + position)[:, None] * D + d[None, :], x)
    if POOL:  # noqa: SIM102 - decided at compilation, the next line at run time
        if block < blocks:
            size = tl.minimum(S - block * ROWS, ROWS).to(tl.float32)
            mean = tl.sum(x.to(tl.float32), 0) / size
            tl.store(pooled + (n * blocks + block) * D + d, mean)


@triton.jit
def block_logsumexp(
    q, keys, first, end, scale_log2, D: tl.constexpr, BN: tl.constexpr, RAGGED: tl.constexpr
):  # fmt: skip
    """Base-2 log-sum-exp of each row over BN keys from ``first`` on; RAGGED: those before end."""
    n = first + tl.arange(0, BN)
    d = tl.arange(0, D)
    s = tl.dot(q, tl.load(keys + first * D + (tl.arange(0, BN)[None, :] * D + d[:, None])))
    if RAGGED:
        s = tl.where((n < end)[None, :], s, float("-inf"))
    top = tl.max(s, 1) * scale_log2
    return top + tl.log2(tl.sum(tl.exp2(s * scale_log2 - top[:, None]), 1))


@triton.jit(
    do_not_specialize=(
        "S", "rows", "tiles_of_map", "tiles", "programs", "query_blocks", "key_blocks",
        "notes_stride",
    )
)  # fmt: skip
def block_mass_kernel(
    Q, keys, permutation, head_of_map, order_of_map, notes, mass,
    stride_h, stride_s, S, rows, tiles_of_map, tiles, programs, query_blocks, key_blocks,
    notes_stride, scale_log2, weight,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, BM: tl.constexpr, PART: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """Grid (programs,): every programs-th tile of BM query rows, all maps in a row.

    ADD: adds to ``mass`` [maps, query_blocks, key_blocks], times ``weight``, instead of setting it.
    """
    program = tl.program_id(0)
    r = tl.arange(0, BM)
    d = tl.arange(0, D)
    notes += program.to(tl.int64) * notes_stride
    for tile in range(program, tiles, programs):
        n = (tile // tiles_of_map).to(tl.int64)
        first = (tile % tiles_of_map) * BM
        h = tl.load(head_of_map + n).to(tl.int64)
        order = tl.load(order_of_map + n).to(tl.int64)
        valid = first + r < S
        token = tl.load(permutation + order * S + first + r, mask=valid, other=0).to(tl.int64)
        q = tl.load(
            Q + head_offset(0, h, 0, stride_h, ALIGNMENT) + token[:, None] * stride_s + d[None, :],
            mask=row_mask(valid, d, HEAD_DIM, D), other=0.0,
        )  # fmt: skip
        head_keys = keys + n * rows * D
        row_max = tl.full([BM], -1e30, tl.float32)
        row_sum = tl.zeros([BM], tl.float32)
        whole = S // KEY_BLOCK
        for block in range(0, whole):
            note = block_logsumexp(
                q, head_keys, block * KEY_BLOCK, S, scale_log2, D, KEY_BLOCK, False
            )
            new_max = tl.maximum(row_max, note)
            row_sum = row_sum * tl.exp2(row_max - new_max) + tl.exp2(note - new_max)
            row_max = new_max
            tl.store(notes + block * BM + r, note)
        for block in tl.range(whole, key_blocks, num_stages=1):
            note = block_logsumexp(
                q, head_keys, block * KEY_BLOCK, S, scale_log2, D, KEY_BLOCK, True
            )
            new_max = tl.maximum(row_max, note)
            row_sum = row_sum * tl.exp2(row_max - new_max) + tl.exp2(note - new_max)
            row_max = new_max
            tl.store(notes + block * BM + r, note)
        total = tl.where(valid, row_max + tl.log2(row_sum), float("inf"))
        tl.debug_barrier()  # other threads of this program wrote what follows

        query_block = first // QUERY_BLOCK + tl.arange(0, BM // QUERY_BLOCK)
        size = tl.minimum(S - query_block * QUERY_BLOCK, QUERY_BLOCK).to(tl.float32)
        share = weight / tl.maximum(size, 1.0)
        out = mass + n * query_blocks * key_blocks + query_block[None, :] * key_blocks
        for begin in tl.range(0, key_blocks, PART, num_stages=1):
            column = begin + tl.arange(0, PART)
            exists = column < key_blocks
            note = tl.load(
                notes + column[:, None] * BM + r[None, :], mask=exists[:, None], other=float("-inf")
            )
            p = tl.exp2(note - total[None, :]).reshape([PART, BM // QUERY_BLOCK, QUERY_BLOCK])
            summed = tl.sum(p, 2) * share[None, :]
            at = out + column[:, None]
            stored = exists[:, None] & (query_block < query_blocks)[None, :]
            if ADD:
                summed += tl.load(at, mask=stored, other=0.0)
            tl.store(at, summed, mask=stored)
        tl.debug_barrier()  # the next tile writes the notes anew


def gather(
    x: Tensor, permutation: Tensor, head_of_map: Tensor, order_of_map: Tensor, rows: int,
    block: int, alignment: int, *, pool: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of x [H, S, D] in each map's order.

    Returns:
        [maps, rows, padded D] in the dtype of x, zeros behind the end, ``rows`` a multiple of
        ``block``; and the float32 [maps, blocks, padded D] mean of each block, 1 element without
        ``pool``.
    """
    _, tokens, head_dim = x.shape
    maps, width = len(head_of_map), padded_head_dim(head_dim)
    side = block if pool else min(GATHER_ROWS, block)
    blocks = triton.cdiv(tokens, block)
    out = x.new_empty(maps, rows, width)
    shape = (maps, blocks, width) if pool else (1,)
    pooled = x.new_empty(shape, dtype=torch.float32)
    gather_kernel[(rows // side, maps)](
        x, permutation, head_of_map, order_of_map, out, pooled,
        x.stride(0), x.stride(1), tokens, rows, blocks,
        HEAD_DIM=head_dim, D=width, ALIGNMENT=alignment, ROWS=side, POOL=pool,
        num_warps=4 if side * width <= 8192 else 8,
    )  # fmt: skip
    return out, pooled


def measure(
    q: Tensor, k: Tensor, permutation: Tensor, head_of_map: Tensor, order_of_map: Tensor,
    mass: Tensor, block: tuple[int, int], scale: float, weight: float, alignment: int,
    launch: MassLaunch, *, add: bool,
) -> None:  # fmt: skip
    """Writes ``weight`` times the block mass of one batch entry, or adds it.

    Args:
        q, k: [H, S, D], any strides with a contiguous last dimension.
        permutation: int32 [O, S].
        head_of_map, order_of_map: int32 [maps], which head and which row of ``permutation``.
        mass: float32 [maps, Qb, KVb].
        block: (query, key) tokens of a block.
        scale: softmax scale.
        weight: factor of the mass.
        alignment: what both head strides are multiples of, see ``head_offset``.
        launch: how the kernel is launched.
        add: add to ``mass``.
    """
    _, tokens, head_dim = q.shape
    maps, query_blocks, key_blocks = mass.shape
    rows = key_blocks * block[1]
    keys, _ = gather(
        k, permutation, head_of_map, order_of_map, rows, block[1], alignment, pool=False
    )
    tile = max(launch.query_tile, block[0])
    tiles_of_map = triton.cdiv(tokens, tile)
    programs = min(tiles_of_map * maps, launch.programs_of(q.device))
    notes = torch.empty(programs, key_blocks * tile, dtype=torch.float32, device=q.device)
    block_mass_kernel[(programs,)](
        q, keys, permutation, head_of_map, order_of_map, notes, mass,
        q.stride(0), q.stride(1), tokens, rows, tiles_of_map, tiles_of_map * maps, programs,
        query_blocks, key_blocks, notes.stride(0), scale * LOG2_E, weight,
        HEAD_DIM=head_dim, D=padded_head_dim(head_dim), ALIGNMENT=alignment,
        QUERY_BLOCK=block[0], KEY_BLOCK=block[1], BM=tile, PART=NOTES_AT_ONCE // tile, ADD=add,
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip


def kernel_block_mass(
    q: Tensor, k: Tensor, permutation: Tensor, block: tuple[int, int], head_of_map: Tensor,
    order_of_map: Tensor, scale: float, launch: MassLaunch | None = None,
) -> Tensor:  # fmt: skip
    """Block mass; arguments as ``kernels.block_mass_of`` resolves them."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    batch, _, tokens, head_dim = q.shape
    shape = (len(head_of_map), *(triton.cdiv(tokens, side) for side in block))
    mass = torch.empty(shape, dtype=torch.float32, device=q.device)
    launch = launch or select_mass_launch(padded_head_dim(head_dim), q.device)
    # Triton launches on the current device, which need not be that of q.
    with torch.cuda.device_of(q):
        for entry in range(batch):
            measure(
                q[entry], k[entry], permutation.contiguous(), head_of_map.contiguous(),
                order_of_map.contiguous(), mass, block, scale, 1 / batch,
                stride_alignment(head_dim, (q.stride(1), k.stride(1))), launch, add=entry > 0,
            )  # fmt: skip
    return mass
