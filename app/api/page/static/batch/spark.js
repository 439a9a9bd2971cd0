import { SECONDS } from "./history.js";

/** A line of the last seconds of a figure, from 0 to its largest. */
export function drawSpark(context, { width, height, colours, now }, history, name) {
  const { figures, offset } = history;
  if (figures.length < 2) return;
  const time = now - offset;
  const most = Math.max(...figures.map((figure) => figure[name]), 1e-9);
  const x = (at) => width - ((time - at) / SECONDS) * width;
  const y = (value) => height - 2 - (value / most) * (height - 5);
  const line = () => {
    context.beginPath();
    figures.forEach((figure, index) => context[index ? "lineTo" : "moveTo"](x(figure.at), y(figure[name])));
    context.lineTo(width, y(figures.at(-1)[name]));
  };
  line();
  context.lineTo(width, height);
  context.lineTo(x(figures[0].at), height);
  context.fillStyle = colours.accent;
  context.globalAlpha = 0.1;
  context.fill();
  context.globalAlpha = 1;
  line();
  context.strokeStyle = colours.accent;
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.stroke();
}
