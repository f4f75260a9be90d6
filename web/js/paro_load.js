// ComfyUI's side of the picture in Load PARO: its widgets, links and messages.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { PlanSource } from "./paro_data.js";
import { say, setLanguage } from "./paro_language.js";
import { cardName } from "./paro_speed.js";
import { statusText } from "./paro_status.js";
import { PlanPicture } from "./paro_widget.js";

const NODE = "ParoLoad";
const CALIBRATE = "ParoCalibrate";
const AUTO = "auto";
const LOCALE = "Comfy.Locale";
const EXTENSION = ".safetensors";
const MIN_HEIGHT = 604;
const MIN_WIDTH = 340;
const FOLLOWED = ["plan", "density", "qk_bits", "pv_bits", "warmup", "dense_layers"];

const source = new PlanSource((route) => api.fetchApi(route));
const shown = new Set();
let card = "";

/** The picture of one Load PARO node. */
class LoadPicture {
  #node;
  #picture = new PlanPicture(source);
  #asked = 0;
  #later = 0;
  #wanted = "";
  #followed = ""; // the plan that auto took in the last run

  constructor(node) {
    this.#node = node;
    const widget = node.addDOMWidget("paro_picture", "paro_picture", this.#picture.element, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true,
      getMinHeight: () => MIN_HEIGHT,
    });
    widget.serialize = false;
    hideServerPicture(node, this.#picture.element);
    this.#picture.element.addEventListener("wheel", (event) => {
      // Nodes 2.0 hands it on by itself.
      if (!globalThis.LiteGraph?.vueNodesMode) app.canvas.processMouseWheel?.(event);
    });
    for (const name of FOLLOWED) this.#follow(this.#widget(name));
    this.#picture.setCard(card);
  }

  get node() {
    return this.#node;
  }

  setCard(name) {
    this.#picture.setCard(name);
  }

  dispose() {
    clearTimeout(this.#later);
    this.#picture.dispose();
  }

  /** The widgets have changed, or a link. */
  update() {
    const value = (name) => this.#widget(name)?.value;
    this.#picture.setInputs({
      density: Number(value("density") ?? 0.3),
      warmup: Number(value("warmup") ?? 0),
      qkBits: Number(value("qk_bits") ?? 8),
      pvBits: Number(value("pv_bits") ?? 8),
      denseLayers: String(value("dense_layers") ?? "").trim(),
    });
    // Later: while a workflow is loaded, the other widgets and links have yet to come.
    clearTimeout(this.#later);
    this.#later = setTimeout(() => this.#updatePlan());
  }

  #updatePlan() {
    const { plan, text } = this.#planName();
    const wanted = JSON.stringify([plan, text]);
    if (wanted === this.#wanted) return;
    this.#wanted = wanted;
    if (plan) {
      this.reload();
    } else {
      this.#asked += 1; // an answer that is still to come belongs to the plan before
      this.#picture.showText(text);
    }
  }

  /** Asks for the plan again: it may have been written anew. */
  async reload() {
    const { plan, missing } = this.#planName();
    if (!plan) return;
    const asked = ++this.#asked;
    try {
      const description = await source.plan(plan);
      if (asked === this.#asked) this.#picture.show(description);
    } catch (error) {
      if (asked !== this.#asked) return;
      const told = { 404: missing, 409: say("auto_waits") }[error.status];
      this.#picture.showText(told ?? say("no_picture", { why: error.message }));
    }
  }

  /** The language has changed. */
  relabel() {
    this.#picture.relabel();
    this.#wanted = ""; // a sentence in place of a picture is said anew
    this.#updatePlan();
    this.reloadStatus();
  }

  /** What the last run did. */
  async reloadStatus() {
    const run = await source.lastRun(this.#node.id).catch(() => undefined);
    this.#picture.setStatus(run ? statusText(run) : "");
    if (!run) return;
    dropTextPreview(this.#node, `${run.handled} of ${run.calls} attention calls`);
    const followed = this.#widget("plan")?.value === AUTO ? run.plan : "";
    if (followed === this.#followed) return;
    this.#followed = followed;
    this.update();
  }

  #widget(name) {
    return this.#node.widgets?.find((widget) => widget.name === name);
  }

  #follow(widget) {
    if (!widget) return;
    const before = widget.callback;
    const update = () => this.update();
    widget.callback = function (...args) {
      const result = before?.apply(this, args);
      update();
      return result;
    };
  }

  /** The plan to show, or why there is none. */
  #planName() {
    const slot = this.#node.inputs?.findIndex((input) => input.name === "paro_plan") ?? -1;
    if (slot >= 0 && this.#node.inputs[slot].link != null) {
      const origin = this.#node.getInputNode?.(slot);
      if ((origin?.comfyClass ?? origin?.type) !== CALIBRATE) {
        return { text: say("follows_link") };
      }
      const name = origin.widgets?.find((widget) => widget.name === "name")?.value ?? "";
      const stem = String(name).trim().replace(/\.safetensors$/, "").trim().replaceAll("\\", "/");
      return {
        plan: stem + EXTENSION,
        missing: say("not_calibrated", { plan: stem }),
      };
    }
    const plan = String(this.#widget("plan")?.value ?? "");
    if (plan === "none" || !plan) {
      return { text: say("none_chosen") };
    }
    if (plan === AUTO && this.#followed) return { plan: this.#followed };
    return {
      plan,
      missing: plan === AUTO ? say("none_yet") : say("no_such_file", { plan }),
    };
  }
}

function speak(locale) {
  setLanguage(locale);
  for (const picture of shown) picture.relabel();
}

function afterRun() {
  source.clear();
  for (const picture of shown) {
    picture.reload();
    picture.reloadStatus();
  }
}

app.registerExtension({
  name: "paroattention.load",
  setup() {
    const settings = app.ui?.settings;
    speak(settings?.getSettingValue?.(LOCALE));
    settings?.addEventListener?.(`${LOCALE}.change`, ({ detail }) => speak(detail?.value));
    for (const name of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(name, afterRun);
    }
    api.addEventListener("executed", ({ detail }) => {
      const node = app.graph?.getNodeById?.(detail?.node);
      if ((node?.comfyClass ?? node?.type) === CALIBRATE) afterRun();
    });
    api.fetchApi("/system_stats").then((reply) => reply.json()).then((stats) => {
      card = cardName(stats.devices?.[0]?.name);
      for (const picture of shown) picture.setCard(card);
    }).catch(() => {}); // without it no speed is shown
  },
  nodeCreated(node) {
    if ((node.comfyClass ?? node.constructor?.comfyClass) !== NODE) return;
    const picture = new LoadPicture(node);
    shown.add(picture);
    chain(node, "onConnectionsChange", () => picture.update());
    chain(node, "onConfigure", () => queueMicrotask(() => {
      picture.update();
      picture.reloadStatus();
      fit(node);
    }));
    chain(node, "onRemoved", () => {
      picture.dispose();
      shown.delete(picture);
    });
    requestAnimationFrame(() => {
      fit(node);
      picture.update();
    });
  },
  afterConfigureGraph() {
    for (const picture of shown) picture.update(); // links exist only now
  },
});

function chain(node, name, after) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    after();
    return result;
  };
}

/** The node's result holds a picture for those who cannot see the live one; both would say the same.
 *  Where a page does not put this element anywhere, as the first Nodes 2.0, that one is shown. */
function hideServerPicture(node, element) {
  const live = () => element.isConnected;
  Object.defineProperty(node, "hideOutputImages", { get: live, configurable: true }); // Nodes 2.0
  const before = node.onDrawBackground; // the canvas shows pictures from here
  node.onDrawBackground = function (...args) {
    return live() ? undefined : before?.apply(this, args);
  };
}

/** Takes away the host's own line of text where the picture says the same. */
function dropTextPreview(node, start) {
  const index = node.widgets.findIndex((widget) => {
    return widget.name === "$$node-text-preview" && String(widget.value ?? "").startsWith(start);
  });
  if (index < 0) return;
  node.widgets[index].onRemove?.();
  node.widgets.splice(index, 1);
  node.setDirtyCanvas?.(true, true);
}

/** Makes room for the picture in nodes that were saved without it. */
function fit(node) {
  const [width, height] = node.computeSize();
  if (node.size[0] < Math.max(width, MIN_WIDTH) || node.size[1] < height) {
    node.setSize([Math.max(node.size[0], width, MIN_WIDTH), Math.max(node.size[1], height)]);
  }
}
