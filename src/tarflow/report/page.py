"""The page: sections become one HTML file that asks nobody for anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tarflow.report.content import Drawing, Figure, Section, strip_image
from tarflow.report.facts import cards
from tarflow.report.markup import Markup, element
from tarflow.report.style import style_sheet

# Nothing is loaded from anywhere, whatever a class or a path is called: the browser holds us to it.
MARK = str(element("meta", name="generator", content="tarflow report"))  # by which a page of ours is known
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Chapter:
    """One run: its name, its numbers to see first, and its sections. `anchor` is its id."""

    anchor: str
    name: str
    lead: str
    headline: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def page(chapters: Sequence[Chapter], opening: Sequence[Section], closing: Sequence[Section], footer: str) -> str:
    """The HTML of the whole report. Sections in `opening` and `closing` are about all runs, before and after them."""
    alone = len(chapters) == 1
    title = f"Report on {chapters[0].name}" if alone else f"Report on {', '.join(c.name for c in chapters)}"
    lead = chapters[0].lead if alone else f"{len(chapters)} normalizing flows (TarFlow), one after the other."
    contents = [_links(opening)] if opening else []
    for chapter in chapters:
        if not alone:
            contents.append(element("p", element("a", chapter.name, href=f"#{chapter.anchor}"), class_="chapter"))
        contents.append(_links(chapter.sections))
    if closing:
        contents.append(_links(closing))
    body: list[Markup] = [_section(section, 2) for section in opening]
    for chapter in chapters:
        sections = [_section(section, 2 if alone else 3) for section in chapter.sections]
        if alone:
            body += [cards(list(chapter.headline)), *sections]
        else:
            head = element("h2", chapter.name, id=chapter.anchor, class_="run")
            body.append(
                element(
                    "article", head, element("p", chapter.lead, class_="lead"), cards(list(chapter.headline)), *sections
                )
            )
    body += [_section(section, 2) for section in closing]
    document = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("meta", name="color-scheme", content="light dark"),
            Markup(MARK),
            element("title", title),
            element("link", rel="icon", href="data:,"),  # or a browser asks for favicon.ico
            element("style", Markup(style_sheet())),
        ),
        element(
            "body",
            element("a", "Skip to the report", href="#report", class_="skip"),
            element("header", element("h1", title), element("p", lead, class_="lead")),
            element("nav", *contents, aria_label="Contents"),
            element("main", *body, id="report"),
            element("footer", element("p", footer)),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{document}\n"


def _links(sections: Sequence[Section]) -> Markup:
    return element("ul", *(element("li", element("a", s.title, href=f"#{s.name}")) for s in sections))


def _section(section: Section, level: int) -> Markup:
    heading = element(f"h{level}", section.title)
    parts = [_part(part) for part in section.parts]
    return element("section", heading, *parts, id=section.name)


def _part(part: str | Figure | Drawing) -> Markup:
    if isinstance(part, Markup):
        return part
    if isinstance(part, str):
        return element("p", part)
    caption = element("figcaption", part.caption)
    if isinstance(part, Drawing):
        return element("figure", element("div", *part.drawings, class_="drawings"), caption)
    cells = []
    for strip in part.strips:
        cells += [element("div", strip.label, class_="label"), strip_image(strip)]
    return element("figure", element("div", *cells, class_="strips"), caption)
