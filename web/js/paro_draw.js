// Drawing: heat maps with the mask over them, the overview of all heads, the curve.

import { say } from "./paro_language.js";

// Ten colours of viridis (Smith, van der Walt 2015): even steps of lightness for all kinds of colour
// vision, and no grey, which stands for skipped blocks here.
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37],
];
const OCTAVES_SHOWN = 9; // of attention, from the strongest block down
/** Where the colours of blocks begin, lighter than any grey of skipped ones. */
export const DARKEST = 0.2;
const CODES_PER_OCTAVE = 16;
const RANK_ONE = 65535;

/** Colour of a share 0..1 of the colour map. */
export function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((value, i) => {
    return Math.round(value + (VIRIDIS[low + 1][i] - value) * (place - low));
  });
}

// Two pixels for each mass code: computed blocks in colour, skipped ones in dark grey.
const COMPUTED = new Uint32Array(256);
const SKIPPED = new Uint32Array(256);
for (let code = 0; code < 256; code++) {
  const share = 1 - Math.min(1, (255 - code) / CODES_PER_OCTAVE / OCTAVES_SHOWN);
  const [r, g, b] = colour(DARKEST + (1 - DARKEST) * share);
  const grey = Math.round(22 + 42 * share);
  COMPUTED[code] = (255 << 24) | (b << 16) | (g << 8) | r; // canvases are little-endian RGBA
  SKIPPED[code] = (255 << 24) | (grey << 16) | (grey << 8) | grey;
}

/** Every stride-th block of a head's picture as pixels.
 *  @param {object} layer from paro_data.js
 *  @param {number} head
 *  @param {number} density of this head; a block is computed where its rank lies below
 *  @param {number} limit most pixels a side */
export function headPixels(layer, head, density, limit = Infinity) {
  const { rows, columns, mass, rank } = layer;
  const height = Math.min(rows, limit);
  const width = Math.min(columns, limit);
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const below = density >= 1 ? Infinity : density * RANK_ONE;
  const start = head * rows * columns;
  for (let y = 0, at = 0; y < height; y++) {
    const row = start + Math.floor(((y + 0.5) * rows) / height) * columns;
    for (let x = 0; x < width; x++, at++) {
      const block = row + Math.floor(((x + 0.5) * columns) / width);
      pixels[at] = (rank[block] < below ? COMPUTED : SKIPPED)[mass[block]];
    }
  }
  return image;
}

const scratch = globalThis.document?.createElement("canvas");

function paint(context, image, x, y, width, height) {
  scratch.width = image.width;
  scratch.height = image.height;
  scratch.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = width < image.width;
  context.drawImage(scratch, x, y, width, height);
}

/** Fits a canvas' pixels to its place on the screen and clears it. */
export function prepare(canvas, width, height) {
  const ratio = Math.min(3, globalThis.devicePixelRatio || 1);
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, w, h);
  return { context, ratio };
}

/** One head over the whole canvas; small blocks are a whole number of pixels, so that all are alike. */
export function drawHead(canvas, side, layer, head, density) {
  const whole = (blocks) => {
    const pixels = side / blocks;
    return pixels >= 1 && pixels < 2.5 ? Math.floor(pixels) * blocks : side;
  };
  const [width, height] = [whole(layer.columns), whole(layer.rows)];
  const { context } = prepare(canvas, width, height);
  const image = headPixels(layer, head, density);
  paint(context, image, 0, 0, canvas.width, canvas.height);
}

/** Columns, rows and cell size of the overview. */
export function overviewLayout(side, heads) {
  const columns = Math.ceil(Math.sqrt(heads));
  return { columns, rows: Math.ceil(heads / columns), cell: Math.floor(side / columns) };
}

/** All heads of a layer side by side, the chosen one framed. */
export function drawOverview(canvas, side, layer, densities, chosen) {
  const { columns, rows, cell } = overviewLayout(side, layer.heads);
  const { context, ratio } = prepare(canvas, columns * cell, rows * cell);
  const gap = cell > 24 ? 2 : 1;
  for (let head = 0; head < layer.heads; head++) {
    const x = (head % columns) * cell;
    const y = Math.floor(head / columns) * cell;
    const size = (cell - 2 * gap) * ratio;
    const image = headPixels(layer, head, densities[head], Math.max(8, Math.round(1.5 * size)));
    paint(context, image, (x + gap) * ratio, (y + gap) * ratio, size, size);
    if (cell >= 36) label(context, String(head), (x + gap) * ratio, (y + gap) * ratio, ratio);
  }
  context.lineWidth = 2 * ratio;
  context.strokeStyle = "#fff";
  const [x, y] = [(chosen % columns) * cell, Math.floor(chosen / columns) * cell];
  context.strokeRect((x + 1) * ratio, (y + 1) * ratio, (cell - 2) * ratio, (cell - 2) * ratio);
}

function label(context, text, x, y, ratio) {
  context.font = `${10 * ratio}px sans-serif`;
  context.textBaseline = "top";
  context.textAlign = "left";
  context.fillStyle = "rgba(0, 0, 0, 0.7)";
  context.fillRect(x, y, context.measureText(text).width + 5 * ratio, 12 * ratio);
  context.fillStyle = "#fff";
  context.fillText(text, x + 2 * ratio, y + 1.5 * ratio);
}

/** The density-recall curve of a head with the current point.
 *  @param {{densities: number[], measured: Float32Array, predicted: Float32Array|undefined,
 *           density: number, recall: number, colour: string}} curve `predicted`: in the model's
 *           own order */
export function drawCurve(canvas, width, height, curve) {
  const { context, ratio } = prepare(canvas, width, height);
  context.scale(ratio, ratio);
  const left = 30;
  const [right, top, bottom] = [width - 10, 6, height - 18];
  const x = (density) => left + (right - left) * density;
  const y = (recall) => bottom - (bottom - top) * recall;
  context.font = "10px sans-serif";
  context.fillStyle = context.strokeStyle = curve.colour;
  context.lineWidth = 1;
  for (const tick of [0, 0.5, 1]) {
    context.globalAlpha = 0.2;
    segment(context, [[left, y(tick)], [right, y(tick)]]);
    segment(context, [[x(tick), top], [x(tick), bottom]]);
    context.globalAlpha = 0.85;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText(`${tick * 100}%`, left - 4, y(tick));
    context.textAlign = tick === 0 ? "left" : tick === 1 ? "right" : "center";
    context.textBaseline = "top";
    context.fillText(tick === 0.5 ? say("density") : `${tick * 100}%`, x(tick), bottom + 3);
  }
  const points = (values) => [
    [x(0), y(0)], ...curve.densities.map((density, i) => [x(density), y(values[i])]),
  ];
  if (curve.predicted) {
    context.setLineDash([3, 3]);
    segment(context, points(curve.predicted));
    context.setLineDash([]);
  }
  context.globalAlpha = 1;
  context.strokeStyle = "#35b779";
  context.lineWidth = 2;
  segment(context, points(curve.measured));
  context.beginPath();
  context.arc(x(curve.density), y(curve.recall), 4, 0, 2 * Math.PI);
  context.fillStyle = "#fff";
  context.fill();
  context.strokeStyle = "#31688e";
  context.stroke();
}

function segment(context, points) {
  context.beginPath();
  points.forEach(([px, py], i) => (i ? context.lineTo(px, py) : context.moveTo(px, py)));
  context.stroke();
}
