// What is inside a paragraph: emphasis, code, links. CommonMark 0.31, section 6, with GFM's ~~ and bare addresses.

/**
 * @typedef {string | {type: "strong" | "em" | "del", children: Inline[]} | {type: "code", text: string}
 *   | {type: "link", href: string, children: Inline[]} | {type: "image", href: string, alt: string}
 *   | {type: "break"}} Inline
 */

const PUNCTUATION = /[\p{P}\p{S}]/u;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ADDRESS = /^(?:https?:\/\/|www\.)[^\s<]*[^\s<?!.,:*_~'"]/i;
const AUTOLINK = /^<((?:https?|mailto):[^\s<>]*)>/i;
const TARGET = /\(\s*(?:<([^<>\n]{0,2048})>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.){0,2048}\)){0,2048}))(?:\s+(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'))?\s*\)/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", hellip: "…", mdash: "—", ndash: "–" };
const ENTITY = /^&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|(\w{2,8}));/;

/** An address that may be followed, else null: whatever a model writes, nothing runs. */
export function safeHref(address) {
  const href = address.startsWith("www.") ? `http://${address}` : address;
  return /^(?:https?:\/\/|mailto:)/i.test(href) ? href : null;
}

/** @param {string} text @returns {Inline[]} */
export function parseInline(text) {
  return inlineOf({ text, runs: backticksOf(text) });
}

/** @param {{text: string, runs: Map<number, number[]>}} source */
function inlineOf(source) {
  source.links = linksOf(source);
  return nest(scan(source, 0, source.text.length));
}

/** Tokens: texts, finished nodes, and runs of delimiters that may open or close emphasis. */
function scan(source, start, end) {
  const { text } = source;
  const tokens = [];
  let plain = "";
  let at = start;
  const flush = () => {
    if (plain) tokens.push(plain);
    plain = "";
  };
  const add = (token, length) => {
    flush();
    tokens.push(token);
    at += length;
  };
  while (at < end) {
    const char = text[at];
    const rest = () => text.slice(at);
    const found = special(source, at, char, rest);
    if (found) add(found.token, found.length);
    else if (char === "\\" && ESCAPABLE.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (char === "&" && ENTITY.test(rest())) {
      const [whole, decimal, hex, name] = ENTITY.exec(rest());
      plain += decimal || hex ? character(parseInt(decimal ?? hex, decimal ? 10 : 16)) : (ENTITIES[name] ?? whole);
      at += whole.length;
    } else if (char === "\n") {
      plain = plain.replace(/ +$/, "") + "\n";
      at += 1 + text.slice(at + 1).match(/^ */)[0].length;
    } else {
      plain += char;
      at++;
    }
  }
  flush();
  return tokens;
}

const character = (code) => (code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000) ? String.fromCodePoint(code) : "\ufffd");

function special(source, at, char, rest) {
  const { text } = source;
  switch (char) {
    case "`":
      return codeSpan(source, at);
    case "*":
    case "_":
    case "~":
      return delimiters(text, at, char);
    case "!":
      return text[at + 1] === "[" ? link(source, at + 1, true) : null;
    case "[":
      return link(source, at, false);
    case "<": {
      const found = AUTOLINK.exec(rest());
      return found && { token: { type: "link", href: found[1], children: [found[1].replace(/^mailto:/i, "")] }, length: found[0].length };
    }
    case "h":
    case "w":
      return /\w/.test(text[at - 1] ?? "") ? null : bareAddress(rest());
    case "\\":
      return text[at + 1] === "\n" ? hardBreak(text, at, 1) : null;
    case " ":
      return text.startsWith("  ", at) && text[at - 1] !== " " && /^ {2,}\n/.test(rest()) ? hardBreak(text, at, rest().match(/^ +/)[0].length) : null;
    default:
      return null;
  }
}

function hardBreak(text, at, length) {
  const after = at + length + 1;
  return { token: { type: "break" }, length: length + 1 + text.slice(after).match(/^ */)[0].length };
}

/** Where runs of backticks are, by their length. */
function backticksOf(text) {
  const runs = new Map();
  for (const { 0: marks, index } of text.matchAll(/`+/g)) {
    if (!runs.has(marks.length)) runs.set(marks.length, []);
    runs.get(marks.length).push(index);
  }
  return runs;
}

function codeSpan({ text, runs }, at) {
  const { length } = /^`+/.exec(text.slice(at))[0];
  const closing = firstAfter(runs.get(length) ?? [], at + length);
  if (closing === undefined) return { token: "`".repeat(length), length };
  let code = text.slice(at + length, closing).replaceAll("\n", " ");
  if (/^ .* $/.test(code) && code.trim()) code = code.slice(1, -1);
  return { token: { type: "code", text: code }, length: closing + length - at };
}

/** The first of ascending numbers that is not below one. */
function firstAfter(numbers, least) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < least) low = middle + 1;
    else high = middle;
  }
  return numbers[low];
}

function bareAddress(rest) {
  const found = ADDRESS.exec(rest);
  if (!found) return null;
  let address = found[0];
  while (address.endsWith(")") && address.split(")").length > address.split("(").length) address = address.slice(0, -1);
  return { token: { type: "link", href: safeHref(address), children: [address] }, length: address.length };
}

/**
 * All links and images, by the place of their `[`. They are found in one pass, at their `]`, so the inner ones come first:
 * a link with another one in its text is none.
 */
function linksOf(source) {
  const { text } = source;
  const links = new Map(), openers = [];
  let lastLink = -1;
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "`") at += codeSpan(source, at).length - 1;
    else if (text[at] === "[") openers.push(at);
    else if (text[at] === "]" && openers.length) {
      const open = openers.pop();
      const isImage = text[open - 1] === "!";
      TARGET.lastIndex = at + 1;
      const target = isImage || lastLink < open ? TARGET.exec(text) : null;
      if (!target) continue;
      if (!isImage) lastLink = open;
      const address = (target[1] ?? target[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1");
      links.set(open, { close: at, end: TARGET.lastIndex, href: safeHref(address) });
      at = TARGET.lastIndex - 1;
    }
  }
  return links;
}

/** The link whose `[` is at `at`, or the image: then a `!` is in front that was not escaped. */
function link(source, at, isImage) {
  const found = source.links.get(at);
  if (!found) return null;
  const { close, end, href } = found;
  if (isImage) return { token: { type: "image", href, alt: source.text.slice(at + 1, close) }, length: end - at + 1 };
  return { token: { type: "link", href, children: nest(scan(source, at + 1, close)) }, length: end - at };
}

function delimiters(text, at, char) {
  const length = text.slice(at).match(char === "*" ? /^\*+/ : char === "_" ? /^_+/ : /^~+/)[0].length;
  if (char === "~" && length !== 2) return { token: char.repeat(length), length };
  const before = [...text.slice(Math.max(0, at - 2), at)].at(-1) ?? " ";
  const after = [...text.slice(at + length, at + length + 2)][0] ?? " ";
  const isSpace = (one) => /\s/.test(one);
  const left = !isSpace(after) && (!PUNCTUATION.test(after) || isSpace(before) || PUNCTUATION.test(before));
  const right = !isSpace(before) && (!PUNCTUATION.test(before) || isSpace(after) || PUNCTUATION.test(after));
  const canOpen = char === "_" ? left && (!right || PUNCTUATION.test(before)) : left;
  const canClose = char === "_" ? right && (!left || PUNCTUATION.test(after)) : right;
  return { token: { run: char, length, original: length, canOpen, canClose }, length };
}

/** Emphasis deeper than this is text. */
const DEEPEST = 24;

/** Pair runs of delimiters, as the specification's "process emphasis" does. */
function nest(tokens) {
  for (let close = 0; close < tokens.length; close++) {
    const closer = tokens[close];
    if (!closer.run || !closer.canClose || !closer.length) continue;
    const open = openerFor(tokens, close);
    if (open < 0) continue;
    const opener = tokens[open];
    const size = closer.run === "~" || (closer.length > 1 && opener.length > 1) ? 2 : 1;
    const type = closer.run === "~" ? "del" : size === 2 ? "strong" : "em";
    const children = merged(tokens.slice(open + 1, close).flatMap(asText));
    const depth = 1 + children.reduce((deepest, child) => Math.max(deepest, child.depth ?? 0), 0);
    if (depth > DEEPEST) continue;
    opener.length -= size;
    closer.length -= size;
    tokens.splice(open + 1, close - open - 1, { type, children, depth });
    close = open + 1; // the closer is next: it may close more
  }
  return merged(tokens.flatMap(asText));
}

function openerFor(tokens, close) {
  const closer = tokens[close];
  for (let open = close - 1; open >= 0; open--) {
    const one = tokens[open];
    if (one.run !== closer.run || !one.canOpen || !one.length) continue;
    const isMixed = (one.canClose || closer.canOpen) && (one.original + closer.original) % 3 === 0;
    if (!isMixed || (one.original % 3 === 0 && closer.original % 3 === 0)) return open;
  }
  return -1;
}

const asText = (token) => (token.run ? (token.length ? [token.run.repeat(token.length)] : []) : [token]);

function merged(nodes) {
  const result = [];
  for (const node of nodes) {
    if (typeof node === "string" && typeof result.at(-1) === "string") result[result.length - 1] += node;
    else result.push(node);
  }
  return result;
}
