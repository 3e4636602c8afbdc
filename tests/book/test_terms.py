"""Terms of the glossary are linked where a page first uses them, and nowhere else."""

import pytest
from book_pages import prose
from docutils import nodes
from docutils.core import publish_doctree

ADDRESSES = {word: f"#{word}" for word in ("band", "coarse band", "detail", "Dice", "arm", "case")}


def linked(text: str) -> list[tuple[str, str]]:
    from dcd_terms import link

    document = publish_doctree(text)
    before = document.astext()
    link(document, ADDRESSES)
    assert document.astext() == before
    return [(n.astext(), n["refuri"]) for n in document.findall(nodes.reference) if "refuri" in n]


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        (
            "The coarse band and one band, a band.",
            [("coarse band", "coarse band"), ("band", "band")],
        ),
        ("Arms differ; an arm.", [("Arms", "arm")]),
        ("Dice, never dice.", [("Dice", "Dice")]),
        ("To dice a sub-band, with harm, bandits and arming.", []),
        ("In any case.", []),  # an everyday word
        ("*Detail Consistent Distillation* aligns detail.", [("detail", "detail")]),
        ("Code: ``band``.\n\nThen *bands*.", [("bands", "band")]),
        ("Title of a band\n---------------\n\nA band.", [("band", "band")]),
    ],
)
def test_the_first_use_in_running_text_is_linked(text: str, uses: list[tuple[str, str]]) -> None:
    assert linked(text) == [(word, f"#{term}") for word, term in uses]


def test_a_use_that_is_a_link_already_stays_as_it_is() -> None:
    assert linked("A `band <a.html>`__.") == [("band", "a.html")]


def test_everyday_words_are_terms_of_the_glossary() -> None:
    from dcd_terms import EVERYDAY

    lines = prose("glossary").splitlines()
    assert {*lines} >= EVERYDAY
    assert {"Holm", "detectable", "arm", "relative weight", "val", "EMA"} <= {*lines}
