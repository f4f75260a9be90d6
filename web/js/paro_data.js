// What is asked of the server, and the binary answer of /paro/preview taken apart.

const TYPES = { "|u1": Uint8Array, "<u2": Uint16Array, "<u4": Uint32Array, "<f4": Float32Array };
const KEPT_LAYERS = 24;

/** An answer of the server that is not a picture; its message is for people. */
export class RefusedError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Arrays and header of a packed layer (nodes/plan_preview.py).
 *  @param {ArrayBuffer} buffer */
export function unpack(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const layer = { ...header, budget: { ...header.budget } };
  for (const [name, { type, shape, at }] of Object.entries(header.arrays)) {
    const length = shape.reduce((product, side) => product * side, 1);
    layer[name] = new TYPES[type](buffer, 4 + size + at, length);
  }
  const [heads, rows, columns] = header.arrays.mass.shape;
  layer.budget.pieces = layer.pieces;
  return { ...layer, heads, rows, columns };
}

/** Asks the server about plans; layers that were looked at are kept. */
export class PlanSource {
  #fetch;
  #layers = new Map();

  /** @param {(route: string) => Promise<Response>} fetchRoute */
  constructor(fetchRoute) {
    this.#fetch = fetchRoute;
  }

  /** Forgets everything: a plan file may have been written again. */
  clear() {
    this.#layers.clear();
  }

  /** The description of a plan. @param {string} name */
  async plan(name) {
    return (await this.#get("/paro/plan", { plan: name })).json();
  }

  /** One layer at one noise band.
   *  @param {{plan: string, layer: number, band: number, order: string, dense_layers: string}} query */
  layer(query) {
    const key = JSON.stringify(query);
    let kept = this.#layers.get(key);
    if (!kept) {
      kept = this.#get("/paro/preview", query).then(async (reply) => {
        return unpack(await reply.arrayBuffer());
      });
      kept.catch(() => this.#layers.delete(key));
    }
    this.#layers.delete(key); // the latest comes last
    this.#layers.set(key, kept);
    while (this.#layers.size > KEPT_LAYERS) {
      this.#layers.delete(this.#layers.keys().next().value);
    }
    return kept;
  }

  /** What the last sampling run through a node did, undefined where there was none. */
  async lastRun(nodeId) {
    const runs = await (await this.#get("/paro/stats", {})).json();
    const loads = runs.filter((run) => run.kind === "load").reverse();
    const inSubgraph = `:${nodeId}`; // there, the server puts the subgraph's id before
    return loads.find((run) => run.node === String(nodeId)) ??
      loads.find((run) => run.node.endsWith(inSubgraph));
  }

  async #get(route, query) {
    const text = new URLSearchParams(query).toString();
    const reply = await this.#fetch(text ? `${route}?${text}` : route);
    if (reply.ok) return reply;
    const told = await reply.json().catch(() => ({}));
    throw new RefusedError(reply.status, told.error ?? `the server answered ${reply.status}`);
  }
}
