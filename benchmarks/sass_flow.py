"""Finds uniform registers that machine code may read before it writes them.

ptxas of CUDA 12.8 (Triton 3.6) merges a value that two loops compute into the preheader of the
first; where the second is reached without passing there, as when the first makes no step, it reads
what the register happened to hold. Such a value is the shared-memory descriptor of a matrix
product, and the card stops with an illegal address. The PTX is right, so that only the machine
code shows it: a forward data flow over what ``cuobjdump -sass`` prints, in which a register is
written at an address if every path to it writes the register (definite assignment, by the flow
of available expressions: Aho, Lam, Sethi and Ullman, Compilers, 9.2.6).

A write under a predicate counts as a write, since the reads then stand under the same predicate.
How many registers an operand takes is known for the instructions of ``_access``; any other operand
counts as its first register. A register that held another value before counts as written, so that
a merged value is found only where ptxas gave it a register that nothing wrote until then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import or_

# "/*00a0*/  @!UP0 ULDC.64 UR10, c[0x0][0x230] ;", on newer cards with scheduling before the ";".
_LINE = re.compile(
    r"^[ \t]+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+) +)?([A-Z][\w.]*) *(.*?) *(?: [&?][^;]*)?;", re.M
)
_PREDICATE = re.compile(r"!?U?P(?:\d|T|R)$")
_UNIFORM = re.compile(r"(\w*)(\[?)[^][,]*?\bUR(\d+)")
_TARGET = re.compile(r"0x([0-9a-f]+)$")
_FUNCTION = re.compile(r"^\s*Function : ", re.M)
# Beside comparisons: what reads its first operand, where others write it.
_READERS = ("B", "CALL", "JM", "NANOSLEEP", "UR2UP", "USETMAXREG")
_TABLES = ("BRX", "JMX")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a disassembly.

    ``guarded``: under a predicate. ``reads`` and ``writes``: uniform registers, bit n for URn.
    """

    address: int
    guarded: bool
    name: str
    operands: str
    reads: int
    writes: int

    def __str__(self) -> str:
        return f"0x{self.address:04x} {self.name} {self.operands}"


def undefined_uniforms(code: str) -> list[str]:
    """Reads of uniform registers that some path reaches without a write.

    ``code``: what ``cuobjdump -sass`` prints of a cubin. Returns for each instruction with such a
    read the registers, the address in its function and the instruction, in the order of the code.

    Raises:
        ValueError: no instruction in ``code``.
    """
    functions = [_parsed(part) for part in _FUNCTION.split(code)]
    if not any(functions):
        raise ValueError("code must be a disassembly, got no instruction; print it with -sass")
    return [found for function in functions if function for found in _undefined(function)]


def _undefined(function: list[Instruction]) -> Iterator[str]:
    blocks, edges = _flow(function)
    for start, written in sorted(_written_at_entry(blocks, edges).items()):
        for line in blocks[start]:
            missing = line.reads & ~written
            if missing:
                names = ", ".join(f"UR{n}" for n in range(missing.bit_length()) if missing >> n & 1)
                yield f"{names} at {line}"
            written |= line.writes


def _parsed(code: str) -> list[Instruction]:
    return [
        Instruction(int(address, 16), bool(guard), name, operands, *_access(name, operands))
        for address, guard, name, operands in _LINE.findall(code)
    ]


def _access(name: str, text: str) -> tuple[int, int]:
    """Uniform registers that an instruction reads and writes, as bits."""
    if "UR" not in text:
        return 0, 0
    family, *modifiers = name.split(".")
    setp = family.endswith("SETP")
    pair = "64" in modifiers or (setp and bool({"S64", "U64"} & set(modifiers)))
    operands = [part for part in text.split(", ") if not _PREDICATE.match(part)]
    reads = writes = 0
    for place, operand in enumerate(operands):
        for kind, bracket, number in _UNIFORM.findall(operand):
            first = int(number)
            if place == 0 and not bracket and not setp and not family.startswith(_READERS):
                width = 4 if "128" in modifiers else 2 if pair or "WIDE" in modifiers else 1
                writes |= _bits(first, width)
            elif kind == "gdesc" and family.endswith("GMMA"):
                # Descriptors of A and B; where A lies in registers, only the second is read.
                a_in_registers = operands[1].startswith("R")
                reads |= _bits(first + 2, 2) if a_in_registers else _bits(first, 4)
            elif family == "UTMALDG" and place == 0:
                # Shared address, barrier, and a coordinate for each dimension: ".2D".
                reads |= _bits(first, 2 + sum(int(m[0]) for m in modifiers if m[1:] == "D"))
            elif kind in ("gdesc", "desc") or family.startswith("UTMA"):
                reads |= _bits(first, 2)
            else:
                wide = pair or ("WIDE" in modifiers and place == 3)
                reads |= _bits(first, 2 if wide and not bracket else 1)
    return reads, writes


def _bits(first: int, number: int) -> int:
    return ((1 << number) - 1) << first


Blocks = dict[int, list[Instruction]]
Edges = dict[int, list[int]]


def _flow(function: list[Instruction]) -> tuple[Blocks, Edges]:
    """Blocks of a function by their addresses, and the blocks that may follow each."""
    starts = {function[0].address}
    for line, after in pairwise(function):
        if _ends(line) or _target(line) is not None or line.name.startswith(_TABLES):
            starts |= {after.address, _target(line)}
    blocks: Blocks = {}
    for line in function:
        if line.address in starts:
            block = blocks[line.address] = []
        block.append(line)
    edges = {}
    for start, after in zip(blocks, [*list(blocks)[1:], None], strict=True):
        last = blocks[start][-1]
        follow = (_target(last), None if _ends(last) else after)
        edges[start] = [address for address in follow if address in blocks]
    _add_tables(blocks, edges)
    return blocks, edges


def _target(line: Instruction) -> int | None:
    """Where a branch or a call goes; what is called goes on after the call."""
    found = _TARGET.search(line.operands)
    return int(found[1], 16) if found and line.name.startswith(("BRA", "CALL.REL")) else None


def _ends(line: Instruction) -> bool:
    """Whether the next instruction is not among those that may follow."""
    if line.name.startswith("BRA"):
        return not line.guarded and "," not in line.operands
    return not line.guarded and line.name.startswith(("EXIT", "RET", *_TABLES))


def _add_tables(blocks: Blocks, edges: Edges) -> None:
    """Adds the edges of jump tables, which lie outside the code: to what nothing else reaches."""
    while True:
        reached = _reached(edges, next(iter(blocks)))
        tables = [start for start in reached if blocks[start][-1].name.startswith(_TABLES)]
        missed = [
            start for start, block in blocks.items()
            if start not in reached and any(line.name not in ("NOP", "BRA") for line in block)
        ]  # fmt: skip
        if not tables or not missed:
            return
        entry = missed[0]
        for start in missed[1:]:  # What leads to it, unless on a loop with it, comes before it.
            if entry in _reached(edges, start) and start not in _reached(edges, entry):
                entry = start
        for table in tables:
            edges[table].append(entry)


def _reached(edges: Edges, first: int) -> set[int]:
    reached, waiting = {first}, [first]
    while waiting:
        new = set(edges[waiting.pop()]) - reached
        reached |= new
        waiting += new
    return reached


def _written_at_entry(blocks: Blocks, edges: Edges) -> dict[int, int]:
    """Registers, as bits, that every path to a block writes; only blocks that a path reaches."""
    first = next(iter(blocks))
    written, waiting = {first: 0}, [first]
    while waiting:
        start = waiting.pop()
        at_end = reduce(or_, (line.writes for line in blocks[start]), written[start])
        for after in edges[start]:
            known = at_end & written.get(after, at_end)
            if written.get(after) != known:
                written[after] = known
                waiting.append(after)
    return written
