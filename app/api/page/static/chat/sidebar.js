import { html } from "../html.js";
import { Icon, IconButton } from "../icons.js";
import { titleOf } from "./tree.js";

const DAY = 86_400_000;

/** The list of conversations. `onLeave` is called when one was chosen, where the list covers the chat. */
export function Sidebar({ chats, isOpen, onLeave }) {
  const choose = (conversation) => {
    chats.select(conversation);
    onLeave();
  };
  const item = (conversation) => html`<li key=${conversation.id} class=${conversation === chats.current ? "is-current" : ""}>
    <button type="button" class="name" aria-current=${conversation === chats.current ? "true" : undefined}
      onClick=${() => choose(conversation)}>
      ${chats.isRunning(conversation) && html`<span class="pulse" title="answering"></span>`}${titleOf(conversation)}
    </button>
    <${IconButton} icon="trash" label=${`Delete “${titleOf(conversation)}”`} onClick=${() => confirmed(conversation) && chats.remove(conversation)} />
  </li>`;
  return html`<nav class=${`sidebar ${isOpen ? "is-open" : ""}`} aria-label="Conversations">
    <button type="button" class="new" onClick=${() => { chats.create(); onLeave(); }}>
      <${Icon} name="plus" /><span>New chat</span><kbd>Alt N</kbd>
    </button>
    <div class="scroll">
      ${groups(chats.all).map(([when, some]) => html`<section key=${when}>
        <h2>${when}</h2>
        <ul>${some.map(item)}</ul>
      </section>`)}
      ${!chats.all.length && html`<p class="note">Chats are kept in this browser only.</p>`}
    </div>
  </nav>`;
}

const confirmed = (conversation) => confirm(`Delete “${titleOf(conversation)}”? It is nowhere else.`);

function groups(conversations) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const groups = new Map();
  for (const conversation of conversations) {
    const age = midnight - conversation.updated;
    const when = age <= 0 ? "Today" : age < DAY ? "Yesterday" : age < 7 * DAY ? "This week" : "Earlier";
    groups.set(when, [...(groups.get(when) ?? []), conversation]);
  }
  return [...groups];
}
