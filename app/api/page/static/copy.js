import { Component, html } from "./html.js";
import { Icon } from "./icons.js";

const SHOWN_MS = 1500;

/** Puts a text on the clipboard, and says so for a moment. */
export class CopyButton extends Component {
  state = { isDone: false };

  componentWillUnmount() {
    clearTimeout(this.timer);
  }

  copy = async () => {
    await writeClipboard(this.props.text);
    this.setState({ isDone: true });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.setState({ isDone: false }), SHOWN_MS);
  };

  render({ label }, { isDone }) {
    const shown = isDone ? "Copied" : label;
    return html`<button type="button" class="icon-button small" title=${shown} aria-label=${shown} onClick=${this.copy}>
      <${Icon} name=${isDone ? "check" : "copy"} />
    </button>`;
  }
}

/** Browsers give the clipboard to pages of https and localhost only; elsewhere a selection does it. */
async function writeClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "hidden-visually";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
