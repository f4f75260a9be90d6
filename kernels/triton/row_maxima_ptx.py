"""PTX of the Hopper kernels' row maxima, which are kept by each of a row's four threads."""

from __future__ import annotations

from .ptx_numbers import ptx_float


def raised_maxima(slack: float, whole: bool) -> tuple[str, str]:
    """PTX of the maxima of a thread's two rows, raised where a row of the warp has grown, and
    operands.

    The threads of a row meet only then, which is rare behind the first steps. Operands, of two rows
    each: the new maximum out; that of the thread's own logits; the old one.

    Args:
        slack: by how much a row may grow before, in powers of two.
        whole: whether maxima are rounded up to whole numbers; ``slack`` is then 0.
    """
    lines = [".reg .pred p, q; .reg .f32 a, b;"]
    for row, grown in enumerate("pq"):
        known = f"${4 + row}"
        if slack:
            lines.append(f"add.f32 a, {known}, {ptx_float(slack)};")
            known = "a"
        lines.append(f"setp.gt.f32 {grown}, ${2 + row}, {known};")
    lines.append("mov.f32 $0, $4; mov.f32 $1, $5;")
    lines.append("or.pred p, p, q; vote.sync.any.pred p, p, 0xffffffff; @!p bra known;")
    for row in range(2):
        lines.append(f"{'cvt.rpi.f32.f32' if whole else 'mov.f32'} a, ${2 + row};")
        for lane in (2, 1):
            lines.append(f"shfl.sync.bfly.b32 b, a, {lane}, 0x1f, 0xffffffff; max.f32 a, a, b;")
        lines.append(f"max.f32 ${row}, a, ${4 + row};")
    return "{ " + " ".join(lines) + " known: }", "=&f,=&f,f,f,f,f"
