import { number } from "../chat/stats.js";
import { html } from "../html.js";
import { Canvas } from "./canvas.js";
import { drawSpark } from "./spark.js";

/** The figures at the top. Lines show the last seconds of those that move. */
export function Figures({ history }) {
  const { latest, figures, totals } = history;
  const last = figures.at(-1) ?? { output: 0, prompt: 0, step: 0 };
  const tenants = latest?.tenants ?? [];
  const waiting = tenants.reduce((sum, tenant) => sum + tenant.waiting, 0);
  const step = last.step * 1000;
  const all = [
    { label: "Running", value: number(latest?.rows.length ?? 0), note: latest ? `of ${number(latest.max_rows)} rows` : "" },
    { label: "Waiting", value: number(waiting), note: totals.preempted ? `${number(totals.preempted)} preemptions` : "in the queue" },
    { label: "Output", value: number(last.output), note: "tokens/s", line: "output" },
    { label: "Prompts", value: number(last.prompt), note: "tokens/s", line: "prompt" },
    { label: "Step", value: number(step, step < 10 ? 2 : step < 100 ? 1 : 0), note: "ms", line: "step" },
    { label: "Drafts right", value: totals.drafted ? `${number((100 * totals.accepted) / totals.drafted)} %` : "–", note: totals.drafted ? `of ${number(totals.drafted)}` : "none yet" },
  ];
  return html`<dl class="figures">${all.map(({ label, value, note, line }) => html`<div key=${label}>
    <dt>${label}</dt>
    <dd><b>${value}</b> <span>${note}</span></dd>
    ${line && html`<dd class="spark" aria-hidden="true"><${Canvas} class="spark-canvas" label="" draw=${(context, frame) => drawSpark(context, frame, history, line)} /></dd>`}
  </div>`)}</dl>`;
}
