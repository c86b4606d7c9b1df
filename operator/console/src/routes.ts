// The place in the page, after the # of its address: a view, and what it shows. Never a token or a prompt.
import { useEffect, useState } from "preact/hooks";

export const VIEWS = ["tree", "curves", "rollouts", "runs", "compare"] as const;
export type View = (typeof VIEWS)[number];

export interface Place {
  namespace: string;
  name: string;
  view: View;
  /** Checkpoints that the view is about. */
  about: string[];
}

export const placeOf = (hash: string): Place | null => {
  const [namespace, name, view, ...about] = hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  if (!namespace || !name) return null;
  return { namespace, name, view: VIEWS.find((one) => one === view) ?? "tree", about };
};

export const link = (namespace: string, name: string, view: View = "tree", ...about: string[]): string =>
  `#/${[namespace, name, view, ...about].map(encodeURIComponent).join("/")}`;

export function usePlace(): Place | null {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const changed = (): void => setHash(location.hash);
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  try {
    return placeOf(hash);
  } catch {
    return null;
  }
}
