import { Api, chats as doesChat, isLoading } from "./api.js";
import { BatchView } from "./batch/view.js";
import { Chats } from "./chat/chats.js";
import { ChatView } from "./chat/view.js";
import { html, render } from "./html.js";
import { IconButton } from "./icons.js";
import { KeyDialog } from "./key.js";
import { Watching } from "./observable.js";
import { applyTheme, nextTheme, theme } from "./theme.js";

const VIEWS = { "#chat": "Chat", "#batch": "Batch" };
const MODEL = "paceline.model";

class App extends Watching {
  state = { view: viewOf(location.hash), isKeyAsked: false };

  componentDidMount() {
    super.componentDidMount();
    addEventListener("hashchange", () => this.setState({ view: viewOf(location.hash) }));
    addEventListener("keydown", (event) => {
      const name = { Digit1: "#chat", Digit2: "#batch" }[event.code];
      if (!event.altKey || !name) return;
      event.preventDefault();
      location.hash = name;
    });
  }

  get model() {
    const ready = this.props.source.models.filter((model) => !isLoading(model));
    return ready.find((model) => model.id === localStorage.getItem(MODEL)) ?? ready.find(doesChat) ?? ready[0];
  }

  chooseModel = (event) => {
    localStorage.setItem(MODEL, event.target.value);
    this.forceUpdate();
  };

  render({ source: api, chats }, { view, isKeyAsked }) {
    const { model } = this;
    chats.model = model?.id ?? "";
    document.title = `${VIEWS[view]} · Paceline`;
    return html`
      <header class="top">
        <a class="brand" href="#chat" aria-label="Paceline"><${Mark} /><b>Paceline</b></a>
        <nav class="tabs" aria-label="Views">
          ${Object.entries(VIEWS).map(([hash, name]) => html`<a key=${hash} href=${hash} aria-current=${hash === view ? "page" : undefined}>${name}</a>`)}
        </nav>
        <div class="right">
          ${api.models.length > 1
            ? html`<select aria-label="Model" value=${model?.id} onChange=${this.chooseModel}>${api.models.map(({ id }) => html`<option key=${id}>${id}</option>`)}</select>`
            : html`<span class="model">${model?.id ?? ""}</span>`}
          ${(api.key || api.needsKey) && html`<${IconButton} icon="key" label="API key" onClick=${() => this.setState({ isKeyAsked: true })} />`}
          <${IconButton} icon=${theme()} label=${`Theme: ${theme()}`} onClick=${() => { nextTheme(); this.forceUpdate(); }} />
        </div>
      </header>
      ${view === "#batch" ? html`<${BatchView} key=${chats.model} api=${api} model=${chats.model} />` : html`<${ChatView} source=${chats} model=${model} />`}
      ${(isKeyAsked || api.needsKey) && html`<${KeyDialog} api=${api} onClose=${() => { api.needsKey = false; this.setState({ isKeyAsked: false }); }} />`}
    `;
  }
}

function Mark() {
  return html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
    <path d="M5 9h12M5 16h17M9 23h9" /><circle cx="21.500" cy="9" r="2.600" /><circle cx="27" cy="16" r="2.600" /><circle cx="22.500" cy="23" r="2.600" />
  </svg>`;
}

const viewOf = (hash) => (hash in VIEWS ? hash : "#chat");

applyTheme();
const api = new Api();
const chats = new Chats(api);
render(html`<${App} source=${api} chats=${chats} />`, document.getElementById("app"));
api.loadModels();
chats.load();
