// How fast an answer comes, and how full its context is.

/**
 * @typedef {{ttft: number | null, rate: number | null, promptTokens: number, tokens: number, cached: number,
 *   seconds: number}} Stats Times in seconds, rate in tokens a second.
 */

/** A rate over less than this says nothing. */
const LEAST_MS = 100;

/** Counts while an answer streams. Times are `performance.now()`, milliseconds. */
export class Meter {
  #began;
  #firstAt = null;
  #last = null;
  /** @type {Stats} */
  stats = { ttft: null, rate: null, promptTokens: 0, tokens: 0, cached: 0, seconds: 0 };

  constructor(now) {
    this.#began = now;
  }

  /** Take in an event of the stream. */
  take(event, now) {
    const { usage, timings } = event;
    const stats = this.stats;
    if (usage) {
      stats.promptTokens = usage.prompt_tokens;
      stats.tokens = usage.completion_tokens;
      stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    }
    if (this.#firstAt === null && stats.tokens > 0) {
      this.#firstAt = now;
      this.#last = stats.tokens;
      stats.ttft = (now - this.#began) / 1000;
    }
    stats.seconds = (now - this.#began) / 1000;
    const passed = this.#firstAt === null ? 0 : now - this.#firstAt;
    if (passed > LEAST_MS) stats.rate = (1000 * (stats.tokens - this.#last)) / passed;
    if (timings?.predicted_per_second) stats.rate = timings.predicted_per_second; // the engine's own clock
  }
}

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });

/** @param {Stats} stats */
export function describe({ ttft, rate, promptTokens, tokens, cached }) {
  const parts = [];
  if (rate) parts.push(`${number(rate, rate < 10 ? 1 : 0)} tokens/s`);
  if (ttft !== null) parts.push(`first after ${ttft < 1 ? `${number(ttft * 1000)} ms` : `${number(ttft, 1)} s`}`);
  parts.push(`${number(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
  if (cached) parts.push(`${number(cached)} of ${number(promptTokens)} prompt tokens cached`);
  return parts;
}

export { number };
