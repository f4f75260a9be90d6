// The elements of the picture and their events.

import { colour, DARKEST } from "./paro_draw.js";
import { say } from "./paro_language.js";
import { style } from "./paro_style.js";

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
  const words = new Words();
  const root = make("div", "paro");
  root.append(style());
  const placeholder = make("div", "paro-placeholder", root, { textContent: "…" });
  placeholder.setAttribute("role", "status");
  const picture = make("div", "paro-body", root, { hidden: true });
  const left = make("div", "paro-body", picture);
  left.style.flexDirection = "column";
  const steppers = buildSteppers(left, actions.step, words);
  const stage = make("div", "paro-stage", left);
  const map = make("canvas", "paro-map", stage, { tabIndex: 0 });
  map.setAttribute("role", "img");
  buildLegend(left, words);
  const side = make("div", "paro-side", picture);
  const toggles = make("div", "paro-toggles", side);
  const button = (key, act) => {
    const made = make("button", "", toggles, { type: "button" });
    words.add(made, "textContent", key);
    words.add(made, "title", `${key}_tip`);
    made.addEventListener("click", act);
    return made;
  };
  const model = button("before", () => actions.order(true));
  const own = button("reordered", () => actions.order(false));
  const all = button("all_heads", actions.overview);
  const recall = make("div", "paro-recall", side);
  recall.setAttribute("role", "status");
  words.add(recall, "title", "keeps_tip");
  const curve = make("canvas", "paro-curve", side);
  words.add(curve, "title", "curve_tip");
  const note = make("div", "paro-note", side);
  const speed = make("div", "paro-note", side);
  const status = make("div", "paro-status", root);
  status.setAttribute("role", "status");

  listen(root, map, actions);
  words.write();
  return {
    root, placeholder, stage, map, side, steppers, recall, curve, note, speed, status,
    relabel: () => words.write(),
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

/** The texts that never change but with the language. */
class Words {
  #places = [];

  add(element, property, key, values = () => ({})) {
    this.#places.push([element, property, key, values]);
  }

  write() {
    for (const [element, property, key, values] of this.#places) {
      element[property] = say(key, values());
    }
  }
}

function buildSteppers(parent, step, words) {
  const row = make("div", "paro-steppers", parent);
  const labels = {};
  for (const name of ["layer", "head", "band"]) {
    const group = make("div", "paro-stepper", row);
    group.setAttribute("role", "group");
    words.add(group, "ariaLabel", name);
    if (name === "band") words.add(group, "title", "band_tip");
    const arrow = (sign, by, which) => {
      const made = make("button", "", group, { type: "button", textContent: sign });
      words.add(made, "ariaLabel", which, () => ({ what: say(name) }));
      made.addEventListener("click", () => step(name, by));
    };
    arrow("◀", -1, "previous");
    labels[name] = make("span", "", group);
    arrow("▶", 1, "next");
  }
  return labels;
}

function buildLegend(parent, words) {
  const legend = make("div", "paro-legend", parent);
  const word = (key) => words.add(make("span", "", legend), "textContent", key);
  word("little");
  const stops = [DARKEST, 0.4, 0.6, 0.8, 1].map((share) => `rgb(${colour(share).join()})`);
  const bar = make("i", "", legend);
  bar.style.cssText = `width: 60px; background: linear-gradient(90deg, ${stops.join()})`;
  word("much");
  const skipped = make("i", "", legend);
  skipped.style.cssText = "width: 12px; background: #303030; border: 1px solid #666";
  word("skipped");
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
