"""Finds barriers in shared memory that a kernel initialises and that nobody waits for.

Triton gives a tile the bytes of a barrier (mbarrier) that is used no more, and one that is only
initialised is so from the beginning. While it is valid the hardware may write its bits back over
what the copy engine brings there: those bytes of the tile change in one call of some hundred.

Read is Triton's GPU IR (asm["ttgir"]), where a barrier has a name; ``ptx_barriers`` cannot see it,
since the copies' addresses in a ring are not known at compile time.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"%[\w-]+")
_RESULTS = re.compile(r"^\s*(?:%[\w:-]+(?:, )?)+ = ")
_DERIVED = re.compile(r"\s*(%[\w-]+) = ttg\.memdesc_\w+ (%[\w-]+)")
_BEGINS = re.compile(r"\s*ttng\.init_barrier (%[\w-]+)")


def idle_barriers(ttgir: str) -> list[str]:
    """Names of the barriers of a kernel that it does nothing with but initialise them.

    ``ttgir``: of a kernel, as Triton's compiler gives it. One that is invalidated is none.
    """
    source: dict[str, str] = {}
    begun: list[str] = []
    used: set[str] = set()
    for line in ttgir.splitlines():
        if derived := _DERIVED.match(line):
            source[derived[1]] = derived[2]
        elif begins := _BEGINS.match(line):
            begun.append(begins[1])
        else:
            used.update(_NAME.findall(_RESULTS.sub("", line, count=1)))

    def root(name: str) -> str:
        while name in source:
            name = source[name]
        return name

    waited_for = {root(name) for name in used}
    return sorted({root(name) for name in begun} - waited_for)
