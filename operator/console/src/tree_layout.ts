// Where the nodes of a tree are drawn: a lane for each branch, a column for each step. Pure.
import type { CheckpointView } from "./types";

export interface Node {
  checkpoint: CheckpointView;
  x: number;
  y: number;
  /** Name of the nearest ancestor that is left; empty for the base. */
  from: string;
}

export interface Edge {
  path: string;
  /** Whether checkpoints between the two ends were deleted. */
  gap: boolean;
  old: boolean;
}

export interface Layout {
  nodes: Node[];
  edges: Edge[];
  byName: Map<string, Node>;
  width: number;
  height: number;
}

const LANE = 44;
const MARGIN = 32;
// The name of a head stands to the right of the newest node.
const FLAG = 120;
const [CLOSEST, WIDEST] = [9, 40];

/** The branches' lanes: the lowest that is free over the steps that a branch takes. */
function lanesOf(checkpoints: CheckpointView[]): Map<string, number> {
  const spans = new Map<string, [number, number]>();
  for (const { branch, step } of checkpoints) {
    const [first, last] = spans.get(branch) ?? [step, step];
    spans.set(branch, [Math.min(first, step), Math.max(last, step)]);
  }
  const taken: [number, number][][] = [];
  const lanes = new Map<string, number>();
  for (const [branch, [first, last]] of spans) {
    const free = (lane: [number, number][]): boolean => lane.every(([a, b]) => last + 1 < a || b + 1 < first - 1);
    let at = taken.findIndex(free);
    if (at < 0) at = taken.push([]) - 1;
    taken[at]?.push([first - 1, last]);
    lanes.set(branch, at);
  }
  return lanes;
}

/** Lays out a tree. `checkpoints` come with parents before their children; `room` is the width to fill. */
export function layout(checkpoints: CheckpointView[], room: number): Layout {
  const steps = checkpoints.reduce((most, { step }) => Math.max(most, step), 1);
  const column = Math.min(WIDEST, Math.max(CLOSEST, (room - 2 * MARGIN - FLAG) / steps));
  const lanes = lanesOf(checkpoints);
  const newest = new Map<string, string>();
  const byName = new Map<string, Node>();
  const edges: Edge[] = [];
  for (const checkpoint of checkpoints) {
    const parent = byName.has(checkpoint.parent) ? checkpoint.parent : (newest.get(checkpoint.branch) ?? "");
    const lane = lanes.get(checkpoint.branch) ?? 0;
    const node = {
      checkpoint,
      x: MARGIN + checkpoint.step * column,
      y: MARGIN + lane * LANE,
      from: parent,
    };
    const before = byName.get(parent);
    const start = before ?? { x: MARGIN, y: MARGIN, checkpoint: { step: 0 } };
    edges.push({
      path: edgeOf(start.x, start.y, node.x, node.y),
      gap: checkpoint.step - start.checkpoint.step > 1,
      old: checkpoint.superseded,
    });
    byName.set(checkpoint.name, node);
    newest.set(checkpoint.branch, checkpoint.name);
  }
  const nodes = [...byName.values()];
  const lowest = nodes.reduce((most, { y }) => Math.max(most, y), MARGIN);
  return { nodes, edges, byName, width: 2 * MARGIN + steps * column + FLAG, height: lowest + MARGIN };
}

function edgeOf(x1: number, y1: number, x2: number, y2: number): string {
  if (y1 === y2) return `M${x1} ${y1}H${x2}`;
  const turn = Math.min(x2, x1 + 18);
  return `M${x1} ${y1}C${turn} ${y1} ${x1} ${y2} ${turn} ${y2}H${x2}`;
}

/** The node that an arrow key leads to; the same one where there is none. */
export function neighbour(drawn: Layout, from: string, key: string): string {
  const here = drawn.byName.get(from);
  if (!here) return drawn.nodes.at(-1)?.checkpoint.name ?? "";
  if (key === "ArrowLeft") return here.from || from;
  if (key === "Home") return drawn.nodes[0]?.checkpoint.name ?? from;
  if (key === "End") return drawn.nodes.at(-1)?.checkpoint.name ?? from;
  if (key === "ArrowRight") {
    const children = drawn.nodes.filter((node) => node.from === from);
    const own = children.find((node) => node.y === here.y) ?? children[0];
    return own?.checkpoint.name ?? from;
  }
  const down = key === "ArrowDown";
  let best: Node | undefined;
  for (const node of drawn.nodes) {
    if (down ? node.y <= here.y : node.y >= here.y) continue;
    const far = (one: Node): number => Math.abs(one.y - here.y) * 1000 + Math.abs(one.x - here.x);
    if (!best || far(node) < far(best)) best = node;
  }
  return best?.checkpoint.name ?? from;
}
