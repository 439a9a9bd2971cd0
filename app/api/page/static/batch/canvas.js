import { Component, createRef, html } from "../html.js";
import { colours, prefersCalm } from "../theme.js";

const CALM_MS = 500;

/** A canvas that `props.draw(context, {width, height, colours, now})` paints each frame; seldom for whoever wants calm. */
export class Canvas extends Component {
  canvas = createRef();

  componentDidMount() {
    this.size = new ResizeObserver(() => this.fit());
    this.size.observe(this.canvas.current);
    this.fit();
    this.next();
  }

  componentWillUnmount() {
    this.isGone = true;
    this.size.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
  }

  shouldComponentUpdate({ label, class: name }) {
    return label !== this.props.label || name !== this.props.class;
  }

  fit() {
    const canvas = this.canvas.current;
    const scale = devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    this.paint();
  }

  next = () => {
    if (this.isGone) return;
    this.paint();
    if (prefersCalm()) this.timer = setTimeout(this.next, CALM_MS);
    else this.frame = requestAnimationFrame(this.next);
  };

  paint() {
    const canvas = this.canvas.current;
    const context = canvas.getContext("2d");
    const scale = devicePixelRatio || 1;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    const { clientWidth: width, clientHeight: height } = canvas;
    context.clearRect(0, 0, width, height);
    this.props.draw(context, { width, height, colours: colours(canvas), now: performance.now() / 1000 });
  }

  render({ label, class: name, draw: _, ...rest }) {
    return html`<canvas ref=${this.canvas} class=${name} role="img" aria-label=${label} ...${rest}></canvas>`;
  }
}
