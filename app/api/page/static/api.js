import { Observable } from "./observable.js";
import { eventsOf } from "./sse.js";

const KEY = "paceline.key";

/** An error that the server has answered with, or that kept an answer from coming. */
export class ApiError extends Error {
  /** @param {number} status 0 if there was no answer */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * @typedef {{id: string, max_model_len: number | null, tasks?: string[], input_modalities?: string[], state?: string}} Model
 * `state` is that of one of several models: a request wakes one that is asleep.
 */

/** @param {Model} model */
export const isLoading = ({ max_model_len: limit, state }) => (state ? state === "loading" : limit === null);
export const takesImages = (model) => Boolean(model?.input_modalities?.includes("image"));
/** Whether a model chats: others embed, score or forecast. */
export const chats = ({ tasks }) => !tasks?.length || tasks.includes("generate");

/** The server that this page came from. The key is forgotten when the tab is closed. */
export class Api extends Observable {
  key = sessionStorage.getItem(KEY) ?? "";
  /** Whether the server wants a key, or another one. */
  needsKey = false;
  /** @type {Model[]} */
  models = [];

  useKey(key) {
    this.key = key;
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    this.needsKey = false;
    this.loadModels();
  }

  async loadModels() {
    try {
      this.models = (await this.getJson("v1/models")).data;
    } catch (error) {
      if (error.status !== 401) setTimeout(() => this.loadModels(), 2000); // it is just starting, or restarting
    }
    this.changed();
    if (this.models.some(isLoading)) setTimeout(() => this.loadModels(), 1000);
  }

  async getJson(path) {
    return (await this.#fetch(path, {})).json();
  }

  /** The events of a stream. Aborting `signal` ends it, and the work behind it. */
  async *events(path, { body, signal } = {}) {
    const options = body ? { method: "POST", body: JSON.stringify(body), signal } : { signal };
    const answer = await this.#fetch(path, options);
    for await (const data of eventsOf(answer.body)) {
      if (data === "[DONE]") continue; // to the end, so that the connection is used again
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message ?? "the server failed", event.error.status ?? 500);
      yield event;
    }
  }

  async #fetch(path, options) {
    const headers = {};
    if (options.body) headers["Content-Type"] = "application/json";
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let answer;
    try {
      answer = await fetch(new URL(path, document.baseURI), { ...options, headers });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError("The server cannot be reached.");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      this.needsKey = true;
      this.changed();
    }
    const told = await answer.json().catch(() => ({}));
    throw new ApiError(told.error?.message ?? `The server answered ${answer.status}.`, answer.status);
  }
}
