"""Which calls the INT4 kernel serves, and how it is launched: data, tested without a GPU."""

from __future__ import annotations

from dataclasses import dataclass

# Cards with INT4 tensor cores; sm_90 emulates the instruction, sm_100 and newer lack it.
CAPABILITIES = ((8, 0), (8, 6), (8, 7), (8, 9))
MAX_HEAD_DIM = 128
KEY_BLOCKS = (64, 128)
# Registers per thread at which as many programs share a multiprocessor as fit without spilling, by
# (padded head dimension, key block): four, three, three; the last takes what it needs, for two.
# Read off the machine code for sm_86 and sm_89. Not timed: there was no such card.
REGISTERS = {(64, 64): 128, (64, 128): 168, (128, 64): 168, (128, 128): None}
# There 168 registers are a few too little.
UNCAPPED = ((8, 0), (8, 7), (9, 0))


@dataclass(frozen=True, slots=True)
class Int4Launch:
    """How the INT4 kernel is launched.

    Attributes:
        warps: of a program; each owns 16 query rows.
        stages: key blocks in shared memory at a time.
        max_registers: register cap per thread, None for the compiler's choice.
    """

    warps: int
    stages: int
    max_registers: int | None


def int4_serves(
    capability: tuple[int, int], head_dim: int, block: tuple[int, int] = (64, 64)
) -> bool:
    """Whether the INT4 kernel serves ``head_dim`` channels and this block on such a card."""
    return capability in CAPABILITIES and head_dim <= MAX_HEAD_DIM and block[1] in KEY_BLOCKS


def select_int4_launch(
    block: tuple[int, int], width: int, capability: tuple[int, int]
) -> Int4Launch:
    """The launch for a block and padded head dimension on a card of this compute capability."""
    query_block, key_block = block
    registers = REGISTERS[width, key_block]
    if capability in UNCAPPED and width == 128:
        registers = None
    return Int4Launch(min(query_block, 64) // 16, 2, registers)
