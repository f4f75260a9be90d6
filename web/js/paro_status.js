// The last run in one line, from an entry of /paro/stats (nodes/run_stats.py).

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
  return `${run.failed ? "Last run, stopped" : "Last run"}: ${parts.join(" · ")}`;
}
