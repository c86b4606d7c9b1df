// Calls of the gateway with the user's own token. The token is held in this tab alone: in sessionStorage, which
// no other origin reads, and never in an address or a cookie.

const KEY = "espalier-token";

export const token = (): string => sessionStorage.getItem(KEY) ?? "";
export const keepToken = (text: string): void => sessionStorage.setItem(KEY, text);
export const forgetToken = (): void => sessionStorage.removeItem(KEY);

/** An answer that is none: what is wrong, and what to do about it. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    readonly detail: string,
    readonly remedy: string,
    readonly request = "",
  ) {
    super(detail);
  }
}

/** The address of a route below the gateway's root, wherever a proxy has put that. */
export const address = (path: string): string => new URL(`../${path}`, document.baseURI).href;

/** The path of a model's part of the API. */
export const ofModel = (namespace: string, name: string, rest = ""): string =>
  `console/api/v1/models/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}${rest}`;

export async function call(path: string, options: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(address(path), {
      ...options,
      credentials: "omit",
      redirect: "error",
      headers: { Authorization: `Bearer ${token()}`, ...options.headers },
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refusal(0, "Unreachable", "the gateway does not answer", "Check that it runs, and that you are online");
  }
  if (!answer.ok) throw await refusalOf(answer);
  return answer;
}

export const get = async <T>(path: string, signal?: AbortSignal): Promise<T> =>
  (await call(path, signal ? { signal } : {})).json() as Promise<T>;

export const send = async <T>(method: "PUT" | "POST", path: string, body: unknown, signal?: AbortSignal): Promise<T> =>
  (
    await call(path, {
      method,
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
      ...(signal ? { signal } : {}),
    })
  ).json() as Promise<T>;

async function refusalOf(answer: Response): Promise<Refusal> {
  const request = answer.headers.get("X-Request-Id") ?? "";
  try {
    const body = (await answer.json()) as Record<string, unknown>;
    // Completions are refused as OpenAI's API does it.
    const error = body["error"] as Record<string, unknown> | undefined;
    const said = (value: unknown): string => (typeof value === "string" ? value : "");
    if (error) return new Refusal(answer.status, said(error["code"]), said(error["message"]), "", request);
    return new Refusal(answer.status, said(body["reason"]), said(body["detail"]), said(body["remedy"]), request);
  } catch {
    return new Refusal(answer.status, "Unreadable", `the answer ${answer.status} is not the gateway's`, "", request);
  }
}
