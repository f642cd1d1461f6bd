"""Names of other tools: every spelling finds its file, and no file is given to two names."""

from __future__ import annotations

import unicodedata

import pytest

from samtrain.data.prepare.names import pair_names


@pytest.mark.parametrize(
    ("given", "present"),
    [
        ("cam1\\p0.jpg", "cam1/p0.jpg"),
        ("bild%20%C3%A9%200.jpg", "bild é 0.jpg"),
        (unicodedata.normalize("NFC", "bäume.jpg"), unicodedata.normalize("NFD", "bäume.jpg")),
        (unicodedata.normalize("NFD", "bäume.jpg"), unicodedata.normalize("NFC", "bäume.jpg")),
        ("p0.jpg", "p0.JPG"),
        ("./p0.jpg", "p0.jpg"),
        ("p0.jpg", "x/y/p0.jpg"),
        ("../images/p0.jpg", "p0.jpg"),
        ("C:\\data\\images\\Day%201\\p0.jpg", "day 1/p0.JPG"),
        ("train2017/p0.jpg", "p0.jpg"),
        ("100%25.jpg", "100%25.jpg"),
    ],
)
def test_a_spelling_finds_its_file(given: str, present: str) -> None:
    others = ["other.jpg", "x/other.jpg", "q0.jpg"]
    assert pair_names([given], [present, *others]).found == {given: present}


@pytest.mark.parametrize(
    ("given", "present", "found", "why"),
    [
        # the names differ in a folder, so they may be two images
        (["day2/p0.png"], ["day1/p0.png"], {}, "nothing fits day2/p0.png, the nearest is day1/p0.png"),
        # two names mean one file, or one name two files
        (["day1/p0.png", "day2/p0.png"], ["p0.png"], {}, "share a file with"),
        (["p0.png"], ["day1/p0.png", "day2/p0.png"], {}, "p0.png may be any of day1/p0.png, day2/p0.png"),
        (["p0.png"], ["P0.png", "p0.PNG"], {}, "may be any of"),
        # the file has a name of its own already
        (["p0.png", "day2/p0.png"], ["p0.png"], {"p0.png": "p0.png"}, "share a file with p0.png"),
        (["p0.jpg"], ["p0.png"], {}, "the nearest is p0.png"),
        (["../secret/a.png", "/secret/a.png"], ["p0.png"], {}, "nothing fits"),
        (["", "."], ["p0.png"], {}, "nothing fits"),
    ],
)
def test_what_is_uncertain_gets_no_file_and_a_reason(given: list, present: list, found: dict, why: str) -> None:
    pairs = pair_names(given, present)
    assert pairs.found == found
    assert all(why in pairs.why_not(name) for name in given if name not in found)


def test_the_longest_common_end_decides() -> None:
    given = ["/data/images/a/p0.png", "/data/images/p0.png"]
    assert pair_names(given, ["a/p0.png", "p0.png", "p1.png"]).found == {given[0]: "a/p0.png", given[1]: "p0.png"}
