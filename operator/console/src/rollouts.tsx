// Rollouts of a step side by side, with what an earlier checkpoint answered to the same tasks.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { get, ofModel, type Refusal } from "./api";
import type { Seen } from "./model";
import { Problem, asRefusal, figure } from "./parts";
import { completion, figures, group, messages, number, rest, task, tokens, trained, type Rollout } from "./rollout_record";
import { link } from "./routes";
import { Block, Difference, Legend, Shown, Tokens, plain } from "./text";
import type { RolloutPage } from "./types";

interface Kept {
  records: Rollout[];
  total: number;
  next: number | null;
  refusal: Refusal | null;
}

const NOTHING: Kept = { records: [], total: 0, next: 0, refusal: null };

/** Pages of a checkpoint's records, and how to read the next one. */
function useKept(seen: Seen, checkpoint: string): [Kept, () => void] {
  const [kept, setKept] = useState(NOTHING);
  const read = (after: number, before: Rollout[], signal?: AbortSignal): void => {
    const path = ofModel(seen.namespace, seen.name, `/checkpoints/${encodeURIComponent(checkpoint)}/rollouts?after=${after}`);
    get<RolloutPage>(path, signal)
      .then(({ records, total, next }) => setKept({ records: [...before, ...records], total, next, refusal: null }))
      .catch((error: unknown) => signal?.aborted || setKept((now) => ({ ...now, refusal: asRefusal(error) })));
  };
  useEffect(() => {
    setKept(NOTHING);
    if (!checkpoint) return;
    const stop = new AbortController();
    read(0, [], stop.signal);
    return () => stop.abort();
  }, [checkpoint]);
  return [kept, () => kept.next && read(kept.next, kept.records)];
}

export function Rollouts(seen: Seen): JSX.Element {
  const { checkpoints, model } = seen.tree;
  // What one reads stays while the head moves on.
  const chosen = useRef("");
  chosen.current ||= seen.about[0] ?? (model.head || checkpoints.at(-1)?.name || "");
  const checkpoint = chosen.current;
  const parent = checkpoints.find(({ name }) => name === checkpoint)?.parent ?? "";
  const before = seen.about[1] ?? (checkpoints.some(({ name }) => name === parent) ? parent : "");
  const [kept, more] = useKept(seen, checkpoint);
  const [earlier] = useKept(seen, before);
  const go = (...about: string[]): void => {
    location.hash = link(seen.namespace, seen.name, "rollouts", ...about);
  };
  if (!checkpoint) return <p>There are no checkpoints yet.</p>;
  const names = checkpoints.map(({ name }) => name).reverse();
  const grouped = Map.groupBy(kept.records, group);
  const answers = Map.groupBy(earlier.records, task);
  return (
    <>
      <form class="choices">
        <Choice label="Rollouts of" value={checkpoint} names={names} choose={(name) => go(name)} />
        <Choice label="compared with" value={before} names={["", ...names]} choose={(name) => go(checkpoint, name)} />
      </form>
      <Problem refusal={kept.refusal} />
      {earlier.refusal && <p class="note">Nothing to compare with: {earlier.refusal.detail}</p>}
      <p class="note" role="status">
        {kept.records.length} of {kept.total} rollouts in {grouped.size} groups,{" "}
        {kept.records.filter(trained).length} of them trained on
      </p>
      {kept.records.some(tokens) && <Legend />}
      {[...grouped].map(([key, records]) => (
        <Group key={key} records={records} earlier={answers.get(task(records[0] ?? {})) ?? []} before={before} />
      ))}
      {kept.next ? <button onClick={more}>Read more</button> : null}
    </>
  );
}

interface ChoiceProps {
  label: string;
  value: string;
  names: string[];
  choose: (name: string) => void;
}

export const Choice = ({ label, value, names, choose }: ChoiceProps): JSX.Element => (
  <label>
    {label}{" "}
    <select value={value} onChange={(event) => choose(event.currentTarget.value)}>
      {names.map((name) => (
        <option value={name}>{name || "nothing"}</option>
      ))}
    </select>
  </label>
);

function Group({ records, earlier, before }: { records: Rollout[]; earlier: Rollout[]; before: string }): JSX.Element {
  const first = records[0] ?? {};
  const paid = records.flatMap((record) => number(record["reward"]) ?? []);
  const mean = paid.length ? paid.reduce((sum, one) => sum + one, 0) / paid.length : null;
  const asked = messages(first);
  return (
    <section aria-label={plain(task(first))}>
      <h2>
        <Shown text={task(first)} />
      </h2>
      <p class="note">
        {records.length} rollouts{mean !== null && `, mean reward ${figure(mean)}`}
      </p>
      {asked.length > 0 && (
        <details>
          <summary>prompt</summary>
          {asked.map(({ role, text }) => (
            <>
              <p class="role">
                <Shown text={role} />
              </p>
              <Block text={text} />
            </>
          ))}
        </details>
      )}
      <div class="cards">
        {records.map((record, at) => (
          <Card key={at} record={record} mean={mean} earlier={earlier[at] ?? null} before={before} />
        ))}
      </div>
    </section>
  );
}

interface CardProps {
  record: Rollout;
  mean: number | null;
  earlier: Rollout | null;
  before: string;
}

function Card({ record, mean, earlier, before }: CardProps): JSX.Element {
  const drawn = tokens(record);
  const others = rest(record);
  return (
    <article class={trained(record) ? "" : "left"}>
      <dl>
        {figures(record, mean).map(([name, value]) => (
          <div>
            <dt>
              <Shown text={name} />
            </dt>
            <dd>{typeof value === "number" ? figure(value) : <Shown text={value} />}</dd>
          </div>
        ))}
      </dl>
      {!trained(record) && <p class="note">not trained on</p>}
      {drawn ? <Tokens tokens={drawn} note={more(record, drawn.length)} /> : <Block text={completion(record)} />}
      {earlier && (
        <details>
          <summary>
            changes since {before}, reward {figure(number(earlier["reward"]))}
          </summary>
          <Difference before={completion(earlier)} after={completion(record)} />
        </details>
      )}
      {others.length > 0 && (
        <details>
          <summary>what else is recorded</summary>
          {others.map(([name, value]) => (
            <>
              <p class="role">
                <Shown text={name} />
              </p>
              <Block text={value} />
            </>
          ))}
        </details>
      )}
    </article>
  );
}

const more = (record: Rollout, there: number): JSX.Element | null => {
  const left = (number(record["tokens"]) ?? 0) - there;
  return left > 0 ? <span class="note"> … {left} more tokens</span> : null;
};
