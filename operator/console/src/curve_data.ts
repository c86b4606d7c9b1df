// Lines of a metric as uPlot takes them: one column of steps, and for each line its values. Pure.
import type { Line, Series } from "./types";

export type Column = (number | null)[];

export interface Curve {
  label: string;
  values: Column;
  smooth: Column;
  low: Column;
  high: Column;
}

export interface CurveData {
  steps: number[];
  curves: Curve[];
}

/** An exponential mean, corrected for its start; `weight` from 0 (as it is) to below 1. */
export function smoothed(values: Column, weight: number): Column {
  let [sum, share] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}

/** The curves of a series: a line for each branch and run; `hidden` are left out, by their label. */
export function curveData(series: Series, weight: number, hidden: ReadonlySet<string>): CurveData {
  const parts = series.lines.flatMap(split).filter(({ label }) => !hidden.has(label));
  const steps = [...new Set(parts.flatMap(({ line, at }) => at.map((index) => line.steps[index] ?? 0)))];
  steps.sort((a, b) => a - b);
  const column = new Map(steps.map((step, index) => [step, index]));
  return {
    steps,
    curves: parts.map(({ label, line, at }) => {
      const spread = (from: Column): Column => {
        const found: Column = steps.map(() => null);
        for (const index of at) found[column.get(line.steps[index] ?? 0) ?? 0] = from[index] ?? null;
        return found;
      };
      const values = spread(line.values);
      return { label, values, smooth: smoothed(values, weight), low: spread(line.low), high: spread(line.high) };
    }),
  };
}

interface Part {
  label: string;
  line: Line;
  /** Which points of the line are the part's. */
  at: number[];
}

/** A branch as a part for each of its runs; a part starts at the point before its first. */
function split(line: Line): Part[] {
  const parts = new Map<string, number[]>();
  line.runs.forEach((run, index) => {
    // The first point of a side branch is where it grew from, and is of whichever run.
    const of = index === 0 && line.branch !== "main" ? (line.runs[1] ?? run) : run;
    const points = parts.get(of) ?? (index ? [index - 1] : []);
    parts.set(of, [...points, index]);
  });
  return [...parts].map(([run, at]) => ({ label: run ? `${line.branch} · ${run}` : line.branch, line, at }));
}

export const labels = (series: Series): string[] => series.lines.flatMap(split).map(({ label }) => label);
