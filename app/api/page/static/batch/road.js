// The picture of the batch: time runs to the left, each request keeps its lane from where it joined to where it left.
import { SECONDS } from "./history.js";

const TOP = 14, BOTTOM = 24, RIGHT = 84;
const LANES = { least: 8, thinnest: 2, widest: 30 };
/** Seconds by which the picture lags behind, so that what it draws has been reported. */
const DELAY = 0.25;
/** Seconds in which most of a change of the number of lanes is shown. */
const EASE = 0.2;

/** Paints a History. It remembers only how many lanes it shows, which changes gently. */
export class Road {
  #lanes = LANES.least;
  #paintedAt = 0;

  draw(context, { width, height, colours, now }, history) {
    const { riders, latest, offset } = history;
    const time = now - offset - DELAY;
    const end = width - (width > 600 ? RIGHT : 22);
    const span = width > 600 ? SECONDS : SECONDS / 2;
    const place = { x: (at) => end - ((time - at) / span) * end, y: null, pitch: 0, end };
    const most = Math.max(LANES.least, ...riders.map((rider) => rider.row + 1));
    this.#lanes += (most - this.#lanes) * (1 - Math.exp((this.#paintedAt - now) / EASE));
    this.#paintedAt = now;
    if (Math.abs(most - this.#lanes) < 0.01) this.#lanes = most;
    place.pitch = Math.max(LANES.thinnest, Math.min(LANES.widest, (height - TOP - BOTTOM) / this.#lanes));
    place.y = (row) => TOP + (row + 0.5) * place.pitch;

    drawTime(context, place, { width, height, colours, span });
    for (const rider of riders) drawTrail(context, place, rider, time, colours);
    if (!latest) return;
    for (const rider of history.running.values()) if (rider.joinedAt < time) drawRider(context, place, rider, colours, width - end);
    for (const rider of riders) if (rider.endedAt !== null) drawEnd(context, place, rider, time, colours);
  }
}

function drawTime(context, { x, end }, { height, colours, span }) {
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "center";
  context.lineWidth = 1;
  for (let ago = 0; ago < span; ago += span > 12 ? 4 : 3) {
    const at = Math.round(end - (ago / span) * end) + 0.5;
    context.strokeStyle = colours.line;
    context.globalAlpha = ago ? 0.6 : 1;
    context.beginPath();
    context.moveTo(at, 4);
    context.lineTo(at, height - BOTTOM + 4);
    context.stroke();
    context.globalAlpha = 1;
    context.fillStyle = colours.muted;
    if (at > 20) context.fillText(ago ? `${ago} s ago` : "now", at, height - 6);
  }
}

function drawTrail(context, { x, y, pitch, end }, rider, time, colours) {
  const at = y(rider.row);
  const thin = Math.max(1.25, Math.min(3, pitch * 0.2)), thick = Math.max(1.5, Math.min(14, pitch * 0.62));
  const stop = Math.min(time, rider.endedAt ?? Infinity);
  context.strokeStyle = context.fillStyle = colours.accent;
  rider.parts.forEach((part, index) => {
    // A running part goes on until the next report says otherwise.
    const to = index === rider.parts.length - 1 && rider.endedAt === null ? time : Math.min(part.to, stop);
    const left = Math.max(0, x(part.from)), right = Math.min(end, x(to));
    if (right <= left) return;
    if (part.kind === "prompt") {
      context.globalAlpha = 0.32;
      context.beginPath();
      context.roundRect(left, at - thick / 2, Math.max(right - left, 2), thick, Math.min(3, thick / 2));
      context.fill();
    } else {
      context.globalAlpha = part.kind === "wait" ? 0.3 : 0.9;
      context.lineWidth = part.kind === "wait" ? 1 : thin;
      context.setLineDash(part.kind === "wait" ? [1, 4] : []);
      context.beginPath();
      context.moveTo(left, at);
      context.lineTo(right, at);
      context.stroke();
      context.setLineDash([]);
    }
  });
  context.globalAlpha = 1;
  drawJoin(context, x(rider.joinedAt), at, pitch, rider, end, colours);
  if (pitch >= 5) drawDrafts(context, rider, x, at - Math.max(3, pitch * 0.26), end, colours);
}

function drawJoin(context, left, at, pitch, rider, end, colours) {
  if (left < 0 || left > end || pitch < 4) return;
  context.beginPath();
  context.arc(left, at, Math.min(3.5, pitch * 0.28), 0, 2 * Math.PI);
  context.fillStyle = rider.isAgain ? colours.accent : colours.page;
  context.strokeStyle = colours.accent;
  context.lineWidth = 1.5;
  context.fill();
  context.stroke();
}

/** A dot for each accepted draft, as far as they have room. */
function drawDrafts(context, rider, x, at, end, colours) {
  context.fillStyle = colours.ink;
  for (const { at: when, count } of rider.drafts) {
    const right = x(when);
    if (right > end || right < 0) continue;
    for (let index = 0; index < Math.min(count, 6); index++) {
      context.beginPath();
      context.arc(right - index * 3.2, at, 1.1, 0, 2 * Math.PI);
      context.fill();
    }
  }
}

/** Where a request left: a stroke; where it was preempted, a gap that it may come back from. */
function drawEnd(context, { x, y, pitch, end }, rider, time, colours) {
  const right = x(rider.endedAt);
  if (rider.endedAt > time || right < 0 || right > end) return;
  const half = Math.max(1.5, Math.min(6, pitch * 0.32));
  context.strokeStyle = rider.wasPreempted ? colours.ink : colours.accent;
  context.lineWidth = rider.wasPreempted ? 1.5 : 1.25;
  context.beginPath();
  if (rider.wasPreempted) {
    context.moveTo(right - half, y(rider.row) - half);
    context.lineTo(right + half, y(rider.row) + half);
    context.moveTo(right - half, y(rider.row) + half);
    context.lineTo(right + half, y(rider.row) - half);
  } else {
    context.moveTo(right, y(rider.row) - half);
    context.lineTo(right, y(rider.row) + half);
  }
  context.stroke();
}

/** The head of a lane: a ring while it reads its prompt, a disc while it writes. */
function drawRider(context, { y, pitch, end }, rider, colours, room) {
  const at = y(rider.row), radius = Math.max(1, Math.min(5.5, pitch * 0.36));
  const isReading = rider.parts.at(-1)?.kind === "prompt";
  context.beginPath();
  context.arc(end, at, radius, 0, 2 * Math.PI);
  context.fillStyle = isReading ? colours.page : colours.accent;
  context.strokeStyle = colours.accent;
  context.lineWidth = 2;
  context.fill();
  if (isReading) context.stroke();
  if (pitch < 11 || room < 60) return;
  const { outputTokens, computedTokens, promptTokens } = rider.last;
  const text = isReading ? `${Math.round((100 * Math.min(computedTokens, promptTokens)) / promptTokens)} %` : String(outputTokens);
  context.font = `${Math.min(12, pitch - 1)}px system-ui, sans-serif`;
  context.textAlign = "left";
  context.fillStyle = colours.muted;
  context.fillText(text, end + 13, at + Math.min(4, pitch * 0.33));
}
