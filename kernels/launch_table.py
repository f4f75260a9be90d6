"""The launch table: tile, warps, stages and registers of the attention kernel, by card and call.

Data and their lookup, nothing else. Of the rows that serve a call the first is taken. Rows that
were searched on a card come first: ``benchmarks/launch_search.py`` writes them, with the speed that
it measured beside each. Behind them stand rules for everything else, chosen by registers and shared
memory as compiled. ``BLOCKS`` says which block was fastest at equal error; it is written by
``benchmarks/error_curve.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

ALL_BLOCKS = (32, 64, 128)
FULL = (0.0, 1.0)  # every density


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How the attention kernel is launched.

    Attributes:
        query_tile: query rows of one program; divides the query block.
        key_tile: keys of one step of its loop; divides the key block.
        num_warps, num_stages: Triton's launch options.
        max_registers: register cap per thread, None for the compiler's choice.
        tma: load keys and values by the tensor copy engine (sm_90 and newer).
        paired: two key blocks a step, with FP8 values.
        tail_rows: most pooled rows of one step of a tail whose values have 16 bits.
    """

    query_tile: int
    key_tile: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    tma: bool = False
    paired: bool = False
    tail_rows: int = 64


@dataclass(frozen=True, slots=True)
class LaunchRow:
    """One launch and the calls that it serves.

    Attributes:
        architectures: compute capabilities as in sm_90; () means all.
        head_dims: padded head dimensions.
        qk_bits, pv_bits: bits of the two products.
        query_blocks, key_blocks: sides of the block.
        densities: served densities, above the first and up to the second.
        launch: with the largest tiles; a smaller block's side is the tile itself.
        measured: (density, effective TFLOP/s of the kernel alone) where it was timed: 12 heads of
            32,768 tokens, sustained clocks; () where it was not.
    """

    architectures: tuple[int, ...]
    head_dims: tuple[int, ...]
    qk_bits: tuple[int, ...]
    pv_bits: tuple[int, ...]
    query_blocks: tuple[int, ...]
    key_blocks: tuple[int, ...]
    densities: tuple[float, float]
    launch: LaunchConfig
    measured: tuple[tuple[float, float], ...] = ()

    def serves(
        self,
        block: tuple[int, int],
        head_dim: int,
        qk_bits: int,
        pv_bits: int,
        capability: tuple[int, int],
        density: float,
    ) -> bool:
        architecture = capability[0] * 10 + capability[1]
        return (
            (not self.architectures or architecture in self.architectures)
            and head_dim in self.head_dims
            and qk_bits in self.qk_bits
            and pv_bits in self.pv_bits
            and block[0] in self.query_blocks
            and block[1] in self.key_blocks
            and self.densities[0] < density <= self.densities[1]
        )

    def launch_of(self, block: tuple[int, int]) -> LaunchConfig:
        """The launch for a block of (query, key) tokens."""
        launch = self.launch
        tile = min(launch.query_tile, block[0]), min(launch.key_tile, block[1])
        return replace(launch, query_tile=tile[0], key_tile=tile[1])


@dataclass(frozen=True, slots=True)
class BlockRow:
    """The block that reached an error of attention's output in the least time.

    Attributes:
        architecture: compute capability as in sm_90.
        error: mean relative error on the demo model's attention.
        block: (query, key) tokens.
        density: computed / all blocks at which it has that error.
        share: time of the call as a share of dense attention's.
    """

    architecture: int
    error: float
    block: tuple[int, int]
    density: float
    share: float


def launch_row(
    block: tuple[int, int],
    head_dim: int,
    qk_bits: int,
    pv_bits: int,
    capability: tuple[int, int],
    density: float = 1.0,
) -> LaunchRow:
    """The first row of the table that serves a call.

    Args:
        block: (query, key) tokens of a block.
        head_dim: padded head dimension: 64, 128 or 256.
        qk_bits, pv_bits: 16, 8 or 4.
        capability: of the card, such as (9, 0).
        density: computed / all blocks, in (0, 1].

    Raises:
        LookupError: no row serves the call.
    """
    for row in ROWS:
        if row.serves(block, head_dim, qk_bits, pv_bits, capability, density):
            return row
    raise LookupError(
        f"no launch for blocks of {block[0]}x{block[1]}, head_dim {head_dim}, {qk_bits}/{pv_bits} "
        f"bits, sm_{capability[0]}{capability[1]}, density {density}"
    )


# fmt: off
# begin SEARCHED
SEARCHED: tuple[LaunchRow, ...] = (
    LaunchRow(
        architectures=(90,),
        head_dims=(128,),
        qk_bits=(8,),
        pv_bits=(8,),
        query_blocks=(64,),
        key_blocks=(128,),
        densities=(0.0, 1.0),
        launch=LaunchConfig(64, 128, 4, 2, max_registers=168, tma=True),
        measured=((1.0, 763), (0.5, 755), (0.2, 717), (0.1, 665)),
    ),
    LaunchRow(
        architectures=(90,),
        head_dims=(128,),
        qk_bits=(8,),
        pv_bits=(8,),
        query_blocks=(128,),
        key_blocks=(128,),
        densities=(0.0, 1.0),
        launch=LaunchConfig(64, 128, 4, 2, max_registers=168, tma=True),
        measured=((1.0, 814), (0.5, 814), (0.2, 767), (0.1, 710)),
    ),
    LaunchRow(
        architectures=(90,),
        head_dims=(128,),
        qk_bits=(8,),
        pv_bits=(8,),
        query_blocks=(64,),
        key_blocks=(64,),
        densities=(0.0, 1.0),
        launch=LaunchConfig(64, 64, 4, 2, max_registers=168, tma=True, paired=True),
        measured=((1.0, 752), (0.5, 753), (0.2, 703), (0.1, 622)),
    ),
    LaunchRow(
        architectures=(90,),
        head_dims=(128,),
        qk_bits=(8,),
        pv_bits=(8,),
        query_blocks=(128,),
        key_blocks=(64,),
        densities=(0.0, 1.0),
        launch=LaunchConfig(64, 64, 4, 2, max_registers=168, tma=True, paired=True),
        measured=((1.0, 782), (0.5, 772), (0.2, 709), (0.1, 632)),
    ),
    LaunchRow(
        architectures=(90,),
        head_dims=(128,),
        qk_bits=(8,),
        pv_bits=(16,),
        query_blocks=(64,),
        key_blocks=(128,),
        densities=(0.0, 1.0),
        launch=LaunchConfig(64, 128, 4, 2, tma=True),
        measured=((1.0, 646), (0.5, 611), (0.2, 575), (0.1, 519)),
    ),
    LaunchRow(
        architectures=(90,),
        head_dims=(128,),
        qk_bits=(16,),
        pv_bits=(16,),
        query_blocks=(64,),
        key_blocks=(128,),
        densities=(0.0, 0.707),
        launch=LaunchConfig(64, 64, 4, 3, tma=True),
        measured=((0.5, 482), (0.2, 457), (0.1, 423)),
    ),
    LaunchRow(
        architectures=(90,),
        head_dims=(128,),
        qk_bits=(16,),
        pv_bits=(16,),
        query_blocks=(64,),
        key_blocks=(128,),
        densities=(0.707, 1.0),
        launch=LaunchConfig(64, 64, 4, 3, max_registers=168, tma=True),
        measured=((1.0, 518),),
    ),
    LaunchRow(
        architectures=(90,),
        head_dims=(64,),
        qk_bits=(8,),
        pv_bits=(8,),
        query_blocks=(64,),
        key_blocks=(128,),
        densities=(0.0, 1.0),
        launch=LaunchConfig(64, 128, 4, 3, max_registers=168, tma=True),
        measured=((1.0, 577), (0.5, 555), (0.2, 527), (0.1, 489)),
    ),
)
# end SEARCHED

NARROW, WIDE, HOPPER = (64, 128), (256,), (90,)
ANY, ALL = (), ALL_BLOCKS
# Beyond Hopper none was timed: they rest on what was compiled, many query rows and programs
# on a multiprocessor first, and no spilled register but those that ``benchmarks/compile_report.py``
# knows. Shared memory stays below 99 KiB, or sm_80's 163, but for 256 channels with 16-bit keys.
RULES: tuple[LaunchRow, ...] = (
    # 4 bits. P and V of low bits are scaled per key block, so there the key tile is the block. A
    # cap of 255 keeps the compiler from spilling for the sake of one more program.
    LaunchRow(HOPPER, (64,), (16, 8), (4,), ALL, ALL, FULL, LaunchConfig(64, 128, 4, 2)),
    LaunchRow((80, 100), (64,), (16, 8, 4), (4,), ALL, (128,), FULL,
              LaunchConfig(32, 128, 4, 2, 255)),
    LaunchRow((80, 100), (64,), (4,), (8,), ALL, (128,), FULL, LaunchConfig(32, 128, 4, 2, 255)),
    LaunchRow(ANY, (64,), (16, 8, 4), (4,), ALL, (128,), FULL, LaunchConfig(32, 128, 4, 2)),
    LaunchRow(ANY, (64,), (4,), (8,), ALL, (128,), FULL, LaunchConfig(32, 128, 4, 2)),
    LaunchRow(ANY, (64,), (16, 8, 4), (4,), ALL, ALL, FULL, LaunchConfig(64, 64, 4, 2, 255)),
    LaunchRow(ANY, (64,), (4,), (16, 8), ALL, ALL, FULL,
              LaunchConfig(64, 64, 4, 2, 255, tail_rows=16)),
    LaunchRow((100,), (128,), (4,), (8, 4), ALL, ALL, FULL, LaunchConfig(32, 128, 4, 2)),
    LaunchRow((86, 87, 89), (128,), (4,), (4,), ALL, (128,), FULL, LaunchConfig(32, 128, 4, 2)),
    LaunchRow(ANY, (128,), (16, 8, 4), (4,), ALL, ALL, FULL,
              LaunchConfig(64, 128, 8, 2, tail_rows=16)),
    LaunchRow(ANY, (128,), (4,), (8,), ALL, ALL, FULL, LaunchConfig(64, 128, 8, 2, tail_rows=16)),
    LaunchRow(ANY, (128,), (4,), (16,), ALL, ALL, FULL, LaunchConfig(64, 64, 8, 2, tail_rows=16)),
    # 8-bit values on Hopper: 168 registers and two stages hold three programs on a multiprocessor.
    LaunchRow(HOPPER, NARROW, (16,), (8,), ALL, ALL, FULL, LaunchConfig(64, 128, 4, 2, tma=True)),
    LaunchRow(HOPPER, NARROW, (8,), (8,), ALL, (64,), FULL,
              LaunchConfig(64, 64, 4, 2, 168, tma=True, paired=True)),
    LaunchRow(HOPPER, NARROW, (8,), (8,), ALL, (32, 128), FULL,
              LaunchConfig(64, 128, 4, 2, 168, tma=True)),
    LaunchRow((80,), NARROW, (8,), (8,), ALL, ALL, FULL, LaunchConfig(64, 128, 4, 3)),
    LaunchRow((86, 87), (128,), (8,), (8,), ALL, (128,), FULL, LaunchConfig(64, 128, 8, 2)),
    LaunchRow(ANY, (128,), (16,), (8,), ALL, ALL, FULL, LaunchConfig(64, 128, 8, 2, tail_rows=16)),
    LaunchRow(ANY, NARROW, (16, 8), (8,), ALL, ALL, FULL, LaunchConfig(64, 128, 4, 2)),
    # 16-bit values. At 128 channels two programs only fit with little in flight: with 16-bit keys
    # few pooled rows a step and one stage, where products take longer than loads. Not on sm_80. At
    # 64 channels and 8-bit keys 32 pooled rows a step leave the registers for a third program.
    LaunchRow(HOPPER, NARROW, (16,), (16,), ALL, ALL, FULL, LaunchConfig(64, 64, 4, 3, tma=True)),
    LaunchRow(HOPPER, NARROW, (8,), (16,), ALL, ALL, FULL, LaunchConfig(64, 128, 4, 2, tma=True)),
    LaunchRow((80,), (64,), (16, 8), (16,), ALL, ALL, FULL, LaunchConfig(64, 64, 4, 2)),
    LaunchRow(ANY, (64,), (16,), (16,), ALL, ALL, FULL, LaunchConfig(64, 64, 4, 2)),
    LaunchRow(ANY, (64,), (8,), (16,), ALL, ALL, FULL, LaunchConfig(64, 64, 4, 2, tail_rows=32)),
    LaunchRow((80,), (128,), (16,), (16,), ALL, ALL, FULL, LaunchConfig(64, 64, 8, 2)),
    LaunchRow((100,), (128,), (16, 8), (16,), ALL, ALL, FULL, LaunchConfig(64, 32, 4, 2)),
    LaunchRow(ANY, (128,), (16,), (16,), ALL, ALL, FULL,
              LaunchConfig(64, 32, 4, 1, 255, tail_rows=16)),
    LaunchRow(ANY, (128,), (8,), (16,), ALL, ALL, FULL, LaunchConfig(64, 32, 4, 2)),
    # Rows of 256 channels. Only Hopper has more than 99 KiB of shared memory for sure, and 64 rows
    # suit its instructions; a 16-bit K of 128 keys leaves the others no second stage.
    LaunchRow(ANY, WIDE, (4,), (8, 4), ALL, ALL, FULL, LaunchConfig(32, 128, 8, 2, tail_rows=16)),
    LaunchRow(ANY, WIDE, (4,), (16,), ALL, ALL, FULL,
              LaunchConfig(32, 64, 8, 2, 255, tail_rows=16)),
    LaunchRow(ANY, WIDE, (8,), (4,), ALL, ALL, FULL, LaunchConfig(32, 128, 8, 2)),
    LaunchRow(HOPPER, WIDE, (16,), (4,), ALL, ALL, FULL, LaunchConfig(32, 128, 8, 2)),
    LaunchRow(HOPPER, WIDE, (16, 8), (8,), ALL, ALL, FULL, LaunchConfig(64, 128, 8, 2, tma=True)),
    LaunchRow(HOPPER, WIDE, (16, 8), (16,), ALL, ALL, FULL, LaunchConfig(64, 64, 8, 2, tma=True)),
    LaunchRow(ANY, WIDE, (16,), (8, 4), ALL, ALL, FULL, LaunchConfig(32, 128, 8, 1)),
    LaunchRow(ANY, WIDE, (16,), (16,), ALL, ALL, FULL, LaunchConfig(32, 32, 8, 2)),
    LaunchRow(ANY, WIDE, (8,), (8,), ALL, ALL, FULL, LaunchConfig(64, 128, 8, 1)),
    LaunchRow(ANY, WIDE, (8,), (16,), ALL, ALL, FULL, LaunchConfig(32, 64, 8, 2)),
)

# begin BLOCKS
BLOCKS: tuple[BlockRow, ...] = (
    BlockRow(
        architecture=90,
        error=0.03,
        block=(64, 64),
        density=0.5,
        share=0.405,
    ),
    BlockRow(
        architecture=90,
        error=0.04,
        block=(128, 128),
        density=0.449,
        share=0.325,
    ),
    BlockRow(
        architecture=90,
        error=0.06,
        block=(128, 128),
        density=0.331,
        share=0.248,
    ),
    BlockRow(
        architecture=90,
        error=0.08,
        block=(128, 128),
        density=0.243,
        share=0.192,
    ),
    BlockRow(
        architecture=90,
        error=0.12,
        block=(128, 128),
        density=0.134,
        share=0.122,
    ),
    BlockRow(
        architecture=90,
        error=0.16,
        block=(64, 128),
        density=0.1,
        share=0.099,
    ),
)
# end BLOCKS
# fmt: on

ROWS = (*SEARCHED, *RULES)
