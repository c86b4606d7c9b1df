// The runs of a model, and what each of them waits for.
import type { JSX } from "preact";
import { Conditions } from "./parts";
import { Shown } from "./text";
import type { RunView } from "./types";

export function Runs({ runs }: { runs: RunView[] }): JSX.Element {
  if (!runs.length) return <p>No run of this model that you may get.</p>;
  return (
    <>
      {runs.map((run) => (
        <section key={run.name} aria-label={run.name}>
          <h2>{run.name}</h2>
          <p class="waits">
            <Shown text={run.waits_for} />
          </p>
          <p>
            <progress aria-label={`steps of ${run.name}`} value={run.step} max={run.steps} /> step {run.step} of {run.steps}
            {run.remaining_seconds !== null && run.step < run.steps && `, about ${minutes(run.remaining_seconds)} left`}
            , driver {run.driver}
          </p>
          <Conditions of={run.name} conditions={run.conditions} />
        </section>
      ))}
    </>
  );
}

const minutes = (seconds: number): string =>
  seconds < 90 ? `${seconds} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 360) / 10} h`;
