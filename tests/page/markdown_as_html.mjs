// Reads a JSON list of texts, and writes a list of the HTML that the page's trees of them stand for.
import { readFileSync } from "node:fs";
import { parseBlocks } from "../../app/api/page/static/markdown/blocks.js";
import { parseInline } from "../../app/api/page/static/markdown/inline.js";

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
const inline = (text) => parseInline(text).map(node).join("");
const tag = (name, inner, rest = "") => `<${name}${rest}>${inner}</${name}>`;

function node(one) {
  if (typeof one === "string") return escaped(one);
  const inner = () => one.children.map(node).join("");
  if (one.type === "code") return tag("code", escaped(one.text));
  if (one.type === "break") return "<br />\n";
  if (one.type === "image") return `<img src="${escaped(one.href ?? "")}" alt="${escaped(one.alt)}" />`;
  if (one.type === "link") return tag("a", inner(), ` href="${escaped(one.href ?? "")}"`);
  return tag({ del: "s" }[one.type] ?? one.type, inner());
}

function block(one, isTight = false) {
  if (one.type === "paragraph") return isTight ? inline(one.text) + "\n" : tag("p", inline(one.text));
  if (one.type === "heading") return tag(`h${one.level}`, inline(one.text));
  if (one.type === "rule") return "<hr />";
  if (one.type === "quote") return tag("blockquote", one.blocks.map((inner) => block(inner)).join(""));
  if (one.type === "code") return tag("pre", tag("code", escaped(one.text && one.text + "\n")));
  if (one.type === "table") {
    const row = (cells, cell) => tag("tr", cells.map((text, at) => tag(cell, inline(text), one.align[at] ? ` style="text-align:${one.align[at]}"` : "")).join(""));
    const body = one.rows.length ? tag("tbody", one.rows.map((cells) => row(cells, "td")).join("")) : "";
    return tag("table", tag("thead", row(one.header, "th")) + body);
  }
  const items = one.items.map(({ blocks }) => tag("li", blocks.map((inner) => block(inner, one.isTight)).join("")));
  return tag(one.start === null ? "ul" : "ol", items.join(""), one.start === null || one.start === 1 ? "" : ` start="${one.start}"`);
}

const texts = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(texts.map((text) => parseBlocks(text).map((one) => block(one)).join(""))));
