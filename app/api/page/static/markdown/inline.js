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
const TARGET = /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'))?\s*\)/;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", hellip: "…", mdash: "—", ndash: "–" };
const ENTITY = /^&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|(\w{2,8}));/;

/** An address that may be followed, else null: whatever a model writes, nothing runs. */
export function safeHref(address) {
  const href = address.startsWith("www.") ? `http://${address}` : address;
  return /^(?:https?:\/\/|mailto:)/i.test(href) ? href : null;
}

/** @param {string} text @returns {Inline[]} */
export function parseInline(text) {
  return nest(scan(text));
}

/** Tokens: texts, finished nodes, and runs of delimiters that may open or close emphasis. */
function scan(text) {
  const tokens = [];
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) tokens.push(plain);
    plain = "";
  };
  const add = (token, length) => {
    flush();
    tokens.push(token);
    at += length;
  };
  while (at < text.length) {
    const char = text[at];
    const rest = () => text.slice(at);
    const found = special(text, at, char, rest);
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

function special(text, at, char, rest) {
  switch (char) {
    case "`":
      return codeSpan(text, at);
    case "*":
    case "_":
    case "~":
      return delimiters(text, at, char);
    case "!":
      return text[at + 1] === "[" ? link(text, at + 1, true) : null;
    case "[":
      return link(text, at, false);
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
      return text.startsWith("  ", at) && /^ {2,}\n/.test(rest()) ? hardBreak(text, at, rest().match(/^ +/)[0].length) : null;
    default:
      return null;
  }
}

function hardBreak(text, at, length) {
  const after = at + length + 1;
  return { token: { type: "break" }, length: length + 1 + text.slice(after).match(/^ */)[0].length };
}

function codeSpan(text, at) {
  const marks = /^`+/.exec(text.slice(at))[0];
  const inner = text.slice(at + marks.length);
  const closing = new RegExp(`(?<!\`)${marks}(?!\`)`).exec(inner);
  if (!closing) return { token: marks, length: marks.length };
  let code = inner.slice(0, closing.index).replaceAll("\n", " ");
  if (/^ .* $/.test(code) && code.trim()) code = code.slice(1, -1);
  return { token: { type: "code", text: code }, length: marks.length * 2 + closing.index };
}

function bareAddress(rest) {
  const found = ADDRESS.exec(rest);
  if (!found) return null;
  let address = found[0];
  while (address.endsWith(")") && address.split(")").length > address.split("(").length) address = address.slice(0, -1);
  return { token: { type: "link", href: safeHref(address), children: [address] }, length: address.length };
}

/** `[text](address)`, or an image, whose `[` is at `at`. */
function link(text, at, isImage) {
  const end = closingBracket(text, at);
  if (end < 0) return null;
  const target = TARGET.exec(text.slice(end + 1));
  if (!target) return null;
  const address = (target[1] ?? target[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1");
  const label = text.slice(at + 1, end);
  const length = end + 1 + target[0].length - at;
  const href = safeHref(address);
  if (isImage) return { token: { type: "image", href, alt: label }, length: length + 1 };
  const children = parseInline(label);
  if (hasLink(children)) return null; // the inner one counts
  return { token: { type: "link", href, children }, length };
}

const hasLink = (nodes) => nodes.some((node) => node.type === "link" || hasLink(node.children ?? []));

function closingBracket(text, at) {
  let depth = 0;
  for (let index = at; index < text.length; index++) {
    if (text[index] === "\\") index++;
    else if (text[index] === "`") index += (codeSpan(text, index).length || 1) - 1;
    else if (text[index] === "[") depth++;
    else if (text[index] === "]" && --depth === 0) return index;
  }
  return -1;
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
    const children = tokens.slice(open + 1, close).flatMap(asText);
    opener.length -= size;
    closer.length -= size;
    tokens.splice(open + 1, close - open - 1, { type, children: merged(children) });
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
