import { Observable } from "../observable.js";
import { bodyOf } from "./fields.js";
import { Meter } from "./stats.js";
import { Storage } from "./storage.js";
import { addTurn, newConversation, shownTurns, turnsUpTo } from "./tree.js";

const SAVE_MS = 1000;

/** All conversations, and the answers that are streaming into them. */
export class Chats extends Observable {
  #storage = new Storage();
  #saves = new Map();
  /** @type {Map<string, {turn: import("./tree.js").Turn, control: AbortController}>} by conversation */
  #running = new Map();
  /** @type {import("./tree.js").Conversation[]} newest first */
  all = [];
  current = newConversation();
  model = "";
  /** What assistive technology is told. */
  news = "";

  constructor(api) {
    super();
    this.api = api;
    addEventListener("pagehide", () => this.#saves.forEach((_, conversation) => this.#storage.save(conversation)));
  }

  async load() {
    this.all = (await this.#storage.loadAll()).sort((a, b) => b.updated - a.updated);
    this.changed();
  }

  /** @param {import("./tree.js").Conversation} conversation */
  select(conversation) {
    this.current = conversation;
    this.changed();
  }

  create() {
    const { system, settings } = this.current;
    this.select(newConversation({ system, settings: { ...settings } }));
  }

  remove(conversation) {
    this.stop(conversation);
    this.#forgetSave(conversation);
    this.#storage.remove(conversation.id);
    this.all = this.all.filter((other) => other !== conversation);
    if (this.current === conversation) this.create();
    this.changed();
  }

  /** Note that a conversation has changed: it is drawn, and soon saved. */
  touch(conversation) {
    if (Object.keys(conversation.turns).length && !this.#saves.has(conversation)) {
      this.#saves.set(conversation, setTimeout(() => this.#save(conversation), SAVE_MS));
    }
    this.changed();
  }

  #save(conversation) {
    this.#forgetSave(conversation);
    this.#storage.save(conversation);
  }

  #forgetSave(conversation) {
    clearTimeout(this.#saves.get(conversation));
    this.#saves.delete(conversation);
  }

  isRunning(conversation) {
    return this.#running.has(conversation.id);
  }

  isStreaming(turn) {
    return [...this.#running.values()].some((running) => running.turn === turn);
  }

  /** Say something at the end of the current conversation, and have it answered. */
  send(content, images = []) {
    this.#say(this.current, shownTurns(this.current).at(-1)?.id ?? "", { role: "user", content, images });
  }

  /** Say something else in the place of a turn: a new branch. */
  edit(turn, content, images = []) {
    this.stop(this.current);
    this.#say(this.current, turn.parent, { role: "user", content, images });
  }

  /** Answer a turn's parent again, in a branch of its own. */
  regenerate(turn) {
    this.stop(this.current);
    this.#answer(this.current, turn.parent);
  }

  /** Give the results of the calls of an assistant's turn, and have the model go on. @param {string[]} results */
  giveResults(turn, results) {
    let parent = turn.id;
    turn.toolCalls.forEach((call, index) => {
      parent = addTurn(this.current, parent, { role: "tool", content: results[index], toolCallId: call.id }).id;
    });
    this.#answer(this.current, parent);
  }

  /** End the answer that streams into a conversation; the engine stops working on it, too. */
  stop(conversation = this.current) {
    this.#running.get(conversation.id)?.control.abort();
    this.#running.delete(conversation.id);
  }

  #say(conversation, parent, fields) {
    const turn = addTurn(conversation, parent, fields);
    this.all = [conversation, ...this.all.filter((other) => other !== conversation)];
    this.#answer(conversation, turn.id);
  }

  async #answer(conversation, parent) {
    const asked = turnsUpTo(conversation, parent);
    const turn = addTurn(conversation, parent, { role: "assistant", model: this.model });
    const control = new AbortController();
    const meter = new Meter(performance.now());
    turn.stats = meter.stats;
    this.#running.set(conversation.id, { turn, control });
    this.news = "Answering";
    this.#save(conversation);
    this.changed();
    try {
      const body = bodyOf(conversation, asked, this.model);
      for await (const event of this.api.events("v1/chat/completions", { body, signal: control.signal })) {
        take(turn, event);
        meter.take(event, performance.now());
        this.touch(conversation);
      }
      this.news = `The answer is complete: ${meter.stats.tokens} tokens`;
    } catch (error) {
      if (error.name === "AbortError") turn.finish = "stopped";
      else turn.error = error.message;
      this.news = turn.error ?? "Stopped";
    }
    if (this.#running.get(conversation.id)?.turn === turn) this.#running.delete(conversation.id);
    if (!this.api.models.find((model) => model.id === turn.model)?.max_model_len) this.api.loadModels(); // it was asleep
    if (this.all.includes(conversation)) this.#save(conversation); // it may have been deleted
    this.changed();
  }
}

/** Add an event of a stream to the turn that it is about. */
export function take(turn, event) {
  const choice = event.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
  if (content) turn.content += content;
  if (reasoning) turn.reasoning = (turn.reasoning ?? "") + reasoning;
  for (const { index, id, function: called } of calls ?? []) {
    turn.toolCalls ??= [];
    const call = (turn.toolCalls[index] ??= { id, name: "", arguments: "" });
    call.name += called.name ?? "";
    call.arguments += called.arguments ?? "";
  }
  if (choice.finish_reason) turn.finish = choice.finish_reason;
}
