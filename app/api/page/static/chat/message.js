import { Component, html } from "../html.js";
import { CopyButton } from "../copy.js";
import { Icon, IconButton } from "../icons.js";
import { Markdown } from "../markdown/view.js";
import { Composer } from "./composer.js";
import { describe } from "./stats.js";
import { showTurn, siblings } from "./tree.js";

/** A turn. What it shows depends on its length, so that only the one that grows is made anew. */
export class Message extends Component {
  shouldComponentUpdate(next) {
    return next.version !== this.props.version || next.isEdited || this.props.isEdited;
  }

  render(props) {
    const { turn } = props;
    if (turn.role === "tool") return html`<article class="turn tool" aria-label="Result"><pre tabindex="0">${turn.content}</pre></article>`;
    return turn.role === "user" ? html`<${UserTurn} ...${props} />` : html`<${AssistantTurn} ...${props} />`;
  }
}

/** Changes whenever a turn looks different. */
export function versionOf(chats, turn, isLast) {
  const calls = (turn.toolCalls ?? []).map((call) => call.arguments.length);
  const { length } = siblings(chats.current, turn);
  const parts = [turn.content.length, turn.reasoning?.length, calls, length, turn.error, turn.finish, chats.isStreaming(turn), isLast];
  return parts.join("/");
}

function UserTurn({ turn, chats, isEdited, onEdit, takesImages }) {
  if (isEdited) {
    return html`<article class="turn user is-edited" aria-label="Your message">
      <${Composer} text=${turn.content} images=${turn.images} canSend takesImages=${takesImages} label="Edit your message"
        onCancel=${() => onEdit(null)}
        onSend=${(text, images) => { onEdit(null); chats.edit(turn, text, images); }} />
    </article>`;
  }
  return html`<article class="turn user" aria-label="You">
    <div class="said">
      ${turn.images?.map((url, index) => html`<img key=${url} src=${url} alt=${`image ${index + 1}`} />`)}
      ${turn.content}
    </div>
    <div class="tools">
      <${Branches} chats=${chats} turn=${turn} />
      <${CopyButton} text=${turn.content} label="Copy" />
      <${IconButton} icon="edit" label="Edit" onClick=${() => onEdit(turn.id)} />
    </div>
  </article>`;
}

function AssistantTurn({ turn, chats, isLast, onLeave }) {
  const isStreaming = chats.isStreaming(turn);
  const isThinking = isStreaming && !turn.content && !turn.toolCalls;
  return html`<article class="turn assistant" aria-label="Answer" aria-busy=${isStreaming}>
    ${turn.reasoning && html`<details class="reasoning">
      <summary><${Icon} name="right" />${isThinking ? html`<span class="shimmer">Thinking</span>` : "Thought"}</summary>
      <div>${turn.reasoning}</div>
    </details>`}
    ${turn.content && html`<${Markdown} text=${turn.content} />`}
    ${turn.toolCalls?.map((call) => html`<${ToolCallView} key=${call.id} call=${call} />`)}
    ${isThinking && !turn.reasoning && html`<p class="waiting"><span class="line"></span><span class="hidden-visually">Waiting</span></p>`}
    ${turn.error && html`<p class="error" role="alert">${turn.error}</p>`}
    ${turn.toolCalls && isLast && !isStreaming && html`<${Results} turn=${turn} chats=${chats} />`}
    ${!isStreaming && html`<div class="tools">
      <${Branches} chats=${chats} turn=${turn} />
      <${CopyButton} text=${turn.content} label="Copy" />
      <${IconButton} icon="retry" label="Answer again" onClick=${() => { chats.regenerate(turn); onLeave(); }} />
      ${turn.stats?.tokens > 0 && html`<ul class="stats">${describe(turn.stats).map((part) => html`<li key=${part}>${part}</li>`)}
        ${turn.finish === "length" && html`<li>cut at its limit</li>`}${turn.finish === "stopped" && html`<li>stopped</li>`}</ul>`}
    </div>`}
  </article>`;
}

function ToolCallView({ call }) {
  return html`<figure class="call"><figcaption><${Icon} name="tool" />${call.name}</figcaption><pre tabindex="0">${pretty(call.arguments)}</pre></figure>`;
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // it is not complete yet
  }
}

/** Where a person plays the tools. */
function Results({ turn, chats }) {
  const give = (event) => {
    event.preventDefault();
    chats.giveResults(turn, new FormData(event.target).getAll("result"));
  };
  return html`<form class="results" onSubmit=${give}>
    ${turn.toolCalls.map((call) => html`<label class="field" key=${call.id}><span>Result of ${call.name}</span><textarea name="result" rows="2" required></textarea></label>`)}
    <button type="submit" class="plain">Give ${turn.toolCalls.length > 1 ? "results" : "result"}</button>
  </form>`;
}

/** Which of several branches is shown, and the way to the others. */
function Branches({ chats, turn }) {
  const all = siblings(chats.current, turn);
  if (all.length < 2) return null;
  const index = all.indexOf(turn);
  const go = (to) => {
    showTurn(chats.current, all[to]);
    chats.touch(chats.current);
  };
  return html`<span class="branches" role="group" aria-label="Branches">
    <${IconButton} icon="left" label="Earlier branch" disabled=${index === 0} onClick=${() => go(index - 1)} />
    <span>${index + 1}<i>/</i>${all.length}</span>
    <${IconButton} icon="right" label="Later branch" disabled=${index === all.length - 1} onClick=${() => go(index + 1)} />
  </span>`;
}
