// A conversation is a tree: an edited or regenerated turn is a sibling of the one that it stands for.

/**
 * @typedef {{id: string, name: string, arguments: string}} ToolCall
 * @typedef {{
 *   id: string, parent: string, role: "user" | "assistant" | "tool", content: string, images?: string[],
 *   reasoning?: string, toolCalls?: ToolCall[], toolCallId?: string, error?: string, finish?: string,
 *   model?: string, stats?: import("./stats.js").Stats,
 * }} Turn `parent` is "" for the first turns.
 * @typedef {{
 *   id: string, title: string, updated: number, system: string, settings: Record<string, string>,
 *   turns: Record<string, Turn>, chosen: Record<string, string>,
 * }} Conversation `chosen`: by a turn's id, or "", which of its children is shown.
 */

const newId = () => `t${crypto.getRandomValues(new Uint32Array(2)).join("")}`;

/** @returns {Conversation} */
export function newConversation({ system = "", settings = {} } = {}) {
  return { id: newId(), title: "", updated: Date.now(), system, settings, turns: {}, chosen: {} };
}

/** The turns that are shown, in order. @param {Conversation} conversation */
export function shownTurns({ turns, chosen }) {
  const shown = [];
  for (let turn = turns[chosen[""]]; turn; turn = turns[chosen[turn.id]]) shown.push(turn);
  return shown;
}

/** The turns up to one, that included. @returns {Turn[]} */
export function turnsUpTo({ turns }, id) {
  const found = [];
  for (let turn = turns[id]; turn; turn = turns[turn.parent]) found.unshift(turn);
  return found;
}

/** Add a turn behind another, and show it. @returns {Turn} */
export function addTurn(conversation, parent, fields) {
  const turn = { id: newId(), parent, content: "", ...fields };
  conversation.turns[turn.id] = turn;
  conversation.updated = Date.now();
  return showTurn(conversation, turn);
}

/** Show a turn instead of its siblings. */
export function showTurn(conversation, turn) {
  conversation.chosen[turn.parent] = turn.id;
  return turn;
}

/** A turn and those that stand beside it, oldest first. @returns {Turn[]} */
export function siblings({ turns }, turn) {
  return Object.values(turns).filter((other) => other.parent === turn.parent);
}

const TITLE_LENGTH = 60;

/** What a conversation is called: what it was given, or how it begins. */
export function titleOf(conversation) {
  const first = shownTurns(conversation)[0]?.content.trim().replace(/\s+/g, " ");
  return conversation.title || (first ? first.slice(0, TITLE_LENGTH) : "New chat");
}
