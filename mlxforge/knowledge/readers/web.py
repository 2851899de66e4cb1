"""HTML and EPUB, by lxml: headings, paragraphs, lists, tables and code; what surrounds the text is marked as navigation."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mlxforge.knowledge.readers.base import MARKUP, Block, Parsed, Unreadable, heading, need, paragraph, row, unpacked

SPACE = re.compile(r"[ \t\r\n\f]+")
NEVER = set("script style noscript template svg head object iframe audio video canvas select button input textarea".split())
BLOCKS = set(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure footer form "
    "header hr legend li main nav ol p section summary table td th tr ul".split()
)
AROUND = {"nav", "aside", "footer", "form", "dialog"}
ROLES = {"navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "dialog"}
NAMES = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navigation|navheader|navfooter|menu|sidebar|breadcrumbs?|footer|cookies?|banner|toolbar|pagination|"
    r"skip-?link|share|social|related|sphinxsidebar)(?:$|[\s_-])",
    re.IGNORECASE,
)
CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"


def read_html(path: Path) -> Parsed:
    """A web page."""
    if path.stat().st_size > MARKUP:
        raise Unreadable(f"larger than {MARKUP >> 20} MB, too large for a page: split it")
    return parse_html(path.read_bytes())


def parse_html(data: bytes, *, whole: bool = False) -> Parsed:
    """The blocks of a page; with ``whole`` nothing of it is navigation."""
    html = need("lxml.html", "lxml", "reading HTML")
    if not data.strip():
        raise Unreadable("no text")
    encoding = None
    try:
        data.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        pass  # the page names its own
    tree = html.document_fromstring(data, parser=html.HTMLParser(encoding=encoding, huge_tree=True, remove_comments=True))
    title = " ".join(str(tree.findtext(".//title") or "").split())
    mains = [] if whole else tree.xpath("//main | //*[@role='main']")
    reader = _Page(set(mains[:1]), whole)
    reader.walk(tree)
    reader.end()
    return Parsed(reader.blocks, title)


class _Page:
    """Walks over a page and gathers its blocks."""

    def __init__(self, mains: set[Any], whole: bool) -> None:
        self.mains, self.whole = mains, whole
        self.blocks: list[Block] = []
        self.line: list[str] = []
        self.role = "navigation" if mains else "body"
        self.prefix = ""

    def end(self, after: str = "\n\n") -> None:
        """Ends the paragraph."""
        text = SPACE.sub(" ", "".join(self.line)).replace(" \0", "\0").replace("\0 ", "\0").replace("\0", "\n").strip()
        self.line = []
        if text:
            self.blocks.append(Block(self.prefix + text + after, role=self.role))
            self.prefix = ""

    def walk(self, root: Any) -> None:
        """Everything below ``root``, in order; without recursion, for pages are deep."""
        stack: list[Iterator[Any]] = [iter(self.visit(root))]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
            else:
                stack.append(iter(self.visit(following)))

    def visit(self, node: Any) -> Iterator[Any]:
        """Takes a node's own text and yields its children between."""
        tag = node.tag if isinstance(node.tag, str) else None
        if tag is None or tag in NEVER or node.get("hidden") is not None:
            return
        if special := SPECIAL.get(tag):
            self.end()
            special(self, node)
            return
        if tag == "br":
            self.line.append("\0")
            return
        role = self.role
        apart = tag in BLOCKS
        if apart:
            self.end()
            self.role = "body" if node in self.mains else "navigation" if self.around(node, tag) else role
            if tag == "li":
                self.prefix = "- "
        self.line.append(node.text or "")
        for child in node:
            yield child
            self.line.append(child.tail or "")
        if apart:
            self.end("\n" if tag in ("li", "dt") else "\n\n")
            self.role = role
            if tag in ("ul", "ol") and self.blocks and not self.blocks[-1].text.endswith("\n\n"):
                self.blocks[-1].text += "\n"

    def around(self, node: Any, tag: str) -> bool:
        """Whether a node surrounds the text of the page."""
        if self.whole or tag == "body":
            return False
        in_article = tag in ("header", "aside") and any(above.tag in ("article", "main") for above in node.iterancestors())
        names = f"{node.get('class') or ''} {node.get('id') or ''}"
        tagged = (tag in AROUND or tag == "header") and not in_article
        return tagged or node.get("role") in ROLES or (tag in ("div", "ul", "section") and bool(NAMES.search(names)))

    def heading(self, node: Any) -> None:
        """A heading."""
        if title := " ".join(_all_text(node).split()):
            self.blocks.append(heading(title, int(node.tag[1]), role=self.role))

    def code(self, node: Any) -> None:
        """Preformatted text, as it stands."""
        if (text := _all_text(node)).strip():
            self.blocks.append(paragraph(f"```\n{text.strip(chr(10))}\n```", role=self.role))

    def table(self, node: Any) -> None:
        """A line a row; a table that lays out a page (it holds blocks) is read as if it were none."""
        if node.xpath(".//table | .//pre | .//h1 | .//h2 | .//h3 | .//ul | .//ol | .//td//p[2]"):
            for cell in node.iter("td", "th"):
                if next(cell.iterancestors("table")) is node:
                    inner = _Page(self.mains, self.whole)
                    inner.role = self.role
                    cell.tag = "div"
                    inner.walk(cell)
                    inner.end()
                    self.blocks += inner.blocks
            return
        lines = [row([_all_text(cell) for cell in line.iter("td", "th")]) for line in node.iter("tr")]
        if text := "\n".join(line for line in lines if line):
            self.blocks.append(paragraph(text, role=self.role))


SPECIAL = {**{f"h{level}": _Page.heading for level in range(1, 7)}, "pre": _Page.code, "table": _Page.table}


def _all_text(node: Any) -> str:
    parts = [node.text or ""]
    for child in node.iterdescendants():
        if isinstance(child.tag, str) and child.tag not in NEVER:
            parts += ["\n"] if child.tag == "br" else [child.text or ""]
        parts.append(child.tail or "")
    return "".join(parts)


def read_epub(path: Path) -> Parsed:
    """The chapters of a book in the order of its spine."""
    etree = need("lxml.etree", "lxml", "reading EPUB")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    with unpacked(path, apart=True) as archive:
        names = set(archive.namelist())
        if CONTAINER not in names:
            raise Unreadable("no EPUB: it has no META-INF/container.xml")
        package = etree.fromstring(archive.read(CONTAINER), parser).xpath("string(//*[local-name()='rootfile']/@full-path)")
        if package not in names:
            raise Unreadable("broken: its package file is missing")
        book = etree.fromstring(archive.read(package), parser)
        chapters = [posixpath.normpath(posixpath.join(posixpath.dirname(package), href)) for href in _spine(book)]
        if ENCRYPTION in names and _locked(etree.fromstring(archive.read(ENCRYPTION), parser)) & set(chapters):
            raise Unreadable("encrypted: it is protected against copying")
        missing = sum(name not in names for name in chapters)
        blocks = [
            block for name in chapters if name in names for block in parse_html(_member(archive, name), whole=True).blocks
        ]
    title = " ".join(book.xpath("string(//*[local-name()='metadata']/*[local-name()='title'])").split())
    return Parsed(blocks, title, notes={"chapters missing": missing} if missing else {})


def _spine(book: Any) -> list[str]:
    items = {item.get("id"): item for item in book.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    order = [items.get(ref.get("idref")) for ref in book.xpath("//*[local-name()='spine']/*[local-name()='itemref']")]
    # The table of contents repeats what the headings say.
    wanted = [item for item in order if item is not None and "nav" not in (item.get("properties") or "").split()]
    return [unquote(item.get("href") or "") for item in wanted if "html" in (item.get("media-type") or "")]


def _locked(encryption: Any) -> set[str]:
    return {unquote(uri) for uri in encryption.xpath("//*[local-name()='CipherReference']/@URI")}


def _member(archive: Any, name: str) -> bytes:
    if archive.getinfo(name).file_size > MARKUP:  # whatever its suffix is
        raise Unreadable(f"a chapter of more than {MARKUP >> 20} MB")
    return bytes(archive.read(name))
