// Curves of any metric over branches and runs.
import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import type { Refusal } from "./api";
import { curveData, labels, type CurveData } from "./curve_data";
import { METRIC, seriesOf, type Seen } from "./model";
import { Problem, asRefusal, figure } from "./parts";
import type { Series } from "./types";

const HEIGHT = 360;

export function Curves(seen: Seen): JSX.Element {
  const { metrics } = seen.tree;
  const [metric, setMetric] = useState(metrics.includes(METRIC) ? METRIC : (metrics[0] ?? ""));
  const [weight, setWeight] = useState(0);
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const [series, setSeries] = useState<Series | null>(null);
  const [refusal, setRefusal] = useState<Refusal | null>(null);
  useEffect(() => {
    if (!metric) return;
    const stop = new AbortController();
    seriesOf(seen, metric, stop.signal)
      .then((found) => {
        setSeries(found);
        setRefusal(null);
      })
      .catch((error: unknown) => stop.signal.aborted || setRefusal(asRefusal(error)));
    return () => stop.abort();
  }, [metric, seen.tree]);
  const data = useMemo(() => series && curveData(series, weight, hidden), [series, weight, hidden]);
  if (!metrics.length) return <p>No checkpoint bears a metric yet.</p>;
  const toggle = (label: string): void => {
    const left = new Set(hidden);
    if (!left.delete(label)) left.add(label);
    setHidden(left);
  };
  return (
    <>
      <form class="choices">
        <label>
          Metric{" "}
          <select value={metric} onChange={(event) => setMetric(event.currentTarget.value)}>
            {metrics.map((name) => (
              <option value={name}>{name}</option>
            ))}
          </select>
        </label>
        <label>
          Smoothing{" "}
          <input
            type="range"
            min="0"
            max="0.98"
            step="0.02"
            value={weight}
            onInput={(event) => setWeight(Number(event.currentTarget.value))}
          />{" "}
          {weight}
        </label>
        {series && labels(series).length > 1 && (
          <fieldset>
            <legend>Branches and runs</legend>
            {labels(series).map((label) => (
              <label>
                <input type="checkbox" checked={!hidden.has(label)} onChange={() => toggle(label)} /> {label}
              </label>
            ))}
          </fieldset>
        )}
      </form>
      <Problem refusal={refusal} />
      {data && <Plot data={data} metric={metric} smooth={weight > 0} />}
      {data && <Values data={data} metric={metric} />}
    </>
  );
}

const COLOURS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5"];

function Plot({ data, metric, smooth }: { data: CurveData; metric: string; smooth: boolean }): JSX.Element {
  const frame = useRef<HTMLDivElement>(null);
  const dark = useScheme();
  useEffect(() => {
    const here = frame.current;
    if (!here) return;
    const plot = new uPlot(optionsOf(here, data, metric, smooth), columns(data), here);
    const resized = new ResizeObserver(() => plot.setSize({ width: here.clientWidth, height: HEIGHT }));
    resized.observe(here);
    return () => {
      resized.disconnect();
      plot.destroy();
    };
  }, [data, metric, smooth, dark]);
  const said = `${metric} over steps: ${data.curves.map(({ label }) => label).join(", ")}. The table below has its values.`;
  return <div class="plot" ref={frame} role="img" aria-label={said} />;
}

const columns = (data: CurveData): uPlot.AlignedData => [
  data.steps,
  ...data.curves.flatMap(({ values, smooth, low, high }) => [smooth, values, low, high]),
];

function optionsOf(here: HTMLElement, data: CurveData, metric: string, smooth: boolean): uPlot.Options {
  const style = getComputedStyle(here);
  const colour = (name: string): string => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--ink"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--grid") } };
  const spanGaps = true;
  const series: uPlot.Series[] = [{ label: "step" }];
  const bands: uPlot.Band[] = [];
  data.curves.forEach(({ label, low }, index) => {
    const stroke = colour(COLOURS[index % COLOURS.length] ?? "--c0");
    const measured = low.some((value) => value !== null);
    const ends = { stroke: `${stroke}55`, width: 1, show: measured, spanGaps, points: { show: false } };
    const first = series.length;
    series.push(
      { label, stroke, width: 2, spanGaps },
      { label: `${label}, as measured`, stroke: `${stroke}66`, width: 1, show: smooth, spanGaps, points: { show: false } },
      { label: `${label}, 95 % low`, ...ends },
      { label: `${label}, 95 % high`, ...ends },
    );
    if (measured) bands.push({ series: [first + 3, first + 2], fill: `${stroke}2b` });
  });
  return {
    width: here.clientWidth,
    height: HEIGHT,
    title: metric,
    scales: { x: { time: false } },
    axes: [
      { ...axis, label: "step" },
      { ...axis, size: 64 },
    ],
    series,
    bands,
    // The figures under the pointer are in the table too, which everybody can read.
    legend: { show: false },
  };
}

function useScheme(): boolean {
  const query = useMemo(() => matchMedia("(prefers-color-scheme: dark)"), []);
  const [dark, setDark] = useState(query.matches);
  useEffect(() => {
    const changed = (): void => setDark(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  return dark;
}

function Values({ data, metric }: { data: CurveData; metric: string }): JSX.Element {
  return (
    <>
      <ul class="keys">
        {data.curves.map(({ label }, index) => (
          <li>
            <span class={`key k${index % COLOURS.length}`} aria-hidden="true" /> {label}
          </li>
        ))}
      </ul>
      <details>
        <summary>Values as a table</summary>
        <table>
          <caption>{metric} by step</caption>
          <thead>
            <tr>
              <th scope="col">step</th>
              {data.curves.map(({ label }) => (
                <th scope="col">{label}</th>
              ))}
            </tr>
          </thead>
          <tbody>
            {data.steps.map((step, at) => (
              <tr key={step}>
                <th scope="row">{step}</th>
                {data.curves.map(({ values, low, high }) => (
                  <td class="number">{cell(values[at], low[at], high[at])}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </details>
    </>
  );
}

const cell = (value = null as number | null, low = null as number | null, high = null as number | null): string =>
  low === null || high === null ? figure(value) : `${figure(value)} (${figure(low)} to ${figure(high)})`;
