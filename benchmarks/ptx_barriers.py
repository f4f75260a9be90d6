"""Finds barriers in shared memory that a kernel stores over without having invalidated them.

The compiler gives the bytes of a barrier (mbarrier) to other data behind its last use. As long as
it was not invalidated (``mbarrier.inval``), the hardware may still write its bits back there, over
what was stored: what another access to a valid barrier does is undefined (PTX ISA, "mbarrier").

The PTX is read and not the machine code, since what a thread adds to an address stands there in
few instructions, so that a tile is known with its whole width, not by the part of its address that
all threads share. An address is a sum and bits that may be set besides: 0x9800 and any of the bits
of 0xfc is a row of 64 floats; a bound on a thread's number in the guard of a store narrows them.
Behind that is a forward data flow: a barrier may be valid where some path initialises it and does
not invalidate it again. One thread may do either for all.

Seen are stores, atomics, matrix stores, asynchronous copies and another initialisation. Not seen:
an address with a part that is not known at compile time, as a stage of a ring, also where the same
register has a known one elsewhere; more than the first bytes of a bulk copy (TMA); whether the
threads wait for each other between invalidation and store; a store in a function that is called.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import reduce
from typing import NamedTuple

_NO_LINE = re.compile(r"//.*|^\s*\.(?:loc|file|section)\b.*", re.M)
_BEFORE = re.compile(r"[\s{}]*(?:([$\w]+):(?!:))?")
_LINE = re.compile(r"(?:@(!?%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_OPERANDS = re.compile(r"(?:\{[^}]*\}|\[[^]]*\]|[^,{\[])+")
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+)\s*)?\]$")
_COPY = r"cp\.async\.(?:c[ag]|bulk(?:\.tensor)?(?:\.\dd)?)\.shared"
_STORE = re.compile(rf"(?:st|atom|red)\.(?:\w+\.)*shared|stmatrix|{_COPY}")
_SIZE = re.compile(r"(?:\.v(\d))?\.[bfsu](\d+)$")
_FOLLOWED = (
    "mov.", "cvt.", "shfl.", "selp.", "and.", "or.", "xor.", "shl.", "shr.", "bfe.", "add.", "sub.",
)  # fmt: skip
_BARRIER = 8  # bytes
_ROW = 16  # bytes, of a matrix, and the fewest of a bulk copy
_WORD = (1 << 32) - 1


class Line(NamedTuple):
    """An instruction: "" or the predicate that it stands under, and its name with all suffixes."""

    guard: str
    name: str
    operands: list[str]


class Span(NamedTuple):
    """A sum, and the bits that may be set in what is added to it."""

    first: int
    bits: int


def reused_barriers(ptx: str) -> list[str]:
    """Barriers that may be valid where the kernel stores over them.

    ``ptx``: of a kernel, as Triton's compiler gives it. Returns for each such barrier its offset in
    shared memory, the number of stores and the first of them, in the order of the offsets.

    Raises:
        ValueError: no kernel in ``ptx``.
    """
    functions = re.split(r"\.(?:entry|func)\b", ptx)[1:]
    if not functions:
        raise ValueError("ptx must be a kernel's, got no .entry; give asm['ptx']")
    return [text for part in functions if "mbarrier.init" in part for text in _reused(part)]


def _reused(function: str) -> list[str]:
    lines, labels = _parsed(function)
    values = _Values(lines, function)
    places = {n: place for n, line in enumerate(lines) if (place := values.place(line))}
    valid = _valid_before(lines, labels, places)
    found = defaultdict(list)
    for number, (span, width) in places.items():
        for barrier in valid.get(number, ()):
            starts = range(barrier - width + 1, barrier + _BARRIER)
            reaches = any(s >= span.first and not (s - span.first) & ~span.bits for s in starts)
            if reaches and not lines[number].name.startswith("mbarrier.inval"):
                found[barrier].append(f"{lines[number].name} {', '.join(lines[number].operands)}")
    return [
        f"0x{barrier:x} by {len(stores)}, first {stores[0]}"
        for barrier, stores in sorted(found.items())
    ]


Places = dict[int, tuple[Span, int]]
Labels = dict[str, list[int]]


def _valid_before(lines: list[Line], labels: Labels, places: Places) -> dict[int, frozenset[int]]:
    """Offsets of the barriers that may be valid before each line that a path reaches."""
    valid = {0: frozenset[int]()}
    waiting = [0]
    while waiting:
        number = waiting.pop()
        after = valid[number]
        if number in places and lines[number].name.startswith("mbarrier"):
            barrier = {places[number][0].first}
            begins = lines[number].name.startswith("mbarrier.init")
            after = after | barrier if begins else after - barrier
        for follower in _followers(number, lines, labels):
            if follower not in valid or not after <= valid[follower]:
                valid[follower] = after | valid.get(follower, frozenset())
                waiting.append(follower)
    return valid


def _parsed(function: str) -> tuple[list[Line], Labels]:
    """Instructions, and for each label where it stands: those of inline code repeat themselves."""
    lines: list[Line] = []
    labels = defaultdict(list)
    for part in _NO_LINE.sub("", function[function.index("{") :]).split(";"):
        while (before := _BEFORE.match(part)) and before.end():
            if before[1]:
                labels[before[1]].append(len(lines))
            part = part[before.end() :]
        if found := _LINE.match(part):
            operands = [text.strip() for text in _OPERANDS.findall(found[3])]
            lines.append(Line(found[1] or "", found[2], operands))
    return lines, labels


def _followers(number: int, lines: list[Line], labels: Labels) -> list[int]:
    line = lines[number]
    goes_on = line.guard or not line.name.startswith(("bra", "brx", "ret", "exit", "trap"))
    follow = [number + 1] if goes_on else []
    if line.name.startswith("bra"):
        follow.append(min(labels[line.operands[-1]], key=lambda place: abs(place - number)))
    elif line.name.startswith("brx"):  # To any label: its table is not among the instructions.
        follow += [place for same in labels.values() for place in same]
    return [place for place in follow if place < len(lines)]


class _Values:
    """What is known at compile time of the registers that addresses are made of."""

    def __init__(self, lines: list[Line], function: str) -> None:
        threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", function)
        most = int(threads[1]) - 1 if threads else 1023
        self._given = {"global_smem": Span(0, 0), "%tid.x": Span(0, _filled(most))}
        self._known: dict[str, Span | None] = dict(self._given)
        self._writes = defaultdict(list)
        for line in lines:
            if line.operands and not line.operands[0].startswith("["):
                for register in re.findall(r"%\w+", line.operands[0]):
                    # What selects one of two is no part of the value.
                    last = 3 if line.name.startswith("selp") else None
                    self._writes[register].append((line.name, line.operands[1:last]))

    def place(self, line: Line) -> tuple[Span, int] | None:
        """Where a line stores, or its barrier lies, with the bytes; None: nowhere, or not known."""
        barrier = line.name.startswith(("mbarrier.init", "mbarrier.inval"))
        if not barrier and not _STORE.match(line.name):
            return None
        address = _ADDRESS.match(next((o for o in line.operands if o.startswith("[")), ""))
        bounds = self._bounds(line.guard)
        known = self._given | bounds if bounds else self._known
        span = self._of(address[1], known) if address else None
        if address is None or span is None or (barrier and span.bits):
            return None
        return Span(span.first + int(address[2] or 0), span.bits), _width(line)

    def _bounds(self, guard: str) -> dict[str, Span | None]:
        """What a guard says of registers: comparisons with constants, one or several of them."""
        bounds: dict[str, Span | None] = {}
        for name, operands in self._writes[guard] if len(self._writes[guard]) == 1 else ():
            if name == "and.pred":
                bounds |= self._bounds(operands[0]) | self._bounds(operands[1])
            elif name in ("setp.lt.u32", "setp.lt.s32") and operands[1].isdecimal():
                possible = _possible(self._of(operands[0], self._known))
                if name.endswith("u32") or not possible >> 31:
                    bounds[operands[0]] = Span(0, possible & _filled(int(operands[1]) - 1))
        return bounds

    def _of(self, operand: str, known: dict[str, Span | None]) -> Span | None:
        if re.fullmatch(r"-?\d+", operand):
            return Span(int(operand), 0)
        if operand not in known:
            known[operand] = None  # What depends on itself, as a loop's counter.
            results = [
                _result(name, [self._of(o, known) for o in operands])
                if name.startswith(_FOLLOWED) and ".f" not in name else None
                for name, operands in self._writes[operand]
            ]  # fmt: skip
            known[operand] = reduce(_either, results) if results else None
        return known[operand]


def _width(line: Line) -> int:
    """Bytes from an address on that a line surely stores to, or that its barrier takes."""
    if line.name.startswith("mbarrier"):
        return _BARRIER
    if line.name.startswith(("cp.async.ca", "cp.async.cg")):
        return int(line.operands[2], 0)
    size = None if line.name.startswith(("stmatrix", "cp")) else _SIZE.search(line.name)
    return int(size[1] or 1) * int(size[2]) // 8 if size else _ROW


def _result(name: str, of: list[Span | None]) -> Span | None:
    """What an instruction gives for what is known of its operands."""
    kind = name.split(".")[0]
    if kind in ("mov", "cvt", "shfl"):
        return of[0]
    left, right = of[:2]
    if kind == "selp":
        return _either(left, right)
    if kind == "and":
        bits = _possible(left) & _possible(right)
        return None if bits == _WORD else Span(0, bits)
    if kind in ("shr", "bfe"):
        amounts = [span.first for span in of[1:] if span and not span.bits]
        if len(amounts) < len(of) - 1 or not name.endswith("u32"):
            return None
        field = _WORD if kind == "shr" else (1 << amounts[1]) - 1
        return Span(0, _possible(left) >> amounts[0] & field)
    if left is None or right is None:
        return None
    if kind in ("or", "xor"):
        return Span(0, _possible(left) | _possible(right))
    both = left.bits | right.bits
    if kind == "add":
        carries = left.bits & right.bits
        return Span(left.first + right.first, _filled(left.bits + right.bits) if carries else both)
    if right.bits:
        return None
    if kind == "sub":
        return Span(left.first - right.first, left.bits)
    return Span(left.first << right.first, left.bits << right.first)


def _either(one: Span | None, other: Span | None) -> Span | None:
    if one is None or other is None:
        return None
    if one.first == other.first:
        return Span(one.first, one.bits | other.bits)
    return Span(0, _possible(one) | _possible(other))


def _possible(span: Span | None) -> int:
    """The bits that a value may have."""
    if span is None or span.first < 0:
        return _WORD
    first, bits = span
    return _filled(first + bits) if first & bits else first | bits


def _filled(most: int) -> int:
    """All bits of the numbers up to ``most``."""
    return (1 << most.bit_length()) - 1
