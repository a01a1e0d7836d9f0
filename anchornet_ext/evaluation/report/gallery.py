"""The section of a report that shows images and what was looked at."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from anchornet_ext.evaluation import page, sentences
from anchornet_ext.evaluation.figure_files import FigureFiles
from anchornet_ext.evaluation.gallery import Gallery, draw_card, draw_sheet

#: Pixels of a gallery card for one of the page's.
_CARD_SCALE = 4 / 3


def gallery_section(gallery: Gallery | None, files: FigureFiles) -> str:
    """Pictures by the step after which they left; "" without a gallery."""
    if gallery is None or not gallery.items:
        return ""
    said = sentences.about_gallery(gallery)
    parts = [
        page.paragraph(
            "Images chosen at random from those that left after each step, right and wrong ones in "
            "separate rows; so the pictures do not show how many of them are right. Each shows "
            "the whole picture with the patches that were looked at, then every look: what was "
            "seen, the class that led after it, and how sure the system was."
        ),
        page.paragraph(
            f"Thresholds: {sentences.thresholds_in_words(gallery.policy.thresholds)}.", "faint"
        ),
    ]
    for step, words in enumerate(said, start=1):
        parts += [page.heading(f"Left after step {step}"), page.paragraph(words)]
        cards: list[Image.Image] = []
        for correct in (True, False):
            items = gallery.at(step, correct=correct)
            drawn = [draw_card(item) for item in items]
            cards += drawn
            if items:
                parts.append(
                    page.cards(
                        [
                            (_jpeg(card), _css_size(card), item.in_words())
                            for card, item in zip(drawn, items, strict=True)
                        ]
                    )
                )
        if cards:
            files.sheet(f"gallery_exit_{step}", draw_sheet(cards, f"Step {step}: {words}"))
    if gallery.problems:
        parts.append(
            page.folded(
                "Images that were chosen but could not be shown", page.bullets(gallery.problems)
            )
        )
    return page.section("What was looked at", *parts)


def _jpeg(picture: Image.Image) -> bytes:
    # Photos as PNG would make the page several times as large.
    buffer = BytesIO()
    picture.save(buffer, format="JPEG", quality=88, optimize=True)
    return buffer.getvalue()


def _css_size(picture: Image.Image) -> tuple[int, int]:
    return round(picture.width / _CARD_SCALE), round(picture.height / _CARD_SCALE)
