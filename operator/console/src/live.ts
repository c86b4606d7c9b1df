// Follows a stream of changes, and reads again what is shown after each of them.
import { useEffect, useState } from "preact/hooks";
import { Refusal, call } from "./api";

export type Connection = "connecting" | "live" | "lost";

export interface Live<T> {
  value: T | null;
  refusal: Refusal | null;
  connection: Connection;
}

const SOONEST = 1000;
const LATEST = 15000;
// The gateway says something every 15 s.
const SILENT = 45000;

/** Calls `changed` at every event; throws the refusal that ends the stream. */
async function follow(path: string, changed: () => Promise<void>, signal: AbortSignal): Promise<void> {
  const answer = await call(path, { signal });
  if (!answer.body) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await next(reader);
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop() ?? "";
      const named = events.map((text) => /^event: (.*)\ndata: (.*)$/.exec(text));
      const refused = named.find((event) => event?.[1] === "refused");
      if (refused) throw refusedBy(refused[2] ?? "{}");
      if (named.some((event) => event?.[1] === "changed")) await changed();
    }
  } finally {
    // A stream that nobody reads any more stays open at the gateway, which gives a caller only so many.
    reader.cancel().catch(() => undefined);
  }
}

/** What comes next; a stream whose network is gone ends by nothing else. */
async function next(reader: ReadableStreamDefaultReader<string>): Promise<ReadableStreamReadResult<string>> {
  let timer = 0;
  const silent = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("the stream is silent")), SILENT);
  });
  try {
    return await Promise.race([reader.read(), silent]);
  } finally {
    clearTimeout(timer);
  }
}

function refusedBy(data: string): Refusal {
  const body = JSON.parse(data) as Record<string, string>;
  return new Refusal(403, body["reason"] ?? "", body["detail"] ?? "", body["remedy"] ?? "");
}

/** What `load` reads, kept up to date; `load` and the stream belong to `key`. */
export function useLive<T>(key: string, stream: string, load: (signal: AbortSignal) => Promise<T>): Live<T> {
  const [live, setLive] = useState<Live<T>>({ value: null, refusal: null, connection: "connecting" });
  useEffect(() => {
    const stop = new AbortController();
    const { signal } = stop;
    let wait = SOONEST;
    const changed = async (): Promise<void> => {
      const value = await load(signal);
      wait = SOONEST;
      setLive({ value, refusal: null, connection: "live" });
    };
    const run = async (): Promise<void> => {
      while (!signal.aborted) {
        try {
          await follow(stream, changed, signal);
        } catch (error) {
          if (signal.aborted) return;
          if (!(error instanceof Refusal)) setLive((now) => ({ ...now, connection: "lost" }));
          else if (error.status >= 400 && error.status < 500 && error.status !== 429) {
            setLive((now) => ({ ...now, refusal: error, connection: "lost" }));
            return;
          } else setLive((now) => ({ ...now, refusal: now.value ? null : error, connection: "lost" }));
        }
        await new Promise((resolve) => setTimeout(resolve, wait));
        wait = Math.min(LATEST, wait * 2);
      }
    };
    setLive({ value: null, refusal: null, connection: "connecting" });
    void run();
    return () => stop.abort();
  }, [key]);
  return live;
}
