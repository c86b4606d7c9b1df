// The heads of a model: what they serve, who moved them, and how to move them.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { send, type Refusal } from "./api";
import type { Seen } from "./model";
import { Problem, asRefusal } from "./parts";
import { Shown } from "./text";
import type { HeadRequest, HeadView } from "./types";

export function Heads({ namespace, name, heads }: Seen & { heads: HeadView[] }): JSX.Element | null {
  if (!heads.length) return <p>The model has no head yet.</p>;
  return (
    <>
      <table>
        <caption>Heads</caption>
        <thead>
          <tr>
            {["head", "serves", "asks for", "asked by", "last move", "state"].map((title) => (
              <th scope="col">{title}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {heads.map((head) => (
            <tr key={head.name}>
              <th scope="row">{head.name}</th>
              <td>{head.current || "base"}</td>
              <td>{head.mode === "Pin" ? `Pin ${head.checkpoint}, onPin ${head.on_pin}` : "Track"}</td>
              <td>
                <Shown text={head.moved_by || "unknown"} />
              </td>
              <td>{moved(head)}</td>
              <td class="wide">
                <Shown text={standing(head)} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {heads
        .filter((head) => head.mode === "Pin")
        .map((head) => (
          <MoveHead key={head.name} namespace={namespace} model={name} head={head} checkpoint="" />
        ))}
    </>
  );
}

const moved = ({ history: [last] }: HeadView): string =>
  last ? `${last.reason} to ${last.checkpoint || "base"}, ${last.time}` : "none yet";

const standing = ({ conditions }: HeadView): string => {
  const ready = conditions.find(({ type }) => type === "Ready");
  return ready ? `${ready.reason}: ${ready.message}` : "not seen yet";
};

interface Move {
  namespace: string;
  model: string;
  head: HeadView;
  /** To pin it to; empty to let it follow training again. */
  checkpoint: string;
}

/** Moves a head by a button, or tells who can. */
export function MoveHead({ namespace, model, head, checkpoint }: Move): JSX.Element {
  const [onPin, setOnPin] = useState<HeadRequest["on_pin"]>("Branch");
  const [refusal, setRefusal] = useState<Refusal | null>(null);
  const [said, setSaid] = useState("");
  const wanted: HeadRequest = { mode: checkpoint ? "Pin" : "Track", checkpoint, on_pin: onPin };
  const what = checkpoint ? `Serve ${checkpoint} from ${head.name}` : `Let ${head.name} follow training again`;
  const move = async (): Promise<void> => {
    setSaid("");
    try {
      const asked = checkpoint ? wanted : { mode: wanted.mode };
      await send("PUT", `console/api/v1/heads/${encodeURIComponent(namespace)}/${encodeURIComponent(head.name)}`, asked);
      setRefusal(null);
      setSaid("Asked for: the operator moves the head, and the tree shows when it is served.");
    } catch (error) {
      setRefusal(asRefusal(error));
    }
  };
  const choice = checkpoint && (
    <label>
      Training meanwhile{" "}
      <select value={onPin} onChange={(event) => setOnPin(event.currentTarget.value as HeadRequest["on_pin"])}>
        <option value="Branch">goes on from there (Branch)</option>
        <option value="Pause">pauses (Pause)</option>
        <option value="Continue">goes on as it was (Continue)</option>
      </select>
    </label>
  );
  if (!head.may_move && !head.owner) {
    return (
      <p class="note">
        {what}: you may not. It takes update on checkpointheads {namespace}/{head.name}.
      </p>
    );
  }
  return (
    <div class="move">
      {choice}
      {head.owner ? (
        <Commit what={what} manifest={manifest(namespace, model, head.name, wanted)} owner={head.owner} />
      ) : (
        <button onClick={move}>{what}</button>
      )}
      <p role="status">{said}</p>
      <Problem refusal={refusal} />
    </div>
  );
}

const Commit = ({ what, manifest, owner }: { what: string; manifest: string; owner: string }): JSX.Element => (
  <details>
    <summary>{what}: the commit to make</summary>
    <p>
      Git owns the head through <Shown text={owner} />, which would undo an edit here. Set this in its manifest instead; other
      fields stay:
    </p>
    <pre tabindex={0}>{manifest}</pre>
  </details>
);

/** The part of a head's manifest that asks for this. */
function manifest(namespace: string, model: string, head: string, wanted: HeadRequest): string {
  const pin = wanted.checkpoint ? `\n  checkpointRef: {name: ${wanted.checkpoint}}\n  onPin: ${wanted.on_pin}` : "";
  return `apiVersion: espalier.dev/v1alpha1
kind: CheckpointHead
metadata: {name: ${head}, namespace: ${namespace}}
spec:
  modelRef: {name: ${model}}
  mode: ${wanted.mode}${pin}`;
}
