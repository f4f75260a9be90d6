// The last run in one line, from an entry of /paro/stats (nodes/run_stats.py).

// Percent. The demo model keeps 79 at density 0.3, and at 0.1, with 58, loses the picture.
const LOW_RECALL = 60;

/** @param {{forwards: number, calls: number, handled: number, dense: Object<string, number>,
 *           mean_density: number, kernel: string, failed: boolean}} run */
export function statusText(run) {
  if (!run.calls) return `Last run: no visual attention call in ${run.forwards} forwards.`;
  const reasons = Object.entries(run.dense).sort((a, b) => b[1] - a[1]);
  const dense = reasons.reduce((total, [, count]) => total + count, 0);
  const parts = [`${run.handled} of ${run.calls} attention calls sparse`];
  if (dense) parts.push(`${dense} dense (${reasons.map(([why, n]) => `${n} ${why}`).join(", ")})`);
  if (!run.failed) parts.push(`mean density ${run.mean_density.toFixed(2)}`);
  if (run.kernel) parts.push(run.kernel);
  parts.push(...warnings(run));
  return `${run.failed ? "Last run, stopped" : "Last run"}: ${parts.join(" · ")}`;
}

function warnings({ kernel, details }) {
  const found = [];
  const [, grid, made] = /grid (\S+), calibrated on ([^:\s]+):/.exec(details ?? "") ?? [];
  if (grid) found.push(`plan of ${made} tokens used on ${grid}`);
  if (/\b4 bits/.test(kernel ?? "")) found.push("4 bits run on 8-bit units, not faster than 8");
  const [, kept] = /keeps (\d+)% of the attention/.exec(details ?? "") ?? [];
  if (kept && kept < LOW_RECALL) found.push(`only ${kept} % of the attention kept: raise density`);
  return found;
}
