// Server-sent events from a fetch, since EventSource sends neither a key nor a body (WHATWG HTML, section 9.2).

/** Puts events together from pieces of text, however they were cut. */
export class EventParser {
  #rest = "";
  #data = [];
  #endedWithReturn = false;

  /** @param {string} text @returns {string[]} the data of the events that are complete now */
  push(text) {
    if (this.#endedWithReturn && text.startsWith("\n")) text = text.slice(1);
    if (text) this.#endedWithReturn = text.endsWith("\r");
    const lines = (this.#rest + text).split(/\r\n|\r|\n/);
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}

/** @param {ReadableStream<Uint8Array>} body @returns {AsyncGenerator<string>} the data of each event */
export async function* eventsOf(body) {
  const parser = new EventParser();
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
