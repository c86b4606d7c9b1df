// A checkpoint: its figures, and what can be done with it.
import type { JSX } from "preact";
import { MoveHead } from "./heads";
import type { Seen } from "./model";
import { figure } from "./parts";
import { link } from "./routes";
import type { CheckpointView } from "./types";

export function Details(props: Seen & { checkpoint: CheckpointView }): JSX.Element {
  const { namespace, name, tree, checkpoint } = props;
  const against = checkpoint.heads.length ? checkpoint.parent : tree.model.head;
  return (
    <section aria-label={checkpoint.name}>
      <h2>{checkpoint.name}</h2>
      <dl>
        {facts(checkpoint).map(([fact, value]) => (
          <div key={fact}>
            <dt>{fact}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {checkpoint.superseded && <p class="note">Training went on elsewhere: no head comes by it any more.</p>}
      <p class="actions">
        <a href={link(namespace, name, "rollouts", checkpoint.name)}>Rollouts of its step</a>
        <a href={link(namespace, name, "compare", against || "base", checkpoint.name)}>
          Ask it and {against || "the base"} the same
        </a>
      </p>
      {tree.heads.map((head) => (
        <MoveHead key={head.name} namespace={namespace} model={name} head={head} checkpoint={checkpoint.name} />
      ))}
    </section>
  );
}

const facts = (checkpoint: CheckpointView): [string, string][] => [
  ["step", String(checkpoint.step)],
  ["branch", checkpoint.branch],
  ["parent", checkpoint.parent || "base"],
  ["run", checkpoint.run || "none"],
  ["made", checkpoint.created],
  ["reward", figure(checkpoint.reward)],
  ...checkpoint.evaluations.map(({ name, tasks, mean_reward, low, high }): [string, string] => [
    `evaluation ${name}`,
    `${figure(mean_reward)} (95 %: ${figure(low)} to ${figure(high)}) of ${tasks} tasks`,
  ]),
];
