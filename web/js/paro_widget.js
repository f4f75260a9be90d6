// The picture itself: its elements, what was chosen in it, and how it is redrawn.

import { bandDensities, headDensities, interpolate, sparseSteps } from "./paro_budget.js";
import { drawCurve, drawHead, drawOverview, overviewLayout } from "./paro_draw.js";
import { speedUp } from "./paro_speed.js";
import { buildElements, percent } from "./paro_elements.js";
import { count, say } from "./paro_language.js";

const CURVE_HEIGHT = 92;
const MISSING = {
  card: "speed_other_card", card_unknown: "speed_no_card", size: "speed_other_size",
};

/** Shows one plan; everything that comes from outside is handed to `show` and `setInputs`. */
export class PlanPicture {
  #source;
  #plan = null;
  #layer = null; // in the order that is shown
  #model = null; // the same layer in the model's own order, for the curve
  #inputs = { density: 0.3, warmup: 0, qkBits: 8, pvBits: 8, denseLayers: "" };
  #card = "";
  #chosen = { layer: 0, head: 0, band: 0, modelOrder: false, overview: false };
  #frame = 0;
  #request = 0;
  #width = 0;

  /** @param {import("./paro_data.js").PlanSource} source */
  constructor(source) {
    this.#source = source;
    this.parts = buildElements({
      step: (name, by) => this.#step(name, by),
      order: (modelOrder) => this.#choose({ modelOrder }),
      overview: () => this.#choose({ overview: !this.#chosen.overview }),
      pick: (x, y) => this.#pick(x, y),
    });
    this.element = this.parts.root;
    this.#observer = new ResizeObserver(() => this.redraw());
    this.#observer.observe(this.parts.stage);
    this.#observer.observe(this.parts.side);
  }

  #observer;
  #begun = false;

  /** Ends all drawing; the element may be removed. */
  dispose() {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
  }

  /** The name of the card whose measurements count. */
  setCard(card) {
    this.#card = card;
    this.redraw();
  }

  /** The node's widgets. */
  setInputs(inputs) {
    const denseBefore = this.#inputs.denseLayers;
    this.#inputs = inputs;
    if (inputs.denseLayers !== denseBefore) this.#load();
    this.redraw();
  }

  /** The language has changed. */
  relabel() {
    this.parts.relabel();
    this.redraw();
  }

  /** One line about the last run. */
  setStatus(text) {
    this.parts.status.textContent = text;
  }

  /** A sentence instead of a picture. */
  showText(text) {
    this.#plan = this.#layer = this.#model = null;
    this.#request++;
    this.parts.placeholder.textContent = text;
    this.parts.show(false);
  }

  /** Another plan, or the same one written again.
   *  @param {object} plan as /paro/plan describes it */
  show(plan) {
    if (!this.#begun) {
      // The middle of the model and of the run: what most calls look like.
      const middle = (count) => Math.floor(count / 2);
      this.#chosen.layer = middle(plan.layers);
      this.#chosen.band = middle(plan.band_edges.length + 1);
      this.#begun = true;
    }
    this.#plan = plan;
    const inside = (value, count) => Math.min(value, count - 1);
    this.#chosen.layer = inside(this.#chosen.layer, plan.layers);
    this.#chosen.head = inside(this.#chosen.head, plan.heads);
    this.#chosen.band = inside(this.#chosen.band, plan.band_edges.length + 1);
    this.#load();
  }

  /** Draws with the next frame. */
  redraw() {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #step(name, by) {
    if (!this.#plan) return;
    const { layers, heads, band_edges: edges } = this.#plan;
    const count = { layer: layers, head: heads, band: edges.length + 1 }[name];
    this.#choose({ [name]: (this.#chosen[name] + by + count) % count });
  }

  #choose(change) {
    const before = { ...this.#chosen };
    Object.assign(this.#chosen, change);
    const same = ["layer", "band", "modelOrder"].every((key) => before[key] === this.#chosen[key]);
    if (same) this.redraw();
    else this.#load();
  }

  /** A click: opens the head under it, or the overview. */
  #pick(x, y) {
    if (!this.#layer) return;
    if (!this.#chosen.overview) return this.#choose({ overview: this.#layer.heads > 1 });
    const { columns, cell } = overviewLayout(this.#side(), this.#layer.heads);
    const column = Math.floor(x / cell);
    const head = Math.floor(y / cell) * columns + column;
    if (column < columns && head < this.#layer.heads) this.#choose({ head, overview: false });
  }

  async #load() {
    if (!this.#plan) return;
    const request = ++this.#request;
    const { layer, band, modelOrder } = this.#chosen;
    const query = (order) => ({
      plan: this.#plan.plan, layer, band, order, dense_layers: this.#inputs.denseLayers,
    });
    this.#labels();
    this.#model = null;
    try {
      const shown = await this.#source.layer(query(modelOrder ? "model" : "plan"));
      if (request !== this.#request) return;
      this.#layer = shown;
      this.parts.show(true);
      this.redraw();
      const model = await this.#source.layer(query("model"));
      if (request !== this.#request) return;
      this.#model = model;
      this.redraw();
      if (modelOrder) await this.#source.layer(query("plan")); // so that toggling waits for nothing
    } catch (error) {
      if (request === this.#request) this.showText(say("no_picture", { why: error.message }));
    }
  }

  #side() {
    return Math.min(this.parts.stage.clientWidth, this.parts.stage.clientHeight);
  }

  #labels() {
    const { layer, head, band, modelOrder, overview } = this.#chosen;
    const { parts } = this;
    const counts = [this.#plan.layers, this.#plan.heads, this.#plan.band_edges.length + 1];
    [["layer", layer], ["head", head], ["band", band]].forEach(([name, value], i) => {
      parts.steppers[name].textContent = say(`${name}_at`, { at: value, last: counts[i] - 1 });
    });
    parts.pressed(modelOrder, overview);
  }

  #draw() {
    const layer = this.#layer;
    const side = this.#side();
    if (!layer || !this.#plan || side < 8 || !this.parts.visible()) return;
    this.#labels();
    const plan = this.#plan;
    const { density, warmup } = this.#inputs;
    const steps = sparseSteps(plan.schedule, plan.band_edges, warmup);
    const bands = bandDensities(density, plan.band_shares, steps);
    const densities = headDensities(layer.budget, bands[layer.band], layer.heads);
    const head = Math.min(this.#chosen.head, layer.heads - 1);
    if (this.#chosen.overview) drawOverview(this.parts.map, side, layer, densities, head);
    else drawHead(this.parts.map, side, layer, head, densities[head]);
    this.#describe(layer, head, densities, bands[layer.band], steps[layer.band] === 0);
  }

  #describe(layer, head, densities, bandDensity, warm) {
    const { parts } = this;
    const grid = this.#plan.recall_densities;
    const curve = (values, index) => values.subarray(index * grid.length, (index + 1) * grid.length);
    const recallOf = (index) => interpolate(grid, curve(layer.recall, index), densities[index]);
    const recall = recallOf(head);
    let mean = 0;
    for (let index = 0; index < layer.heads; index++) mean += recallOf(index) / layer.heads;
    const before = this.#model && curve(this.#model.predicted, head);
    const unordered = before ? interpolate(grid, before, densities[head]) : 0;
    const kept = percent(densities[head]);
    const dense = layer.budget.first_row === null;
    if (dense) parts.recall.textContent = say("layer_is_dense");
    else if (this.#chosen.modelOrder) {
      const own = before ? percent(unordered) : "…";
      parts.recall.textContent = say("not_reordered", { density: kept, recall: own });
    } else {
      parts.recall.textContent = say("keeps", { density: kept, recall: percent(recall) });
    }
    const order = layer.orders[head] === "FHW" ? say("own_order") : layer.orders[head];
    const band = { band: layer.band, density: bandDensity.toFixed(2) };
    parts.note.textContent = `${say("head_note", { head, order, mean: percent(mean) })} ` +
      say(warm ? "band_warm" : "band_density", band);
    parts.map.title = this.#chosen.overview ? say("overview_tip")
      : say(layer.every ? "map_tip" : "map_tip_sampled");
    parts.speed.textContent = this.#speedText();
    parts.map.setAttribute("aria-label", `${parts.steppers.layer.textContent}, ` +
      `${parts.steppers.head.textContent}: ${parts.recall.textContent}`);
    drawCurve(parts.curve, parts.side.clientWidth, CURVE_HEIGHT, {
      densities: grid,
      measured: curve(layer.recall, head),
      predicted: layer.orders[head] === "FHW" ? undefined : before,
      density: densities[head],
      recall: this.#chosen.modelOrder && before ? unordered : recall,
      colour: getComputedStyle(parts.root).color,
    });
  }

  #speedText() {
    const { density, qkBits, pvBits } = this.#inputs;
    const { tokens, head_dim: headDim, block } = this.#plan;
    const found = speedUp({ card: this.#card, tokens, headDim, block, qkBits, pvBits, density });
    if (found.missing) return say(MISSING[found.missing], { card: this.#card });
    const gains = found.factor >= 1;
    return say(gains ? "speed" : "speed_slower", {
      factor: (gains ? found.factor : 1 / found.factor).toFixed(1),
      tokens: count(found.tokens),
      bits: `${qkBits}/${pvBits}`,
    });
  }
}
