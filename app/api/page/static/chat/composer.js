import { Component, createRef, html } from "../html.js";
import { Icon, IconButton } from "../icons.js";
import { imagesOf } from "./images.js";

/** Where people write. It grows with its text; Enter sends, Shift and Enter begins a line. `ref` gets the text area. */
export class Composer extends Component {
  state = { text: this.props.text ?? "", images: this.props.images ?? [], isOver: false };
  area = this.props.ref ?? createRef();
  picker = createRef();

  componentDidMount() {
    this.fit();
    this.area.current.focus();
  }

  componentDidUpdate() {
    this.fit();
  }

  fit() {
    const area = this.area.current;
    area.style.height = "0";
    area.style.height = `${Math.min(area.scrollHeight, 0.4 * innerHeight)}px`;
  }

  get canSend() {
    return Boolean(this.state.text.trim() || this.state.images.length) && this.props.canSend;
  }

  send = () => {
    if (!this.canSend) return;
    this.props.onSend(this.state.text, this.state.images);
    this.setState({ text: "", images: [] });
  };

  onKeyDown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && !this.state.text) this.props.onRecall?.();
    else if (event.key === "Escape") this.props.onCancel?.();
  };

  add = async (files) => {
    if (!this.props.takesImages) return;
    const images = await imagesOf(files);
    this.setState(({ images: before }) => ({ images: [...before, ...images] }));
  };

  onPaste = (event) => {
    if (event.clipboardData.files.length && this.props.takesImages) {
      event.preventDefault();
      this.add(event.clipboardData.files);
    }
  };

  onDrop = (event) => {
    event.preventDefault();
    this.setState({ isOver: false });
    this.add(event.dataTransfer.files);
  };

  onDragOver = (event) => {
    event.preventDefault();
    if (this.props.takesImages) this.setState({ isOver: true });
  };

  render({ isRunning, onStop, onCancel, takesImages, placeholder, label }, { text, images, isOver }) {
    return html`<form class=${`composer ${isOver ? "is-over" : ""}`} onDragOver=${this.onDragOver}
      onDragLeave=${() => this.setState({ isOver: false })} onDrop=${this.onDrop}
      onSubmit=${(event) => { event.preventDefault(); this.send(); }}>
      ${images.length > 0 && html`<ul class="images">${images.map((url, index) => html`<li key=${url}>
        <img src=${url} alt=${`image ${index + 1}`} />
        <${IconButton} icon="close" label="Remove image" onClick=${() => this.setState({ images: images.filter((_, at) => at !== index) })} />
      </li>`)}</ul>`}
      <textarea ref=${this.area} rows="1" aria-label=${label} placeholder=${placeholder} value=${text} enterkeyhint="send"
        onInput=${(event) => this.setState({ text: event.target.value })} onKeyDown=${this.onKeyDown} onPaste=${this.onPaste}></textarea>
      <div class="actions">
        ${takesImages && html`<input ref=${this.picker} type="file" accept="image/*" multiple hidden
            onChange=${(event) => { this.add(event.target.files); event.target.value = ""; }} />
          <${IconButton} icon="attach" label="Attach images" onClick=${() => this.picker.current.click()} />`}
        ${onCancel && html`<button type="button" class="plain" onClick=${onCancel}>Cancel</button>`}
        ${isRunning
          ? html`<button type="button" class="send is-stop" aria-label="Stop" title="Stop (Esc)" onClick=${onStop}><${Icon} name="stop" /></button>`
          : html`<button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled=${!this.canSend}><${Icon} name="send" /></button>`}
      </div>
    </form>`;
  }
}
