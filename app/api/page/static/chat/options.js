import { html } from "../html.js";
import { IconButton } from "../icons.js";
import { asJson, asMarkdown, download, fileName } from "./export.js";
import { SAMPLING, problemOfTools } from "./fields.js";

/** The panel with the system prompt, how tokens are chosen, tools, and the export of a conversation. */
export function Options({ chats, onClose }) {
  const { current } = chats;
  const set = (name) => (event) => {
    current.settings[name] = event.target.value;
    chats.touch(current);
  };
  const problem = problemOfTools(current.settings.tools);
  return html`<aside class="options" aria-label="Options of this chat">
    <header><h2>This chat</h2><${IconButton} icon="close" label="Close" onClick=${onClose} /></header>
    <label class="field"><span>System prompt</span>
      <textarea rows="4" placeholder="You are …" value=${current.system} onInput=${(event) => {
        current.system = event.target.value;
        chats.touch(current);
      }}></textarea>
    </label>
    <fieldset class="grid">
      <legend>Sampling</legend>
      ${SAMPLING.map(({ name, label, hint, ...limits }) => html`<label class="field" key=${name} title=${hint}>
        <span>${label}</span>
        <input type="number" inputmode="decimal" placeholder="auto" ...${limits} value=${current.settings[name] ?? ""} onInput=${set(name)} />
      </label>`)}
    </fieldset>
    <label class="field"><span>Stop strings <small>one a line</small></span>
      <textarea rows="2" value=${current.settings.stop ?? ""} onInput=${set("stop")}></textarea>
    </label>
    <label class="field"><span>Tools <small>JSON, as in a request</small></span>
      <textarea class="mono" rows="4" spellcheck="false" placeholder='[{"type": "function", "function": {"name": …}}]'
        aria-invalid=${Boolean(problem)} value=${current.settings.tools ?? ""} onInput=${set("tools")}></textarea>
      ${problem && html`<em class="problem">${problem}</em>`}
    </label>
    <div class="row">
      <button type="button" class="plain" onClick=${() => download(asMarkdown(current), fileName(current, "md"), "text/markdown")}>Export markdown</button>
      <button type="button" class="plain" onClick=${() => download(asJson(current), fileName(current, "json"), "application/json")}>Export JSON</button>
    </div>
  </aside>`;
}
