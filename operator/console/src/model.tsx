// One model: its views, over one tree that is kept up to date.
import type { JSX } from "preact";
import { get, ofModel } from "./api";
import { Compare } from "./compare";
import { Curves } from "./curves";
import { useLive } from "./live";
import { Conditions, Problem, Standing } from "./parts";
import { Rollouts } from "./rollouts";
import { VIEWS, link, type Place } from "./routes";
import { Runs } from "./runs";
import { Tree } from "./tree";
import type { RunList, Series, TreeView } from "./types";

/** What every view of a model gets. */
export interface Seen {
  namespace: string;
  name: string;
  tree: TreeView;
  about: string[];
}

export const METRIC = "reward/mean";

export interface Shown {
  tree: TreeView;
  runs: RunList;
}

const TITLES = { tree: "Tree", curves: "Curves", rollouts: "Rollouts", runs: "Runs", compare: "Compare" };

export function Model({ place }: { place: Place }): JSX.Element {
  const { namespace, name, view, about } = place;
  const path = (rest = ""): string => ofModel(namespace, name, rest);
  const { value, refusal, connection } = useLive<Shown>(path(), path("/changes"), async (signal) => {
    const [tree, runs] = await Promise.all([
      get<TreeView>(path(), signal),
      get<RunList>(path("/runs"), signal),
    ]);
    return { tree, runs };
  });
  const seen = value && { namespace, name, tree: value.tree, about };
  return (
    <main>
      <h1>
        {namespace}/{name}
      </h1>
      <Standing connection={connection} />
      <nav aria-label="Views of the model">
        {VIEWS.map((one) => (
          <a href={link(namespace, name, one)} aria-current={one === view ? "page" : undefined}>
            {TITLES[one]}
          </a>
        ))}
      </nav>
      <Problem refusal={refusal} />
      {seen && view === "tree" && <Tree {...seen} />}
      {seen && view === "curves" && <Curves {...seen} />}
      {seen && view === "rollouts" && <Rollouts {...seen} key={about.join("/")} />}
      {seen && view === "compare" && <Compare {...seen} />}
      {value && view === "runs" && <Runs runs={value.runs.runs} />}
      {seen && view === "tree" && <Conditions of="the model" conditions={seen.tree.conditions} />}
    </main>
  );
}

/** A metric over the tree. */
export const seriesOf = (seen: Seen, metric: string, signal: AbortSignal): Promise<Series> =>
  get<Series>(ofModel(seen.namespace, seen.name, `/series?metric=${encodeURIComponent(metric)}`), signal);
