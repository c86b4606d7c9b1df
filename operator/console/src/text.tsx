// Texts of models, tasks and users. All of it is hostile: it is only ever text of a node, and what would change how
// other text is read is shown by its number.
import type { ComponentChildren, JSX } from "preact";
import { diffWordsWithSpace } from "diff";

// Of one text; more is cut, and said so.
const CHARS_MOST = 20000;
const DIFF_MILLISECONDS = 200;
const CONTROL =
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|[\ud800-\udfff]/u;

const number = (character: string): string =>
  `U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;

/** The text in an attribute or a name. */
export const plain = (text: string): string => text.replace(new RegExp(CONTROL, "gu"), number);

/** The text as content of an element. */
export function Shown({ text }: { text: string }): JSX.Element {
  if (!CONTROL.test(text)) return <>{text}</>;
  const parts = text.split(new RegExp(`(${CONTROL.source})`, "gu"));
  return (
    <>
      {parts.map((part, at) => (at % 2 ? <span class="control">{number(part)}</span> : part))}
    </>
  );
}

/** A paragraph that keeps its lines and the direction of its writing to itself. */
export function Block({ text }: { text: string }): JSX.Element {
  const left = text.length - CHARS_MOST;
  return (
    <div class="text" dir="auto">
      <Shown text={text.slice(0, CHARS_MOST)} />
      {left > 0 && <span class="note"> … {left} more characters</span>}
    </div>
  );
}

/** What went and what came between two texts. */
export function Difference({ before, after }: { before: string; after: string }): JSX.Element {
  if (before === after) return <p class="note">the same answer</p>;
  const parts = diffWordsWithSpace(before, after, { timeout: DIFF_MILLISECONDS });
  if (!parts) return <p class="note">not compared: they differ in too much</p>;
  return (
    <div class="text" dir="auto">
      {parts.map(({ added, removed, value }) => {
        const said = <Shown text={value} />;
        if (added) return <ins>{said}</ins>;
        return removed ? <del>{said}</del> : said;
      })}
    </div>
  );
}

// Lowest probability of each colour, likeliest first; the last colour takes the rest.
const LIKELY = [0.9, 0.5, 0.2, 0.05, 0.01];

export interface Token {
  text: string;
  logprob: number | null;
}

const colour = (likely: number): number => {
  const at = LIKELY.findIndex((lowest) => likely >= lowest);
  return at < 0 ? LIKELY.length : at;
};

/** Sampled tokens, coloured by the probability that their sampler gave them. */
export function Tokens({ tokens, note }: { tokens: Token[]; note?: ComponentChildren }): JSX.Element {
  return (
    <div class="text tokens" dir="auto">
      {tokens.map(({ text, logprob }) => {
        // A log-prob that no JSON can hold is of what was next to impossible.
        const likely = logprob === null ? 0 : Math.exp(Math.min(0, logprob));
        const said = `log-prob ${logprob === null ? "−∞" : logprob.toPrecision(4)}, probability ${likely.toPrecision(3)}`;
        return (
          <span class={`p${colour(likely)}`} title={said}>
            {text ? <Shown text={text.replaceAll("\n", "⏎\n")} /> : "∅"}
          </span>
        );
      })}
      {note}
    </div>
  );
}

/** What each colour means. */
export const Legend = (): JSX.Element => (
  <p class="note legend">
    probability of a token to its sampler:{" "}
    {[...LIKELY.map((lowest) => `≥ ${lowest * 100} %`), `< ${(LIKELY.at(-1) ?? 0) * 100} %`].map((said, at) => (
      <span class={`p${at}`}>{said}</span>
    ))}
  </p>
);
