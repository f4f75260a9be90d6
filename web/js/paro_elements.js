// The elements of the picture and their events.

import { colour, DARKEST } from "./paro_draw.js";
import { addStyle } from "./paro_style.js";

/** "27%", with a decimal where it would round to 100. */
export function percent(share) {
  const value = 100 * share;
  const text = value > 99 && value < 100 ? (Math.floor(value * 10) / 10).toFixed(1) : value.toFixed(0);
  return `${text}%`;
}

function make(tag, name, parent, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (name) element.className = name;
  parent?.append(element);
  return element;
}

/** @param {{step: (name: string, by: number) => void, order: (model: boolean) => void,
 *           overview: () => void, pick: (x: number, y: number) => void}} actions */
export function buildElements(actions) {
  addStyle();
  const root = make("div", "paro");
  const placeholder = make("div", "paro-placeholder", root, { textContent: "…" });
  placeholder.setAttribute("role", "status");
  const picture = make("div", "paro-body", root, { hidden: true });
  const left = make("div", "paro-body", picture);
  left.style.flexDirection = "column";
  const steppers = buildSteppers(left, actions.step);
  const stage = make("div", "paro-stage", left);
  const map = make("canvas", "paro-map", stage, { tabIndex: 0 });
  map.setAttribute("role", "img");
  buildLegend(left);
  const side = make("div", "paro-side", picture);
  const toggles = make("div", "paro-toggles", side);
  const button = (text, title, act) => {
    const made = make("button", "", toggles, { type: "button", textContent: text, title });
    made.addEventListener("click", act);
    return made;
  };
  const model = button("Before", "The tokens in the model's own order", () => actions.order(true));
  const own = button("Reordered", "Each head in the order of its own", () => actions.order(false));
  const all = button("All heads", "Every head of this layer; click one", actions.overview);
  const recall = make("div", "paro-recall", side);
  recall.setAttribute("role", "status");
  const curve = make("canvas", "paro-curve", side, {
    title: "Attention kept (recall) by density. Line: measured at calibration. " +
      "Dashes: without reordering, as the plan predicts.",
  });
  const note = make("div", "paro-note", side);
  const speed = make("div", "paro-note", side);
  const status = make("div", "paro-status", root);
  status.setAttribute("role", "status");

  listen(root, map, actions);
  return {
    root, placeholder, stage, map, side, steppers, recall, curve, note, speed, status,
    show(visible) {
      picture.hidden = !visible;
      placeholder.hidden = visible;
    },
    visible: () => !picture.hidden,
    pressed(modelOrder, overview) {
      model.setAttribute("aria-pressed", String(modelOrder));
      own.setAttribute("aria-pressed", String(!modelOrder));
      all.setAttribute("aria-pressed", String(overview));
    },
  };
}

function buildSteppers(parent, step) {
  const row = make("div", "paro-steppers", parent);
  const labels = {};
  const words = { layer: "layer", head: "head", band: "noise band" };
  for (const [name, word] of Object.entries(words)) {
    const group = make("div", "paro-stepper", row);
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", word);
    const arrow = (sign, by, which) => {
      const made = make("button", "", group, { type: "button", textContent: sign });
      made.setAttribute("aria-label", `${which} ${word}`);
      made.addEventListener("click", () => step(name, by));
    };
    arrow("◀", -1, "previous");
    labels[name] = make("span", "", group);
    arrow("▶", 1, "next");
  }
  return labels;
}

function buildLegend(parent) {
  const legend = make("div", "paro-legend", parent);
  make("span", "", legend, { textContent: "little" });
  const stops = [DARKEST, 0.4, 0.6, 0.8, 1].map((share) => `rgb(${colour(share).join()})`);
  const bar = make("i", "", legend);
  bar.style.cssText = `width: 60px; background: linear-gradient(90deg, ${stops.join()})`;
  make("span", "", legend, { textContent: "much attention" });
  const skipped = make("i", "", legend);
  skipped.style.cssText = "width: 12px; background: #303030; border: 1px solid #666";
  make("span", "", legend, { textContent: "skipped" });
}

const KEYS = {
  ArrowLeft: ["head", -1], ArrowRight: ["head", 1], ArrowUp: ["layer", -1], ArrowDown: ["layer", 1],
  PageUp: ["band", -1], PageDown: ["band", 1],
};

function listen(root, map, actions) {
  map.addEventListener("click", (event) => actions.pick(event.offsetX, event.offsetY));
  map.addEventListener("keydown", (event) => {
    if (KEYS[event.key]) actions.step(...KEYS[event.key]);
    else if (event.key === "Enter" || event.key === " ") actions.overview();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  // ComfyUI would drag the node or start a selection.
  for (const name of ["pointerdown", "mousedown", "dblclick"]) {
    root.addEventListener(name, (event) => {
      if (event.target.closest("button, canvas")) event.stopPropagation();
    });
  }
}
