// A kept rollout as the page shows it. A record is of whatever its client sent, so nothing of it is taken on trust.
import type { Token } from "./text";

export type Rollout = Record<string, unknown>;

export interface Message {
  role: string;
  text: string;
}

const text = (value: unknown): string => (typeof value === "string" ? value : value == null ? "" : JSON.stringify(value));
export const number = (value: unknown): number | null => (typeof value === "number" ? value : null);

/** How records of the runner, of the Python client and of HUD's name the rewards of several scorers. */
const PARTS = ["reward_parts", "rewards"];
/** What the page shows in a place of its own; the rest is listed below a card. */
const SHOWN = new Set([
  ...PARTS,
  ...["task", "group", "prompt", "completion", "reward", "advantage", "tokens", "token_texts", "token_ids"],
  ...["logprobs", "trained", "stop_reason", "finish_reason"],
]);

export const task = (record: Rollout): string => text(record["task"]) || "task without a name";
export const group = (record: Rollout): string => `${text(record["group"]) || task(record)}\n${task(record)}`;
export const completion = (record: Rollout): string => text(record["completion"]);
export const trained = (record: Rollout): boolean => record["trained"] !== false;

/** What was asked: a chat with its calls of tools and their answers, or the end of a prompt as text. */
export function messages(record: Rollout): Message[] {
  const prompt = record["prompt"];
  if (!prompt) return [];
  if (!Array.isArray(prompt)) return [{ role: "prompt", text: text(prompt) }];
  return prompt.flatMap((one: unknown): Message[] => {
    if (typeof one !== "object" || one === null) return [{ role: "", text: text(one) }];
    const { role, content, tool_calls: calls, ...rest } = one as Rollout;
    const name = [text(role), text(rest["name"] ?? rest["tool_call_id"])].filter(Boolean).join(" ");
    const said: Message[] = content ? [{ role: name, text: text(content) }] : [];
    return calls ? [...said, { role: `${name} calls tools`, text: JSON.stringify(calls, null, 1) }] : said;
  });
}

/** The sampled tokens; null where the record holds none that match their log-probs. */
export function tokens(record: Rollout): Token[] | null {
  const [texts, logprobs] = [record["token_texts"], record["logprobs"]];
  if (!Array.isArray(texts) || !Array.isArray(logprobs) || texts.length !== logprobs.length) return null;
  return texts.map((one: unknown, at): Token => ({ text: text(one), logprob: number(logprobs[at]) }));
}

/** Name and value of the figures in the head of a card. */
export function figures(record: Rollout, mean: number | null): [string, number | string][] {
  const found: [string, number | string][] = [["reward", number(record["reward"]) ?? "none"]];
  for (const field of PARTS) {
    const parts = record[field];
    if (typeof parts !== "object" || parts === null || Array.isArray(parts)) continue;
    for (const [name, value] of Object.entries(parts)) found.push([name, number(value) ?? "none"]);
  }
  const [reward, advantage] = [number(record["reward"]), number(record["advantage"])];
  if (advantage !== null) found.push(["advantage", advantage]);
  else if (reward !== null && mean !== null) found.push(["reward − mean of the group", reward - mean]);
  const ended = text(record["stop_reason"] ?? record["finish_reason"]);
  if (ended) found.push(["ended by", ended]);
  const count = number(record["tokens"]);
  if (count !== null) found.push(["tokens", count]);
  return found;
}

/** All else that the record says. */
export const rest = (record: Rollout): [string, string][] =>
  Object.entries(record)
    .filter(([name, value]) => !SHOWN.has(name) && value !== null && value !== "")
    .map(([name, value]) => [name, text(value)]);
