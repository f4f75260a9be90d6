"""Runs PTX on the CPU: the machine code's own numbers for a card that is not here.

One program at a time, all its threads in step, vectorised with NumPy; branches must be uniform. It
knows the instructions that the FP4 kernels are compiled to (PTX ISA 8.8; fragments of matrices
from "Warp-level matrix instructions", scales from "Block scaling for mma.sync"), and refuses
others. Every address is checked. Asynchronous copies land when they are issued or only when they
are waited for: a kernel that is right gives the same either way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from ptx_arithmetic import INTEGER, float_result, floats, packed, permuted, to_bf16, to_f16
from ptx_matrix import MATRIX, e2m1_code
from ptx_memory import BYTES, Memory

Array = np.ndarray
WIDTHS = {"8": np.uint8, "16": np.uint16, "32": np.uint32, "64": np.uint64}
SIGNED = {"8": np.int8, "16": np.int16, "32": np.int32, "64": np.int64}
COMPARE = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip


class Machine:
    """A compiled kernel: ``run`` executes one program of it.

    Args:
        ptx: of one kernel.
        threads: of a program.
        shared: bytes of shared memory.
        late: copies land when they are waited for.
    """

    def __init__(self, ptx: str, threads: int, shared: int, late: bool) -> None:
        self.threads, self.late = threads, late
        self.shared_size = shared
        body = ptx[ptx.index(".entry") :]
        body = re.sub(r"//.*", "", body[body.index(")") :])
        body = body[body.index("{") + 1 : body.index(".section") if ".section" in body else None]
        self.labels: dict[str, int] = {}
        self.code: list[tuple[str, str, list[Any]]] = []
        for line in body.splitlines():
            line = line.strip()
            if found := re.fullmatch(r"(\$\w+):", line):
                self.labels[found[1]] = len(self.code)
                continue
            for text in re.sub(r"^[{}]$|^\{(?=\s*\.reg)", "", line).split(";"):
                self._parse(text.strip())
        self.lane = np.arange(threads) % 32

    def _parse(self, text: str) -> None:
        if not text or text[0] in ".}" or text == "{":
            return
        found = re.fullmatch(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", text, re.S)
        if found is None:
            raise SyntaxError(f"cannot read {text!r}")
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", found[3] or "")
        parsed = [[x.strip() for x in o[1:-1].split(",")] if o[0] == "{" else o for o in operands]
        self.code.append((found[1] or "", found[2], parsed))

    def run(self, program: tuple[int, int, int], parameters: list[int], memory: Memory) -> None:
        """Runs a program; ``parameters`` are the bits of the kernel's arguments."""
        self.memory, self.parameters = memory, parameters
        self.shared = np.zeros(self.shared_size, np.uint8)
        self.registers: dict[str, Array] = {
            "%tid.x": np.arange(self.threads, dtype=np.uint32),
            "global_smem": np.zeros(self.threads, np.uint32),
        }
        for axis, number in zip("xyz", program, strict=True):
            self.registers[f"%ctaid.{axis}"] = np.full(self.threads, number, np.uint32)
        self.copies: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []
        place = 0
        while place < len(self.code):
            guard, opcode, operands = self.code[place]
            place += 1
            active = np.ones(self.threads, bool)
            if guard:
                active = self.registers[guard.lstrip("!")] ^ (guard[0] == "!")
            name, *kinds = opcode.split(".")
            if name == "ret":
                return
            if name == "bra":
                if active.any() != active.all():
                    raise RuntimeError(f"a branch to {operands[0]} that not all threads take")
                place = self.labels[operands[0]] if active[0] else place
            elif name == "bar":
                continue
            elif name in ("ld", "st"):
                self._access(name, kinds, operands, active)
            elif name == "cp":
                self._copy(kinds, operands, active)
            else:
                if not active.all():
                    raise RuntimeError(f"{opcode} for a part of the threads")
                self._compute(name, kinds, operands)

    def value(self, operand: str, kind: str) -> Array:
        """An operand as this type; integers unsigned unless the type says s."""
        width = re.sub(r"\D", "", kind.replace("x2", "")) or "32"
        unsigned = WIDTHS[width]
        if operand in self.registers:
            raw = self.registers[operand]
            raw = raw if raw.dtype == bool else raw.astype(unsigned)
        elif operand[0] == "%":  # never written: half of a pair of which one is used
            raw = np.full(self.threads, 0xDEAD, unsigned)
        elif operand.startswith("0f"):
            raw = np.full(self.threads, int(operand[2:], 16), unsigned)
        else:
            number = int(operand.rstrip("U"), 0) & int(np.iinfo(unsigned).max)
            raw = np.full(self.threads, number, unsigned)
        if kind[0] == "s":
            return raw.view(SIGNED[width])
        return floats(raw) if kind == "f32" else raw

    def pair(self, operand: str) -> Array:
        """An f32x2 register as [threads, 2]."""
        return floats(self.registers[operand].view(np.uint32)).reshape(-1, 2)

    def set(self, register: str, value: Array) -> None:
        if register[:2] == "%p":
            self.registers[register] = value.astype(bool)
            return
        width = {"%rd": "64", "%rs": "16"}.get(register[:3], "32" if register[0] == "%" else "8")
        if value.dtype == np.float32:
            value = value.view(np.uint32)
        # Signed values of fewer bits are extended by their sign, as a view of the wider type.
        self.registers[register] = np.ascontiguousarray(
            np.broadcast_to(value.astype(WIDTHS[width]), (self.threads,))
        )

    def _address(self, operand: str, kind: str) -> Array:
        base, _, offset = (x.strip() for x in operand[1:-1].partition("+"))
        at = self.value(base, kind).astype(np.int64) + int(offset or 0)
        return at.view(np.uint64)

    def _access(self, name: str, kinds: list[str], operands: list[Any], active: Array) -> None:
        space, kind = kinds[0], kinds[-1]
        if space == "param":
            number = int(re.findall(r"_(\d+)\]", operands[1])[0])
            bits = np.uint64(self.parameters[number] & (2**64 - 1))
            self.set(operands[0], np.full(self.threads, bits))
            return
        where, what = operands[::-1] if name == "ld" else operands
        what = [what] if isinstance(what, str) else what
        size = int(kind[1:]) // 8
        at = self._address(where, "u64" if space == "global" else "u32")[active]
        if not len(at):
            return
        memory = self.memory.bytes if space == "global" else self.shared
        if space == "global":
            at = self.memory.at(at, size * len(what))
        else:
            at = at.astype(np.int64)[:, None] + BYTES[: size * len(what)]
        if name == "st":
            data = [self.value(x, f"b{8 * size}")[active].view(np.uint8) for x in what]
            memory[at] = np.concatenate([x.reshape(-1, size) for x in data], 1)
            return
        for number, register in enumerate(what):
            data = memory[at[:, number * size : (number + 1) * size]]
            new = np.ascontiguousarray(data).view(WIDTHS[str(8 * size)])[:, 0]
            if not active.all():
                old = self.value(register, f"b{8 * size}").copy()
                old[active] = new
                new = old
            self.set(register, new)

    def _copy(self, kinds: list[str], operands: list[Any], active: Array) -> None:
        if "commit_group" in kinds:
            self.groups.append(self.copies)
            self.copies = []
        elif "wait_group" in kinds:
            while len(self.groups) > int(operands[0]):
                for copy in self.groups.pop(0):
                    copy()
        else:
            size = int(operands[2], 0)
            real = self.value(operands[3], "u32") if len(operands) > 3 else np.uint32(size)
            real = np.broadcast_to(real, (self.threads,))
            to = self._address(operands[0], "u32")[active].astype(np.int64)
            source = self._address(operands[1], "u64")

            def copy() -> None:
                self.shared[to[:, None] + BYTES[:size]] = 0
                some = active & (real > 0)
                if some.any():
                    where = to[some[active]][:, None] + BYTES[:size]
                    self.shared[where] = self.memory.bytes[self.memory.at(source[some], size)]

            if self.late:
                self.copies.append(copy)
            else:
                copy()

    def _compute(self, name: str, kinds: list[str], operands: list[Any]) -> None:
        kind = kinds[-1] if kinds else ""
        if name in MATRIX:
            MATRIX[name](self, kinds, operands)
        elif name == "mov":
            self._move(kind, *operands)
        elif name == "cvt":
            self.set(operands[0], self._convert(kinds[-2], kind, operands[1:]))
        elif name == "setp":
            self.set(operands[0], COMPARE[kinds[0]](*(self.value(x, kind) for x in operands[1:])))
        elif name == "selp":
            a, b = (self.value(x, kind) for x in operands[1:3])
            self.set(operands[0], np.where(self.registers[operands[3]], a, b))
        elif kind == "pred":
            given = [self.registers[x] for x in operands[1:]]
            self.set(operands[0], ~given[0] if name == "not" else INTEGER[name](*given))
        elif kind == "f32x2":
            self.set(operands[0], packed(float_result(name, [self.pair(x) for x in operands[1:]])))
        elif kind == "f32":
            self.set(operands[0], float_result(name, [self.value(x, kind) for x in operands[1:]]))
        else:
            self.set(operands[0], self._integer(name, kinds, operands[1:]))

    def _move(self, kind: str, to: Any, of: Any) -> None:
        if isinstance(of, list):
            size = int(kind[1:]) // len(of)
            parts = [self.value(x, f"b{size}") for x in of]
            of = np.stack(parts, 1).reshape(-1).view(WIDTHS[kind[1:]])
            self.set(to, of)
        elif isinstance(to, list):
            size = int(kind[1:]) // len(to)
            parts = self.value(of, kind).view(WIDTHS[str(size)]).reshape(-1, len(to))
            for number, register in enumerate(to):
                self.set(register, parts[:, number])
        else:
            self.set(to, self.value(of, kind))

    def _convert(self, to: str, of: str, operands: list[str]) -> Array:
        given = [self.value(x, of) for x in operands]
        if to == "e2m1x2":
            return e2m1_code(given[0]) << 4 | e2m1_code(given[1])
        if to in ("bf16x2", "f16x2"):
            half = to_bf16 if to[0] == "b" else to_f16
            return half(given[0]).astype(np.uint32) << 16 | half(given[1])
        if to in ("bf16", "f16"):
            return (to_bf16 if to[0] == "b" else to_f16)(given[0])
        if to == "f32":
            if of == "bf16":
                return floats(given[0].astype(np.uint32) << 16)
            return (given[0].view(np.float16) if of == "f16" else given[0]).astype(np.float32)
        width = re.sub(r"\D", "", to)
        return given[0].astype((SIGNED if to[0] == "s" else WIDTHS)[width])

    def _integer(self, name: str, kinds: list[str], operands: list[str]) -> Array:
        kind = kinds[-1]
        signed, width = kind[0] == "s", int(kind[1:].replace("x2", ""))
        if kind == "s16x2":
            pairs = [self.value(x, "b32").view(np.int16) for x in operands]
            return INTEGER[name](*pairs).view(np.uint32)
        if name in ("shl", "shr"):
            by = self.value(operands[1], "u32").astype(np.int64).clip(0, width)
            x = self.value(operands[0], kind)
            last = np.where(by >= width, (x < 0) * -1 if signed else 0, 0)
            by = np.where(by >= width, 0, by).astype(x.dtype)
            moved = x << by if name == "shl" else x >> by
            return np.where(self.value(operands[1], "u32") >= width, last, moved).astype(x.dtype)
        wide = "wide" in kinds
        given = [self.value(x, kind) for x in operands[:2]]
        if wide:
            given = [x.astype((SIGNED if signed else WIDTHS)["64"]) for x in given]
        if name == "mad":
            last = self.value(operands[2], f"{kind[0]}64" if wide else kind)
            return given[0] * given[1] + last
        if name == "bfe":
            at, count = (self.value(x, "u32").astype(np.int64) for x in operands[1:])
            field = (given[0].astype(np.int64) & 0xFFFFFFFF) >> at & ((1 << count) - 1)
            sign = (field >> (count - 1) & 1) << count
            return (field - sign if signed else field).astype(np.uint64).astype(np.uint32)
        if name == "prmt":
            return permuted(*(self.value(x, "u32") for x in operands))
        if name in ("neg", "not", "abs"):
            return {"neg": np.negative, "not": np.invert, "abs": np.abs}[name](given[0])
        if name == "div":
            return (given[0] / given[1]).astype(np.int64).astype(given[0].dtype)
        return INTEGER[name](*given)
