"""The page's reader of markdown, in node: compared with markdown-it, and fed with hostile and unfinished text."""

import itertools
import json
import random
import re
import subprocess
from pathlib import Path

from markdown_it import MarkdownIt

from tests.page.conftest import needs_node
from tests.patience import PATIENCE

pytestmark = needs_node

SAMPLES = [
    "Hello *world*, **bold**, ***both***, ~~gone~~ and `code`.",
    "# One\n## Two ##\n###### Six\nSeven\n===\nEight\n---\n",
    "- a\n- b\n  - c\n    - d\n- e\n",
    "1. one\n2. two\n\n   more of two\n3. three\n",
    "7) seven\n8) eight\n",
    "* a\n\n* b\n",
    "- a\n\n  ```py\n  x = 1\n\n  y = 2\n  ```\n- b\n",
    "Text\n- item\nlazy\n\nafter",
    "> quote\nlazy\n> - list\n>   in it\n\nout",
    "> > deep\n> less\n",
    "```python\ndef f():\n    return `1`\n```\nafter",
    "~~~\n``` inside\n~~~",
    "````md\n```\ninner\n```\n````",
    "```never closed\nline\n\nline",
    "    indented code\n\n    more\ntext",
    "| a | b |\n| --- | :-: |\n| 1 | `2` |\n| **3** |\n\nafter",
    "a | b\n--- | ---:\n1 | 2\n",
    "text\n| a |\n| - |\n| x \\| y |",
    "---\n***\n_ _ _\n",
    "a\\*b\\_c \\` \\[x](y)",
    '[a *b* c](https://x.org/a_b?c=d&e=f "title") and <https://y.org/z>',
    "![alt](https://x.org/i.png) [![alt](https://x.org/i.png)](https://y.org) \\![a](https://x.org)",
    "[not a link] (x.org) [a](b c)",
    "[a[b](https://in.org)](x)",
    "snake_case_word and _em_ and __strong__ and 2*3*4",
    "**bold*ital* more** *a **b** c* **a *b***",
    "*a **b* c**",
    '**"quoted"**text and **(x)**y',
    "line one  \nline two\\\nline three\nline four",
    "`` a`b `` and ` x ` and `unclosed",
    "AT&amp;T &lt;tag&gt; &copy; &#65;&#x42; &unknown;",
    "<script>alert(1)</script> <b>bold</b>",
    "1. a\n   - b\n   - c\n2. d\n\n\n   e\n",
    "- [link](https://x.org)\n- **b**: text\n",
    "2. starts at two\n\ntext\n3. not a list inside\n",
    "Steps:\n1. first\n2. second\n",
    "a\n    not code\n",
    "-\n  x\n- \n\n  y",
    "- a\n- b\n\n\n- c\n\ntext",
    "#nothash\n#\tTab\n",
    "**a**b**c** __a__b __ c",
    "Über *straße*, **日本語**です。",
]


def rendered(texts: list[str]) -> list[str]:
    script = Path(__file__).with_name("markdown_as_html.mjs")
    done = subprocess.run(
        ["node", script], input=json.dumps(texts), capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    html: list[str] = json.loads(done.stdout)
    return html


def expected(text: str) -> str:
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).render(text)


def _plain(html: str) -> str:
    """Without what no reader sees: languages and titles, and space between blocks."""
    html = re.sub(r' (class|title)="[^"]*"', "", html)
    html = re.sub(r"\s*(</?(?:p|ul|ol|li|blockquote|table|thead|tbody|tr|th|td|h\d|hr|pre)\b[^>]*>)\s*", r"\1", html)
    return re.sub(r"\s*</code></pre>", "</code></pre>", html).strip()


def test_it_reads_as_markdown_it_does() -> None:
    for text, html in zip(SAMPLES, rendered(SAMPLES), strict=True):
        assert _plain(html) == _plain(expected(text)), text


def test_pieces_of_it_together_read_as_markdown_it_does() -> None:
    pieces = ["*", "**", "_", "`", "a", "b c", " ", "~~", "(", ".", "é", "\\"]
    rng = random.Random(5)
    texts = ["".join(rng.choices(pieces, k=9)).strip().replace("~~~", "a") + "x" for _ in range(1000)]
    for text, html in zip(texts, rendered(texts), strict=True):
        assert _plain(html) == _plain(expected(text)), text
    common = ["", "text", "# h", "```", "* * *", "  ", "  more", "   d"]
    # A table right behind a quote or an item: markdown-it takes it for text of theirs, which nobody means.
    for others in (["- a", "  - b", "1. c", "> e"], ["| a | b |", "| - | - |", "1 | 2", "\\| x"]):
        texts = ["\n".join(rng.choices(common + others, k=6)) for _ in range(500)]
        for text, html in zip(texts, rendered(texts), strict=True):
            assert _plain(html) == _plain(expected(text)), text


def test_no_address_runs_anything() -> None:
    hostile = [
        f"[{'x'}]({address}) <{address}> ![i]({address}) {address}"
        for address in (
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            "data:text/html,x",
            "vbscript:x",
            "java\tscript:x",
            "//x.org",
        )
    ]
    for html in rendered(hostile):
        assert not re.search(r'(?:href|src)="(?!https?://|mailto:|")', html), html


def test_no_text_takes_long() -> None:
    """What took exponential time in the depth of a text would never end here."""
    count = 3000
    texts = [
        "[" * count + "a" + "](b)" * count,
        "[" * 8000,
        "![" * count + "](x" * count,
        "[a](" * count + "(" * count,
        "> > > > > > a\n" + "b\n" * count,
        "> > > a\nb\n" * count,
        "- a\nb\n> c\nd\n" * count,
        "> " * count,
        "*a " * count + "b*" * count,
        "- " * count,
        "*a **b _c " * count,
        "a* b** c_ " * count,
        " ".join("`" * length for length in range(1, 300)),
        "| a " * count + "\n" + "| - " * count + "\n" + "| b " * count,
        " " * 8000 + "x" + " " * 8000,
        "https://" + "(" * count + ")" * count,
    ]
    assert len(rendered(texts)) == len(texts)


def test_every_beginning_of_a_text_reads() -> None:
    whole = "\n\n".join(SAMPLES)
    beginnings = [whole[:end] for end in range(0, len(whole), 3)]
    assert len(rendered(beginnings)) == len(beginnings)
    nested = ["".join(marks) * 400 for marks in itertools.product(["> ", "- ", "*", "[", "`", "~~", "_"], repeat=2)]
    assert len(rendered(nested)) == len(nested)
