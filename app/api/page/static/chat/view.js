import { chats as doesChat, takesImages } from "../api.js";
import { createRef, html } from "../html.js";
import { IconButton } from "../icons.js";
import { Watching } from "../observable.js";
import { Composer } from "./composer.js";
import { Message, versionOf } from "./message.js";
import { Options } from "./options.js";
import { Sidebar } from "./sidebar.js";
import { describe, number } from "./stats.js";
import { shownTurns } from "./tree.js";

const NEAR_END = 80;

/** The chat. `props.source` are the Chats. */
export class ChatView extends Watching {
  state = { edited: null, isListOpen: false, areOptionsOpen: false };
  thread = createRef();
  composer = createRef();
  isAtEnd = true;

  componentDidMount() {
    super.componentDidMount();
    addEventListener("keydown", this.onKey);
  }

  componentWillUnmount() {
    super.componentWillUnmount();
    removeEventListener("keydown", this.onKey);
  }

  /** Stay at the end while text comes, unless somebody has scrolled up to read. */
  componentDidUpdate() {
    const { current: thread } = this.thread;
    const conversation = this.props.source.current;
    if (this.shown !== conversation) this.isAtEnd = true;
    this.shown = conversation;
    if (this.isAtEnd) thread.scrollTop = thread.scrollHeight;
  }

  onScroll = ({ target }) => {
    const isAtEnd = target.scrollHeight - target.scrollTop - target.clientHeight < NEAR_END;
    if (isAtEnd !== this.isAtEnd) {
      this.isAtEnd = isAtEnd;
      this.forceUpdate();
    }
  };

  onKey = (event) => {
    const chats = this.props.source;
    const isTyping = event.target.matches("input, textarea, select");
    if (event.key === "Escape" && this.state.areOptionsOpen) this.setState({ areOptionsOpen: false });
    else if (event.key === "Escape") chats.stop();
    else if (event.altKey && event.code === "KeyN") chats.create();
    else if (event.altKey && event.code === "KeyO") this.toggleOptions();
    else if (event.key === "/" && !isTyping) this.write();
    else return;
    event.preventDefault();
  };

  toggleOptions = () => this.setState(({ areOptionsOpen }) => ({ areOptionsOpen: !areOptionsOpen }));

  /** Go where one writes: the button that was pressed may be gone. */
  write = () => this.composer.current?.focus();

  recall = () => {
    const last = shownTurns(this.props.source.current).findLast((turn) => turn.role === "user");
    if (last) this.setState({ edited: last.id });
  };

  send = (text, images) => {
    this.isAtEnd = true;
    this.props.source.send(text, images);
  };

  render({ source: chats, model }, { edited, isListOpen, areOptionsOpen }) {
    const turns = shownTurns(chats.current);
    const canSee = takesImages(model);
    const edit = (id) => this.setState({ edited: id }, () => id === null && this.write());
    return html`<main class=${`chat ${turns.length ? "" : "is-empty"}`}>
      <${Sidebar} chats=${chats} isOpen=${isListOpen} onLeave=${() => this.setState({ isListOpen: false }, this.write)} />
      ${isListOpen && html`<button type="button" class="veil" aria-label="Close the list" onClick=${() => this.setState({ isListOpen: false })}></button>`}
      <section class="talk" aria-label="Chat">
        <div class="corner">
          <${IconButton} icon="menu" label="Conversations" class="icon-button only-narrow" aria-expanded=${isListOpen} onClick=${() => this.setState({ isListOpen: true })} />
          <${IconButton} icon="settings" label="Options (Alt O)" aria-expanded=${areOptionsOpen} onClick=${this.toggleOptions} />
        </div>
        <div class="thread" ref=${this.thread} onScroll=${this.onScroll} tabindex="-1">
          <div class="column">
            ${turns.map((turn, index) => html`<${Message} key=${turn.id} turn=${turn} chats=${chats} takesImages=${canSee}
              isLast=${index === turns.length - 1} isEdited=${turn.id === edited} onEdit=${edit} onLeave=${this.write}
              version=${versionOf(chats, turn, index === turns.length - 1)} />`)}
            ${!turns.length && html`<${Welcome} model=${model} />`}
          </div>
        </div>
        <div class="foot">
          ${!this.isAtEnd && html`<${IconButton} icon="down" label="To the end" class="icon-button to-end" onClick=${() => { this.isAtEnd = true; this.forceUpdate(); }} />`}
          <${Composer} ref=${this.composer} key=${chats.current.id} canSend=${Boolean(model) && !chats.isRunning(chats.current)} takesImages=${canSee}
            isRunning=${chats.isRunning(chats.current)} label="Message" placeholder=${model ? "Write a message" : "The model is loading …"}
            onSend=${this.send} onStop=${() => chats.stop()} onRecall=${this.recall} />
          <${Meter} turns=${turns} chats=${chats} model=${model} />
        </div>
        <p class="hidden-visually" role="status">${chats.news}</p>
      </section>
      ${areOptionsOpen && html`<${Options} chats=${chats} onClose=${this.toggleOptions} />`}
    </main>`;
  }
}

function Welcome({ model }) {
  return html`<div class="welcome">
    <h1>${model ? "What is on your mind?" : "Warming up"}</h1>
    <p>${!model ? "The model is being loaded." : doesChat(model) ? html`You are talking to <b>${model.id}</b>.` : html`<b>${model.id}</b> does not chat: see <a href="docs">the API</a>.`}</p>
  </div>`;
}

/** Live figures of the answer that streams, and how much of the context is used. */
function Meter({ turns, chats, model }) {
  const last = turns.findLast((turn) => turn.role === "assistant" && turn.stats?.promptTokens);
  const used = last ? last.stats.promptTokens + last.stats.tokens : 0;
  const limit = model?.max_model_len ?? 0;
  const streaming = turns.find((turn) => chats.isStreaming(turn));
  return html`<div class="meter">
    <ul class="stats">${streaming?.stats?.tokens > 0 && describe(streaming.stats).slice(0, 3).map((part, index) => html`<li key=${index}>${part}</li>`)}</ul>
    ${limit > 0 && used > 0 && html`<span class="context"><meter min="0" max=${limit} value=${used} aria-label="Context used"></meter>${number(used)} of ${number(limit)} tokens</span>`}
    ${!used && html`<span class="hints"><kbd>Enter</kbd> sends <kbd>Shift Enter</kbd> new line <kbd>Esc</kbd> stops <kbd>↑</kbd> edits</span>`}
  </div>`;
}
