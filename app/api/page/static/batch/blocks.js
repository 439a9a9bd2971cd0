// KV memory as a map: a square for each block, or for each of those that the report tells of.

const GAP = 1.5, LARGEST = 14;
/** How dark a block is, by its state: free, cached, used, shared. */
const LEVELS = [0, 0.26, 0.72, 1];
/** Seconds in which most of a change is shown. */
const EASE = 0.15;

/** Paints the states of a group's blocks, which fade from one to the next. */
export class BlockMap {
  #levels = new Float32Array(0);
  #paintedAt = 0;

  draw(context, { width, height, colours, now }, group, isCalm) {
    if (!group) return;
    const { states } = group;
    if (this.#levels.length !== states.length) this.#levels = Float32Array.from(states, (state) => LEVELS[state]);
    const share = isCalm ? 1 : 1 - Math.exp((this.#paintedAt - now) / EASE);
    this.#paintedAt = now;
    const pitch = pitchFor(states.length, width, height);
    const columns = Math.max(1, Math.floor((width + GAP) / pitch));
    const size = pitch - Math.min(GAP, pitch * 0.25);
    const radius = size > 6 ? 2 : 0;
    for (let index = 0; index < states.length; index++) {
      const wanted = LEVELS[states[index]];
      const level = (this.#levels[index] += (wanted - this.#levels[index]) * share);
      const x = (index % columns) * pitch, y = Math.floor(index / columns) * pitch;
      square(context, x, y, size, radius, colours.line, 1);
      if (level > 0.02) square(context, x, y, size, radius, colours.accent, Math.min(level, 0.95));
      if (states[index] === 3 && size >= 4) square(context, x + size * 0.36, y + size * 0.36, size * 0.28, size * 0.14, colours.page, level);
    }
    context.globalAlpha = 1;
  }
}

function square(context, x, y, size, radius, colour, alpha) {
  context.globalAlpha = alpha;
  context.fillStyle = colour;
  if (!radius) return context.fillRect(x, y, size, size);
  context.beginPath();
  context.roundRect(x, y, size, size, radius);
  context.fill();
}

/** The largest squares that fit. */
function pitchFor(count, width, height) {
  let pitch = Math.min(LARGEST, Math.sqrt((width * height) / count));
  while (pitch > 2 && Math.ceil(count / Math.floor((width + GAP) / pitch)) * pitch > height + GAP) pitch -= 0.25;
  return pitch;
}
