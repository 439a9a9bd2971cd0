// What the batch has looked like in the last seconds, put together from reports.

export const SECONDS = 24;
/** What a figure keeps of its last value. */
const SMOOTHING = 0.7;

const ROW = ["number", "row", "tenant", "promptTokens", "cachedTokens", "computedTokens", "outputTokens", "stepTokens", "accepted"];
const TENANT = ["name", "running", "waiting", "waitingTokens"];
const named = (names, values) => Object.fromEntries(names.map((name, index) => [name, values[index]]));

/** A report of `GET /v1/engine/steps` with names instead of places. */
export function readReport(event) {
  return {
    ...event,
    rows: event.rows.map((values) => named(ROW, values)),
    tenants: event.tenants.map((values) => named(TENANT, values)),
    kv: event.kv.map((group) => ({ ...group, states: Uint8Array.from(atob(group.states), (char) => char.charCodeAt(0)) })),
  };
}

/**
 * @typedef {"prompt" | "decode" | "wait"} Kind what a request did between two reports
 * @typedef {{
 *   number: number, row: number, joinedAt: number, endedAt: number | null, wasPreempted: boolean,
 *   isAgain: boolean, parts: {from: number, to: number, kind: Kind}[], drafts: {at: number, count: number}[], last: object,
 * }} Rider a request while it keeps a row
 */

export class History {
  /** @type {Rider[]} in the order in which they joined */
  riders = [];
  /** @type {Map<number, Rider>} those that run, by number */
  running = new Map();
  #preempted = new Set();
  latest = null;
  /** Seconds of this machine's clock minus those of the server's. */
  offset = 0;
  /** Of each report: when, tokens a second, and seconds of a step. */
  figures = [];
  totals = { joined: 0, left: 0, preempted: 0, drafted: 0, accepted: 0, steps: 0 };

  /** @param {ReturnType<typeof readReport>} report @param {number} now seconds */
  take(report, now) {
    const before = this.latest;
    this.offset = before ? Math.min(this.offset + 0.002, now - report.at) : now - report.at;
    const since = before?.at ?? report.at - 0.1;
    // When requests came and went between two reports is not known. Whoever takes a lane comes after who left it.
    const leftAt = since + 0.35 * (report.at - since), joinedAt = since + 0.65 * (report.at - since);
    const rows = new Map(report.rows.map((row) => [row.number, row]));
    for (const [number, rider] of this.running) {
      if (rows.get(number)?.row !== rider.row) this.#end(rider, leftAt, rows.has(number) || report.preempted.includes(number));
    }
    for (const row of report.rows) this.#ride(row, report, since, joinedAt);
    this.#preempted = new Set(report.preempted);
    for (const name of Object.keys(this.totals)) this.totals[name] += report.counts[name];
    this.#measure(report, report.at - since);
    const oldest = report.at - SECONDS;
    this.riders = this.riders.filter((rider) => rider.endedAt === null || rider.endedAt > oldest);
    for (const rider of this.riders) {
      while (rider.parts.length && rider.parts[0].to < oldest) rider.parts.shift();
      while (rider.drafts.length && rider.drafts[0].at < oldest) rider.drafts.shift();
    }
    this.latest = report;
  }

  #end(rider, at, wasPreempted) {
    Object.assign(rider, { endedAt: at, wasPreempted });
    rider.parts.at(-1).to = at;
    this.running.delete(rider.number);
    if (wasPreempted) this.#preempted.add(rider.number);
  }

  #ride(row, report, since, joinedAt) {
    let rider = this.running.get(row.number);
    const before = rider?.last;
    if (!rider) {
      const { number, row: lane } = row;
      const isAgain = this.#preempted.has(number);
      rider = { number, row: lane, joinedAt, endedAt: null, wasPreempted: false, isAgain, parts: [], drafts: [] };
      this.riders.push(rider);
      this.running.set(number, rider);
    }
    const last = rider.parts.at(-1);
    const kind = last && !report.counts.steps ? last.kind : kindOf(row, before); // a long step may not be over yet
    if (last?.kind === kind) last.to = report.at;
    else rider.parts.push({ from: last ? since : joinedAt, to: report.at, kind });
    if (row.accepted) rider.drafts.push({ at: report.at, count: row.accepted });
    rider.last = row;
  }

  #measure({ at, counts, rows }, passed) {
    const seconds = Math.max(passed, 1e-3);
    const last = this.figures.at(-1) ?? { output: 0, prompt: 0, step: 0 };
    const smooth = (before, value) => before * SMOOTHING + value * (1 - SMOOTHING);
    const figure = {
      at,
      output: smooth(last.output, counts.output_tokens / seconds),
      prompt: smooth(last.prompt, counts.prompt_tokens / seconds),
      step: counts.steps ? smooth(last.step || counts.seconds / counts.steps, counts.seconds / counts.steps) : last.step,
    };
    if (!rows.length && !counts.steps) Object.assign(figure, { output: figure.output < 1 ? 0 : figure.output, prompt: figure.prompt < 1 ? 0 : figure.prompt, step: 0 });
    this.figures.push(figure);
    while (this.figures[0].at < at - SECONDS) this.figures.shift();
  }
}

/** @returns {Kind} */
function kindOf(row, before) {
  if (row.outputTokens > (before?.outputTokens ?? 0)) return "decode";
  if (!before || row.computedTokens > before.computedTokens) return row.computedTokens < row.promptTokens || !before ? "prompt" : "decode";
  return "wait";
}
