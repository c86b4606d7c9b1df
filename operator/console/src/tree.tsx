// The checkpoint tree as it grows: a column for each step, a lane for each branch, the heads as flags.
import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { Details } from "./details";
import { Heads } from "./heads";
import type { Seen } from "./model";
import { figure } from "./parts";
import { layout, neighbour, type Layout } from "./tree_layout";
import type { CheckpointView } from "./types";

const KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];
const COLOURS = 5;

export function Tree(seen: Seen): JSX.Element {
  const { checkpoints, heads } = seen.tree;
  const [chosen, setChosen] = useState(seen.about[0] ?? "");
  const selected = checkpoints.find(({ name }) => name === chosen) ?? null;
  return (
    <>
      {checkpoints.length ? (
        <>
          <Drawing {...seen} chosen={chosen} choose={setChosen} />
          <p class="note">The fuller the green, the higher the reward; an empty one has none yet. Dotted: deleted steps.</p>
        </>
      ) : (
        <p>There are no checkpoints yet: the slug serves the base.</p>
      )}
      <Heads {...seen} heads={heads} />
      {selected ? (
        <Details {...seen} checkpoint={selected} />
      ) : (
        checkpoints.length > 0 && <p class="note">Choose a checkpoint, with the mouse or with the arrow keys.</p>
      )}
    </>
  );
}

interface Chosen {
  chosen: string;
  choose: (name: string) => void;
}

function Drawing({ tree, chosen, choose }: Seen & Chosen): JSX.Element {
  const frame = useRef<HTMLDivElement>(null);
  const [room, setRoom] = useState(0);
  useLayoutEffect(() => {
    const here = frame.current;
    if (!here) return;
    setRoom(here.clientWidth);
    const resized = new ResizeObserver(() => setRoom(here.clientWidth));
    resized.observe(here);
    return () => resized.disconnect();
  }, []);
  const started = performance.now();
  const drawn = useMemo(() => layout(tree.checkpoints, room), [tree.checkpoints, room]);
  useLayoutEffect(() => {
    if (!room) return;
    // Read by bench/console: from the data until the browser has laid it out.
    frame.current?.getBoundingClientRect();
    performance.measure("tree", { start: started, end: performance.now() });
  }, [drawn]);
  const moved = (event: KeyboardEvent): void => {
    if (!KEYS.includes(event.key)) return;
    event.preventDefault();
    choose(neighbour(drawn, chosen, event.key));
  };
  useEffect(() => {
    // The newest is at the right end, until somebody looks elsewhere.
    const node = drawn.byName.get(chosen);
    frame.current?.scrollTo({ left: node ? node.x - room / 2 : drawn.width });
  }, [chosen, drawn.width]);
  return (
    <div class="tree" ref={frame}>
      {room > 0 && (
        <svg
          role="listbox"
          tabindex={0}
          aria-label="Checkpoints; arrow keys go along the tree"
          aria-activedescendant={drawn.byName.has(chosen) ? `node-${chosen}` : undefined}
          width={drawn.width}
          height={drawn.height}
          onKeyDown={moved}
        >
          <Lines drawn={drawn} />
          <Nodes drawn={drawn} chosen={chosen} choose={choose} />
          <Flags drawn={drawn} />
        </svg>
      )}
    </div>
  );
}

function Lines({ drawn }: { drawn: Layout }): JSX.Element {
  const joined = (wanted: (edge: Layout["edges"][number]) => boolean): string =>
    drawn.edges
      .filter(wanted)
      .map(({ path }) => path)
      .join("");
  return (
    <g aria-hidden="true" class="edges">
      <path d={joined(({ gap, old }) => !gap && !old)} />
      <path d={joined(({ gap, old }) => !gap && old)} class="old" />
      <path d={joined(({ gap }) => gap)} class="gap" />
    </g>
  );
}

function Nodes({ drawn, chosen, choose }: { drawn: Layout } & Chosen): JSX.Element {
  const rewards = drawn.nodes.flatMap(({ checkpoint }) => checkpoint.reward ?? []);
  const [low, high] = [Math.min(...rewards), Math.max(...rewards)];
  const shade = ({ reward }: CheckpointView): string => {
    if (reward === null) return "unmeasured";
    return `r${high > low ? Math.min(COLOURS - 1, Math.floor(((reward - low) / (high - low)) * COLOURS)) : COLOURS - 1}`;
  };
  return (
    <>
      {drawn.nodes.map(({ checkpoint, x, y }) => (
        <circle
          key={checkpoint.name}
          id={`node-${checkpoint.name}`}
          role="option"
          aria-selected={checkpoint.name === chosen}
          aria-label={said(checkpoint)}
          class={`${shade(checkpoint)}${checkpoint.superseded ? " old" : ""}`}
          cx={x}
          cy={y}
          r={checkpoint.name === chosen ? 7 : 4.5}
          onClick={() => choose(checkpoint.name)}
        />
      ))}
    </>
  );
}

const said = ({ name, step, branch, reward, heads }: CheckpointView): string =>
  `${name}, step ${step}, branch ${branch}, reward ${figure(reward)}${heads.length ? `, head ${heads.join(", ")}` : ""}`;

function Flags({ drawn }: { drawn: Layout }): JSX.Element {
  const firsts = new Map<string, Layout["nodes"][number]>();
  for (const node of drawn.nodes) if (!firsts.has(node.checkpoint.branch)) firsts.set(node.checkpoint.branch, node);
  return (
    <g aria-hidden="true">
      {[...firsts].map(([branch, { x, y }]) => (
        <text key={branch} class="branch" x={x} y={y + 20}>
          {branch}
        </text>
      ))}
      {drawn.nodes
        .filter(({ checkpoint }) => checkpoint.heads.length)
        .map(({ checkpoint, x, y }) => (
          <text key={checkpoint.name} class="flag" x={x} y={y - 12}>
            ▾ {checkpoint.heads.join(" ")}
          </text>
        ))}
    </g>
  );
}
