import { Observable } from "../observable.js";
import { History, readReport } from "./history.js";

const RETRY_MS = 2000;

/** The engine's steps, as long as the view is there and its tab is shown: otherwise nobody is told, and nothing is made. */
export class Feed extends Observable {
  history = new History();
  /** Why there are no reports. */
  problem = "";
  #control = null;
  #isWanted = false;

  /** @param {string} model the one whose engine is meant, where there are several */
  constructor(api, model) {
    super();
    this.api = api;
    this.path = `v1/engine/steps?model=${encodeURIComponent(model)}`;
  }

  start() {
    this.#isWanted = this.path.at(-1) !== "="; // else the models are not known yet
    document.addEventListener("visibilitychange", this.#follow);
    this.#follow();
  }

  stop() {
    this.#isWanted = false;
    document.removeEventListener("visibilitychange", this.#follow);
    this.#follow();
  }

  #follow = () => {
    const isWanted = this.#isWanted && !document.hidden;
    if (isWanted && !this.#control) this.#listen();
    else if (!isWanted) {
      this.#control?.abort();
      this.#control = null;
    }
  };

  async #listen() {
    const control = (this.#control = new AbortController());
    this.history = new History();
    try {
      for await (const event of this.api.events(this.path, { signal: control.signal })) {
        this.problem = "";
        this.history.take(readReport(event), performance.now() / 1000);
        this.changed();
      }
      this.problem = "The server has closed the stream.";
    } catch (error) {
      if (error.name === "AbortError") return;
      this.problem = error.status === 403 ? "This key may not watch the batch: its tenant needs may_operate." : error.message;
    }
    this.changed();
    setTimeout(() => {
      if (this.#control !== control) return;
      this.#control = null;
      this.#follow();
    }, RETRY_MS);
  }
}
