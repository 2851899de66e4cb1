"""The table of readers, and the one way into them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from mlxforge.core.errors import MissingExtraError, MlxforgeError
from mlxforge.knowledge.readers.base import LARGEST, Parsed, Unreadable


class Reader(NamedTuple):
    """The type that ``documents.type`` names, where the function lies that reads it, and the package of the extra ``docs`` that
    it needs, as (name to import, name to install)."""

    type: str
    module: str
    function: str
    needs: tuple[str, str] | None = None

    def load(self) -> Callable[[Path], Parsed]:
        """The function, imported when it is needed."""
        found: Callable[[Path], Parsed] = getattr(importlib.import_module(f"{__package__}.{self.module}"), self.function)
        return found


# Suffixes of source code by language.
CODE = {
    "assembly": ".s .asm",
    "c": ".c .h",
    "c++": ".cc .cpp .cxx .hh .hpp .hxx",
    "c#": ".cs",
    "clojure": ".clj .cljs .edn",
    "cmake": ".cmake",
    "css": ".css .scss .less",
    "cuda": ".cu .cuh",
    "dart": ".dart",
    "elixir": ".ex .exs",
    "erlang": ".erl .hrl",
    "fortran": ".f .f90 .f95 .for",
    "go": ".go",
    "graphql": ".graphql",
    "groovy": ".groovy .gradle",
    "haskell": ".hs",
    "ini": ".ini .cfg .conf .properties",
    "java": ".java",
    "javascript": ".js .jsx .mjs .cjs",
    "julia": ".jl",
    "kotlin": ".kt .kts",
    "latex": ".tex .sty .cls .bib",
    "lisp": ".lisp .el .scm .rkt",
    "lua": ".lua",
    "make": ".mk",
    "metal": ".metal",
    "objective-c": ".m .mm",
    "ocaml": ".ml .mli",
    "pascal": ".pas",
    "perl": ".pl .pm",
    "php": ".php",
    "protobuf": ".proto",
    "python": ".py .pyi",
    "r": ".r",
    "ruby": ".rb",
    "rust": ".rs",
    "scala": ".scala",
    "shell": ".sh .bash .zsh .fish",
    "sql": ".sql",
    "swift": ".swift",
    "terraform": ".tf",
    "toml": ".toml",
    "typescript": ".ts .tsx",
    "vim": ".vim",
    "vue": ".vue .svelte",
    "xml": ".xml .xsd .xsl",
    "yaml": ".yaml .yml",
    "zig": ".zig",
}
KINDS = [
    (".pdf", Reader("pdf", "pdf", "read_pdf", ("pypdfium2", "pypdfium2"))),
    (".docx .docm", Reader("docx", "docx", "read_docx", ("docx", "python-docx"))),
    (".pptx .pptm", Reader("pptx", "pptx", "read_pptx", ("pptx", "python-pptx"))),
    (".xlsx .xlsm .xlsb .xls .ods", Reader("xlsx", "xlsx", "read_xlsx", ("python_calamine", "python-calamine"))),
    (".html .htm .xhtml", Reader("html", "web", "read_html", ("lxml", "lxml"))),
    (".epub", Reader("epub", "web", "read_epub", ("lxml", "lxml"))),
    (".md .markdown .mdx .qmd", Reader("markdown", "plain", "read_markdown")),
    (".txt .text .log", Reader("text", "plain", "read_text")),
    (".rst", Reader("rst", "plain", "read_rst")),
    (".csv .tsv", Reader("csv", "rows", "read_csv")),
    (".jsonl .ndjson", Reader("jsonl", "rows", "read_jsonl")),
    (".json", Reader("json", "rows", "read_json")),
    *((suffixes, Reader(language, "plain", "read_code")) for language, suffixes in CODE.items()),
]
READERS: dict[str, Reader] = {suffix: reader for suffixes, reader in KINDS for suffix in suffixes.split()}


def check_extras(suffixes: Iterable[str]) -> None:
    """Raises a MissingExtraError where a package is missing that files of these suffixes need."""
    for suffix in sorted(suffixes):
        needs = READERS[suffix].needs
        if needs and importlib.util.find_spec(needs[0]) is None:
            raise MissingExtraError(needs[1], "docs", f"reading '{suffix}' files")


def parse(path: Path) -> Parsed:
    """Reads a file by its suffix.

    Raises:
        Unreadable: the file is broken, encrypted, too large or holds no text: the reason, without the path.
        MissingExtraError: its library is not installed.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise Unreadable(f"larger than {LARGEST >> 20} MB: split it")
        parsed = READERS[path.suffix.lower()].load()(path)
    except (Unreadable, MlxforgeError):
        raise
    except OSError as error:
        raise Unreadable(f"cannot read: {error.strerror or error}") from error
    except (MemoryError, RecursionError) as error:
        raise Unreadable("too deep or too large for its reader") from error
    except Exception as error:  # libraries raise errors of every kind over broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"broken: {reason[:200]}") from error
    for block in parsed.blocks:
        if "\0" in block.text:  # no character; SQLite would end a text here
            block.text = block.text.replace("\0", "")
    if not any(block.text.strip() for block in parsed.blocks):
        raise Unreadable("no text")
    return parsed
