// Markdown as models write it, a large part of CommonMark 0.31 and GFM's tables, as a tree of plain data.

/**
 * @typedef {{type: "paragraph" | "heading", level?: number, text: string}
 *   | {type: "code", language: string, text: string}
 *   | {type: "quote", blocks: Block[]}
 *   | {type: "list", start: number | null, isTight: boolean, items: {checked: boolean | null, blocks: Block[]}[]}
 *   | {type: "table", align: (string | null)[], header: string[], rows: string[][]}
 *   | {type: "rule"}} Block
 */

const BLANK = /^[ \t]*$/;
const FENCE = /^( {0,3})(`{3,}(?=[^`]*$)|~{3,})[ \t]*([^\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)(.*?)(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)(.*)$/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** @param {string} text @returns {Block[]} */
export function parseBlocks(text) {
  return blocksOf(text.replace(/\r\n?/g, "\n").replace(/^\t+/gm, (tabs) => "    ".repeat(tabs.length)).split("\n"));
}

const RULES = [indented, fence, heading, rule, quote, list, table, paragraph];

const blocksOf = (lines) => readBlocks(lines).blocks;

/** Quotes and lists deeper than this are text. */
const DEEPEST = 24;
let depth = 0;

/** The blocks of some lines, and whether blank lines are between any of them. */
function readBlocks(lines) {
  depth++;
  try {
    return read(lines, depth > DEEPEST ? [paragraph] : RULES);
  } finally {
    depth--;
  }
}

function read(lines, rules) {
  const blocks = [];
  let isSpaced = false;
  let at = 0;
  while (at < lines.length) {
    if (BLANK.test(lines[at])) {
      at++;
      continue;
    }
    if (blocks.length && BLANK.test(lines[at - 1])) isSpaced = true;
    for (const rule of rules) {
      const found = rule(lines, at);
      if (!found) continue;
      blocks.push(found.block);
      at = found.end;
      break;
    }
  }
  return { blocks, isSpaced };
}

const indentOf = (line) => line.match(/^ */)[0].length;

function indented(lines, start) {
  if (indentOf(lines[start]) < 4) return null;
  let end = start;
  while (end < lines.length && (BLANK.test(lines[end]) || indentOf(lines[end]) >= 4)) end++;
  while (BLANK.test(lines[end - 1])) end--;
  return { block: { type: "code", language: "", text: lines.slice(start, end).map((line) => line.slice(4)).join("\n") }, end };
}

function fence(lines, start) {
  const opening = FENCE.exec(lines[start]);
  if (!opening) return null;
  const [, indent, marks, info] = opening;
  const closing = closingOf(marks);
  let end = start + 1;
  while (end < lines.length && !closing.test(lines[end])) end++;
  const own = new RegExp(`^ {0,${indent.length}}`);
  const text = lines.slice(start + 1, end).map((line) => line.replace(own, "")).join("\n");
  return { block: { type: "code", language: info.trim().split(/\s+/)[0], text }, end: end + 1 };
}

function heading(lines, start) {
  const found = HEADING.exec(lines[start]);
  if (!found) return null;
  const text = /^#+$/.test(found[2]) ? "" : found[2].trim();
  return { block: { type: "heading", level: found[1].length, text }, end: start + 1 };
}

function rule(lines, start) {
  return RULE.test(lines[start]) ? { block: { type: "rule" }, end: start + 1 } : null;
}

function quote(lines, start) {
  if (!QUOTE.test(lines[start])) return null;
  const inner = new Inner();
  let end = start;
  for (; end < lines.length; end++) {
    if (QUOTE.test(lines[end])) inner.push(lines[end].replace(QUOTE, ""));
    else if (inner.goesOn(lines, end)) inner.push(lines[end].trimStart());
    else break;
  }
  return { block: { type: "quote", blocks: blocksOf(inner.lines) }, end };
}

/** Lines of a container, and whether they end with a paragraph that a line without the container's marks goes on with. */
class Inner {
  lines = [];
  #fence = null;
  #isOpen = false;

  push(line) {
    this.lines.push(line);
    const text = unmarked(line);
    if (this.#fence) {
      if (this.#fence.test(text)) this.#fence = null;
      return;
    }
    const opening = FENCE.exec(text);
    if (opening) this.#fence = closingOf(opening[2]);
    if (opening || BLANK.test(text) || [HEADING, RULE, UNDERLINE].some((mark) => mark.test(text))) this.#isOpen = false;
    else if (indentOf(text) < 4) this.#isOpen = true;
  }

  goesOn(lines, at) {
    return this.#isOpen && !BLANK.test(lines[at]) && !interrupts(lines, at);
  }
}

/** A line without the marks of quotes and items. */
function unmarked(line) {
  for (let count = 0; count < DEEPEST; count++) {
    const item = RULE.test(line) ? null : ITEM.exec(line);
    if (item) line = item[4];
    else if (QUOTE.test(line)) line = line.replace(QUOTE, "");
    else break;
  }
  return line;
}

const closingOf = (marks) => new RegExp(`^ {0,3}${marks[0]}{${marks.length},}[ \\t]*$`);

/** Whether a line begins a block that ends a paragraph. */
const interrupts = (lines, at) => beginsBlock(lines[at]) || isTable(lines, at);

function beginsBlock(line) {
  const item = ITEM.exec(line);
  const isItem = item && item[4] !== "" && (/^[-*+]$/.test(item[2]) || parseInt(item[2]) === 1);
  return isItem || [FENCE, HEADING, RULE, QUOTE].some((mark) => mark.test(line));
}

function list(lines, start) {
  const first = ITEM.exec(lines[start]);
  if (!first) return null;
  const kind = first[2].at(-1);
  const items = [];
  let isTight = true;
  let at = start;
  for (;;) {
    const mark = at < lines.length && !RULE.test(lines[at]) ? ITEM.exec(lines[at]) : null;
    if (!mark || mark[2].at(-1) !== kind) break;
    const { inner, end } = itemLines(lines, at, mark);
    const { blocks, isSpaced } = readBlocks(withoutBox(inner));
    items.push({ checked: checkedOf(inner[0]), blocks });
    if (isSpaced) isTight = false;
    at = end;
    let next = at;
    while (next < lines.length && BLANK.test(lines[next])) next++;
    const following = next < lines.length && !RULE.test(lines[next]) ? ITEM.exec(lines[next]) : null;
    if (next === at || !following || following[2].at(-1) !== kind) continue;
    isTight = false;
    at = next;
  }
  const start_ = /\d/.test(first[2]) ? parseInt(first[2]) : null;
  return { block: { type: "list", start: start_, isTight, items }, end: at };
}

/** The lines of an item without their indentation, up to `end`. */
function itemLines(lines, start, mark) {
  const spaces = mark[3].length;
  const isCode = spaces > 4;
  const indent = mark[1].length + mark[2].length + (isCode || spaces === 0 ? 1 : spaces);
  const container = new Inner();
  const inner = container.lines;
  container.push((isCode ? " ".repeat(spaces - 1) : "") + mark[4]);
  let end = start + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (BLANK.test(line)) {
      if (end === start + 1 && mark[4] === "") break; // an item may begin with one blank line at most
      container.push("");
    } else if (indentOf(line) >= indent) container.push(line.slice(indent));
    else if (!ITEM.test(line) && container.goesOn(lines, end)) container.push(line.trimStart());
    else break;
  }
  while (inner.length > 1 && inner.at(-1) === "") {
    inner.pop();
    end--;
  }
  return { inner, end };
}

const BOX = /^\[([ xX])\][ \t]+(?=\S)/;
const checkedOf = (line) => (BOX.test(line) ? BOX.exec(line)[1] !== " " : null);
const withoutBox = ([first, ...rest]) => [first.replace(BOX, ""), ...rest];

function isTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !DELIMITERS.test(lines[at + 1])) return false;
  return cellsOf(lines[at]).length === cellsOf(lines[at + 1]).length;
}

function table(lines, start) {
  if (!isTable(lines, start)) return null;
  const header = cellsOf(lines[start]);
  const align = cellsOf(lines[start + 1]).map((cell) => {
    const left = cell.startsWith(":"), right = cell.endsWith(":");
    return left && right ? "center" : right ? "right" : left ? "left" : null;
  });
  const rows = [];
  let end = start + 2;
  for (; end < lines.length && !BLANK.test(lines[end]) && !beginsBlock(lines[end]); end++) {
    const cells = cellsOf(lines[end]);
    rows.push(header.map((_, column) => cells[column] ?? ""));
  }
  return { block: { type: "table", align, header, rows }, end };
}

function cellsOf(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, start) {
  let end = start + 1;
  for (; end < lines.length && !BLANK.test(lines[end]); end++) {
    const underline = UNDERLINE.exec(lines[end]);
    if (underline) {
      const level = underline[1][0] === "=" ? 1 : 2;
      return { block: { type: "heading", level, text: joined(lines.slice(start, end)) }, end: end + 1 };
    }
    if (interrupts(lines, end)) break;
  }
  return { block: { type: "paragraph", text: joined(lines.slice(start, end)) }, end };
}

const joined = (lines) => lines.map((line) => line.trimStart()).join("\n").trimEnd();
