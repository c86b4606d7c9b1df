// Two checkpoints, asked the same.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { send, type Refusal } from "./api";
import type { Seen } from "./model";
import { Problem, asRefusal } from "./parts";
import { Choice } from "./rollouts";
import { link } from "./routes";
import { Block, Difference, Legend, Tokens, type Token } from "./text";

interface Answer {
  text: string;
  tokens: Token[];
  ended: string;
}

interface Completion {
  choices: {
    message: { content: string | null };
    finish_reason: string;
    logprobs: { content: { token: string; logprob: number | null }[] } | null;
  }[];
}

interface Question {
  prompt: string;
  temperature: number;
  maxTokens: number;
}

async function ask(model: string, question: Question, signal: AbortSignal): Promise<Answer> {
  const body = {
    model,
    messages: [{ role: "user", content: question.prompt }],
    temperature: question.temperature,
    max_tokens: question.maxTokens,
    logprobs: true,
  };
  const { choices } = await send<Completion>("POST", "v1/chat/completions", body, signal);
  const choice = choices[0];
  const tokens = (choice?.logprobs?.content ?? []).map(({ token, logprob }) => ({ text: token, logprob }));
  return { text: choice?.message.content ?? "", tokens, ended: choice?.finish_reason ?? "" };
}

type Outcome = Answer | Refusal;

export function Compare(seen: Seen): JSX.Element {
  const { checkpoints, model } = seen.tree;
  const names = ["base", ...checkpoints.map(({ name }) => name)].reverse();
  const first = seen.about[0] ?? "base";
  // The head may move on meanwhile.
  const [served] = useState(model.head || "base");
  const second = seen.about[1] ?? served;
  const [outcomes, setOutcomes] = useState<Outcome[]>([]);
  const [asking, setAsking] = useState(false);
  const stop = useRef(new AbortController());
  // What the two before were asked would be shown as answers of these.
  useEffect(
    () => () => {
      stop.current.abort();
      stop.current = new AbortController();
      setOutcomes([]);
      setAsking(false);
    },
    [first, second],
  );
  const go = (...about: string[]): void => {
    location.hash = link(seen.namespace, seen.name, "compare", ...about);
  };
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const data = new FormData(event.currentTarget as HTMLFormElement);
    const question = {
      prompt: String(data.get("prompt")),
      temperature: Number(data.get("temperature")),
      maxTokens: Number(data.get("tokens")),
    };
    setAsking(true);
    const { signal } = stop.current;
    const slugs = [first, second].map((name) => `${seen.namespace}/${seen.name}@${name}`);
    const found = await Promise.all(slugs.map((slug) => ask(slug, question, signal).catch(asRefusal)));
    if (signal.aborted) return;
    setOutcomes(found);
    setAsking(false);
  };
  return (
    <>
      <form class="choices" onSubmit={submit}>
        <Choice label="First" value={first} names={names} choose={(name) => go(name, second)} />
        <Choice label="Second" value={second} names={names} choose={(name) => go(first, name)} />
        <label class="whole">
          Prompt <textarea name="prompt" rows={4} required />
        </label>
        <label>
          Temperature <input name="temperature" type="number" min="0" max="2" step="0.1" value="0" />
        </label>
        <label>
          Most tokens <input name="tokens" type="number" min="1" max="4096" value="64" />
        </label>
        <button disabled={asking}>Ask both</button>
      </form>
      <p role="status">{asking ? "asking" : ""}</p>
      {outcomes.some((outcome) => !(outcome instanceof Error) && outcome.tokens.length) && <Legend />}
      <div class="cards">
        {outcomes.map((outcome, at) => (
          <Said name={at ? second : first} outcome={outcome} />
        ))}
      </div>
      <Changes outcomes={outcomes} />
    </>
  );
}

const Said = ({ name, outcome }: { name: string; outcome: Outcome }): JSX.Element => (
  <article>
    <h2>{name}</h2>
    {outcome instanceof Error ? (
      <Problem refusal={outcome} />
    ) : (
      <>
        {outcome.tokens.length ? <Tokens tokens={outcome.tokens} /> : <Block text={outcome.text} />}
        <p class="note">ended by {outcome.ended}</p>
      </>
    )}
  </article>
);

function Changes({ outcomes: [first, second] }: { outcomes: Outcome[] }): JSX.Element | null {
  if (!first || !second || first instanceof Error || second instanceof Error) return null;
  return (
    <section aria-label="Changes">
      <h2>From the first to the second</h2>
      <Difference before={first.text} after={second.text} />
    </section>
  );
}
