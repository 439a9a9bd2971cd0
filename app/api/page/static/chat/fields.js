// The fields of a request that a chat can set. What is left empty is the model's own default, or the API's.

/** @type {{name: string, label: string, hint: string, min?: number, max?: number, step?: number | "any"}[]} */
export const SAMPLING = [
  { name: "temperature", label: "Temperature", hint: "0 takes the most probable token", min: 0, max: 2, step: 0.05 },
  { name: "top_p", label: "Top p", hint: "share of probability to choose from", min: 0.01, max: 1, step: 0.01 },
  { name: "top_k", label: "Top k", hint: "tokens to choose from", min: 0, step: 1 },
  { name: "min_p", label: "Min p", hint: "relative to the best token", min: 0, max: 1, step: 0.01 },
  { name: "max_tokens", label: "Max tokens", hint: "length of an answer", min: 1, step: 1 },
  { name: "seed", label: "Seed", hint: "the same text again", step: 1 },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "above 1: fewer repeats", min: 0.01, step: 0.01 },
  { name: "presence_penalty", label: "Presence penalty", hint: "−2 to 2", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "−2 to 2", min: -2, max: 2, step: 0.1 },
];

/** The settings that belong into a request. @param {Record<string, string>} settings */
export function samplingOf(settings) {
  const given = SAMPLING.filter(({ name }) => (settings[name] ?? "") !== "");
  const stop = (settings.stop ?? "").split("\n").filter(Boolean);
  return {
    ...Object.fromEntries(given.map(({ name }) => [name, Number(settings[name])])),
    ...(stop.length ? { stop } : {}),
  };
}

/** What is wrong with the text of tools, or "". */
export function problemOfTools(text) {
  try {
    return Array.isArray(JSON.parse(text || "[]")) ? "" : "a list of tools is needed";
  } catch (error) {
    return error.message;
  }
}

/** The body of a request for an answer to these turns. @param {import("./tree.js").Turn[]} turns */
export function bodyOf({ system, settings }, turns, model) {
  const messages = turns.filter((turn) => !turn.error || turn.content).map(messageOf);
  if (system.trim()) messages.unshift({ role: "system", content: system });
  const tools = problemOfTools(settings.tools) ? [] : JSON.parse(settings.tools || "[]");
  return {
    model,
    messages,
    ...samplingOf(settings),
    ...(tools.length ? { tools } : {}),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
}

function messageOf({ role, content, images, toolCalls, toolCallId }) {
  if (role === "tool") return { role, tool_call_id: toolCallId, content };
  if (role === "assistant" && toolCalls?.length) {
    const calls = toolCalls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
    return { role, content: content || null, tool_calls: calls };
  }
  if (!images?.length) return { role, content };
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role, content: [...parts, ...(content ? [{ type: "text", text: content }] : [])] };
}
