// The density of every head while the slider moves: the rules of calibration/density_budget.py and
// calibration/plan_runtime.py, so that what is painted is what runs. No host and no DOM here.

/** Density of each noise band, in proportion to its share, with the mean `density` over the steps.
 *  @param {number} density 0..1
 *  @param {number[]} shares one per band
 *  @param {number[]} steps sparse steps in each band
 *  @returns {number[]} */
export function bandDensities(density, shares, steps) {
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  if (sum(steps) === 0) return shares.map(() => density);
  const full = new Set();
  for (;;) {
    const rest = shares.map((_, band) => band).filter((band) => !full.has(band));
    const budget = density * sum(steps) - sum([...full].map((band) => steps[band]));
    const weight = sum(rest.map((band) => steps[band] * shares[band]));
    const unit = weight > 0 ? budget / weight : Infinity;
    const over = rest.filter((band) => unit * shares[band] > 1 + 1e-12);
    if (over.length === 0) {
      return shares.map((share, band) => (full.has(band) ? 1 : unit * share));
    }
    over.forEach((band) => full.add(band));
  }
}

/** Steps of a schedule that run sparse, counted by noise band.
 *  @param {number[]} schedule sigmas, descending
 *  @param {number[]} edges sigmas between the bands, descending
 *  @param {number} warmup share of the steps that run dense first
 *  @returns {number[]} */
export function sparseSteps(schedule, edges, warmup) {
  const warm = Math.min(schedule.length, Math.floor(warmup * schedule.length + 0.5));
  const steps = new Array(edges.length + 1).fill(0);
  for (const sigma of schedule.slice(warm)) {
    steps[edges.filter((edge) => sigma < edge).length] += 1;
  }
  return steps;
}

/** Density of each head of a layer: pieces of all heads' curves are filled, steepest first.
 *  @param {{grid: number[], pieces: Uint32Array, first_row: number|null, rows: number,
 *           floor: number, least: number}} budget as /paro/preview gives it
 *  @param {number} density of the noise band
 *  @param {number} heads
 *  @returns {Float64Array} */
export function headDensities(budget, density, heads) {
  const densities = new Float64Array(heads).fill(Math.min(density, 1));
  if (budget.first_row === null) return densities.fill(1); // a dense layer
  if (density >= 1) return densities;
  const { grid, pieces, first_row: first, rows } = budget;
  const perHead = grid.length - 1;
  const floor = Math.min(density, Math.max(budget.floor * density, budget.least));
  densities.fill(floor);
  let left = (density - floor) * rows;
  for (const piece of pieces) {
    if (left <= 0) break;
    const segment = piece % perHead;
    const width = grid[segment + 1] - Math.max(grid[segment], floor);
    if (width <= 0) continue;
    const given = Math.min(width, left);
    const head = (piece - segment) / perHead - first;
    if (head >= 0 && head < heads) densities[head] += given;
    left -= given;
  }
  return densities;
}

/** Linear interpolation of a curve that starts at (0, 0).
 *  @param {ArrayLike<number>} grid ascending densities
 *  @param {ArrayLike<number>} values
 *  @param {number} at */
export function interpolate(grid, values, at) {
  let lowX = 0;
  let lowY = 0;
  for (let i = 0; i < grid.length; i++) {
    if (at <= grid[i]) {
      const span = grid[i] - lowX;
      return span > 0 ? lowY + ((values[i] - lowY) * (at - lowX)) / span : values[i];
    }
    [lowX, lowY] = [grid[i], values[i]];
  }
  return lowY;
}
