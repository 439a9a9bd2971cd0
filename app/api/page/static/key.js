import { Component, createRef, html } from "./html.js";

/** Asks for an API key, which stays in this tab. */
export class KeyDialog extends Component {
  dialog = createRef();

  componentDidMount() {
    this.dialog.current.showModal();
  }

  take = (event) => {
    event.preventDefault();
    this.props.api.useKey(new FormData(event.target).get("key").trim());
    this.props.onClose();
  };

  render({ api, onClose }) {
    return html`<dialog ref=${this.dialog} class="key" aria-labelledby="key-title" onClose=${onClose}>
      <form onSubmit=${this.take}>
        <h2 id="key-title">API key</h2>
        <p>${api.key ? "The server does not take this key." : "This server wants a key."} It is kept until the tab is closed.</p>
        <input name="key" type="password" autocomplete="off" aria-label="API key" placeholder="sk-…" defaultValue=${api.key} autofocus />
        <div class="row">
          <button type="button" class="plain" onClick=${onClose}>Cancel</button>
          <button type="submit" class="primary">Use key</button>
        </div>
      </form>
    </dialog>`;
  }
}
