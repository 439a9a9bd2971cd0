import { shownTurns, titleOf } from "./tree.js";

const SAID_BY = { user: "You", assistant: "Assistant", tool: "Result" };

/** The shown branch, for people. */
export function asMarkdown(conversation) {
  const parts = [`# ${titleOf(conversation)}`];
  if (conversation.system.trim()) parts.push(`> ${conversation.system.trim().replaceAll("\n", "\n> ")}`);
  for (const turn of shownTurns(conversation)) {
    parts.push(`## ${SAID_BY[turn.role]}`, turn.content);
    for (const call of turn.toolCalls ?? []) parts.push(`\`${call.name}(${call.arguments})\``);
  }
  return parts.filter(Boolean).join("\n\n") + "\n";
}

/** Everything, all branches included. */
export const asJson = (conversation) => JSON.stringify(conversation, null, 2) + "\n";

/** Have the browser save a text as a file. */
export function download(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export const fileName = (conversation, ending) => `${titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "chat"}.${ending}`;
