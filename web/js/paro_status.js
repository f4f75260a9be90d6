// The last run in one line, from an entry of /paro/stats (nodes/run_stats.py).

import { say, sayServer } from "./paro_language.js";

// Percent. The demo model keeps 79 at density 0.3, and at 0.1, with 58, loses the picture.
const LOW_RECALL = 60;

/** @param {{forwards: number, calls: number, handled: number, dense: Object<string, number>,
 *           mean_density: number, kernel: string, failed: boolean,
 *           attention_seconds: number | null, step_seconds: number | null}} run */
export function statusText(run) {
  if (!run.calls) return say("run_empty", { forwards: run.forwards });
  const reasons = Object.entries(run.dense).sort((a, b) => b[1] - a[1]);
  const dense = reasons.reduce((total, [, count]) => total + count, 0);
  const parts = [say("run_sparse", { handled: run.handled, calls: run.calls })];
  if (dense) {
    const told = reasons.map(([why, count]) => `${count} ${sayServer(why)}`).join(", ");
    parts.push(say("run_dense", { count: dense, reasons: told }));
  }
  if (!run.failed) parts.push(say("run_density", { density: run.mean_density.toFixed(2) }));
  if (run.kernel) parts.push(kernel(run.kernel));
  if (run.step_seconds) parts.push(time(run.attention_seconds, run.step_seconds));
  parts.push(...warnings(run));
  return say(run.failed ? "run_stopped" : "run", { what: parts.join(" · ") });
}

function kernel(name) {
  const [, qk, pv, where] = /^QK (\d+) bits, PV (\d+) bits, (.+)$/.exec(name) ?? [];
  return where ? say("kernel", { qk, pv, where: sayServer(where) }) : name;
}

/** Seconds of an average step, and of the sparse attention in it. */
function time(attention, step) {
  const [part, whole] = [attention, step].map((seconds) => Number(seconds.toPrecision(3)));
  const share = ((100 * attention) / step).toFixed(0);
  return say("run_time", { share, attention: part, step: whole });
}

function warnings({ kernel: name, details }) {
  const found = [];
  const [, grid, made] = /grid (\S+), calibrated on ([^:\s]+):/.exec(details ?? "") ?? [];
  if (grid) found.push(say("other_grid", { made, grid }));
  if (/\b4 bits/.test(name ?? "") && !/INT4|FP4/.test(name)) found.push(say("four_bits"));
  const [, kept] = /keeps (\d+)% of the attention/.exec(details ?? "") ?? [];
  if (kept && kept < LOW_RECALL) found.push(say("low_recall", { kept }));
  return found;
}
