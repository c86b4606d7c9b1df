// Small parts that all views share.
import type { JSX } from "preact";
import { Refusal } from "./api";
import type { Connection } from "./live";
import { Shown } from "./text";
import type { ConditionView } from "./types";

export const figure = (value: number | null): string => (value === null ? "–" : Number(value.toPrecision(4)).toString());

export const asRefusal = (error: unknown): Refusal =>
  error instanceof Refusal ? error : new Refusal(0, "PageFault", `the page failed: ${String(error)}`, "Load it again");

/** What was refused, and what to do about it. */
export function Problem({ refusal }: { refusal: Refusal | null }): JSX.Element | null {
  if (!refusal) return null;
  return (
    <div class="problem" role="alert">
      <p>
        <strong>{refusal.reason || refusal.status}</strong> <Shown text={refusal.detail} />
      </p>
      {refusal.remedy && (
        <p>
          <Shown text={refusal.remedy} />
        </p>
      )}
      {refusal.request && <p class="note">request {refusal.request}</p>}
    </div>
  );
}

const SAID: Record<Connection, string> = {
  connecting: "connecting",
  live: "live",
  lost: "connection lost: what is shown may be old",
};

/** Whether what is shown is up to date. */
export const Standing = ({ connection }: { connection: Connection }): JSX.Element => (
  <p role="status" class={`standing ${connection}`}>
    {SAID[connection]}
  </p>
);

/** Conditions as a table. */
export const Conditions = ({ of, conditions }: { of: string; conditions: ConditionView[] }): JSX.Element => (
  <table>
    <caption>Conditions of {of}</caption>
    <thead>
      <tr>
        <th scope="col">condition</th>
        <th scope="col">status</th>
        <th scope="col">reason</th>
        <th scope="col">message</th>
        <th scope="col">since</th>
      </tr>
    </thead>
    <tbody>
      {conditions.map((one) => (
        <tr key={one.type}>
          <th scope="row">{one.type}</th>
          <td>{one.status}</td>
          <td>{one.reason}</td>
          <td class="wide">
            <Shown text={one.message} />
          </td>
          <td>{one.since}</td>
        </tr>
      ))}
    </tbody>
  </table>
);
