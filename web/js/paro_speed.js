// The attention speed-up to expect, from measurements alone: no card, no number.

import { MEASURED } from "./paro_speed_table.js";

// A measurement speaks for sequences of half to twice its length, no further.
const REACH = 2;

/** The card's name as benchmarks know it, from ComfyUI's device name. */
export function cardName(deviceName) {
  return (deviceName ?? "").replace(/^\w+:\d+ /, "").replace(/ : \w+$/, "").trim();
}

/** @param {{card: string, tokens: number, headDim: number, block: number[], qkBits: number,
 *           pvBits: number, density: number}} wanted
 *  @returns {{factor: number, tokens: number}|{missing: "card"|"card_unknown"|"size"}} what was
 *           measured, or what it was not measured for */
export function speedUp({ card, tokens, headDim, block, qkBits, pvBits, density }) {
  const rows = MEASURED[card];
  if (!rows) return { missing: card ? "card" : "card_unknown" };
  const near = rows
    .filter((row) => row.qk_bits === qkBits && row.pv_bits === pvBits)
    .filter((row) => row.query_block === block[0] && row.key_block === block[1])
    .filter((row) => row.head_dim === headDim)
    .map((row) => ({ row, far: Math.abs(Math.log(row.tokens / tokens)) }))
    .filter(({ far }) => far <= Math.log(REACH))
    .sort((a, b) => a.far - b.far)[0]?.row;
  if (!near) return { missing: "size" };
  // All blocks in 16 bits are dense attention, which is called as it is (calibration/plan_runtime.py).
  const dense = density >= 1 && qkBits === 16 && pvBits === 16;
  return { factor: dense ? 1 : 1 / timeAt(near.times, density), tokens: near.tokens };
}

/** Time is linear in the density between the measured points; below the least it is that one's. */
function timeAt(times, density) {
  const at = Math.max(density, times[0][0]);
  const i = Math.max(1, times.findIndex(([measured]) => measured >= at));
  const [[x0, y0], [x1, y1]] = [times[i - 1], times[i]];
  return y0 + ((y1 - y0) * (at - x0)) / (x1 - x0);
}
