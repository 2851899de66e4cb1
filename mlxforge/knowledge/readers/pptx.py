"""PPTX: a heading a slide, its text, tables as rows, the speaker's notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlxforge.knowledge.readers.base import Block, Parsed, heading, need, paragraph, row, unpacked


def read_pptx(path: Path) -> Parsed:
    """The slides in order."""
    pptx = need("pptx", "python-pptx", "reading PPTX")
    with unpacked(path):
        slides = pptx.Presentation(str(path))
    blocks = [block for number, slide in enumerate(slides.slides, 1) for block in _slide(slide, number)]
    return Parsed(blocks, str(slides.core_properties.title or "").strip())


def _slide(slide: Any, number: int) -> Iterator[Block]:
    top = slide.shapes.title
    title = " ".join(top.text_frame.text.split()) if top is not None else ""
    yield heading(title or f"Slide {number}", 1, page=number)
    for text in _texts(shape for shape in slide.shapes if top is None or shape.shape_id != top.shape_id):
        yield paragraph(text, page=number)
    if slide.has_notes_slide and (frame := slide.notes_slide.notes_text_frame) is not None and frame.text.strip():
        yield paragraph(f"Notes: {_lines(frame.text)}", page=number)


def _texts(shapes: Iterable[Any]) -> Iterator[str]:
    for shape in shapes:
        if hasattr(shape, "shapes"):  # a group
            yield from _texts(shape.shapes)
        elif getattr(shape, "has_table", False):
            yield "\n".join(row([cell.text for cell in line.cells]) for line in shape.table.rows)
        elif shape.has_text_frame and shape.text_frame.text.strip():
            yield _lines(shape.text_frame.text)


def _lines(text: str) -> str:
    """A vertical tab is PowerPoint's line break inside of a paragraph."""
    return text.replace("\v", "\n").strip()
