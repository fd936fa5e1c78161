"""The table of results, and the lines below it; no line wraps at 80 columns."""

import pytest

from mim_lightning.lit.results_table import describe_decline, print_run

RESULTS = {"val/image_to_image/hit@1": 0.5, "val/image_to_image/hit@10": 0.75, "initial/image_to_image/hit@1": 0.125}
COUNTS = {
    "num_products": 5,
    "counts/image_to_image/num_queries": 7,
    "counts/image_to_image/num_unanswerable": 1,
    "counts/text_to_text/num_queries": 8,
    "counts/text_to_text/num_unanswerable": 0,
}


def test_a_run_page_shows_directions_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    print_run("a run", RESULTS | COUNTS)
    out = capsys.readouterr().out
    assert "  7 to 8 queries against 5 products\n  0 to 1 queries left out: none of their products" in out
    (row,) = [line for line in out.splitlines() if "image_to_image" in line]
    assert row.split() == ["image_to_image", "7", "-", "0.125", "0.500", "-", "0.750"]


def test_kinds_of_queries_are_listed_below_their_direction(capsys: pytest.CaptureFixture[str]) -> None:
    words = {
        "segments/image_to_image/words=with/hit@1": 0.25,
        "segments/image_to_image/words=with/num_queries": 3,
        "segments/image_to_image/words=without/hit@1": 1.0,
        "segments/image_to_image/words=without/hit@1/low": 0.5,
        "segments/image_to_image/words=without/hit@1/high": 1.0,
        "segments/image_to_image/words=without/num_queries": 4,
        "counts/image_to_image/num_with_words": 3,
        "counts/image_to_image/num_in_gallery": 2,
        "counts/image_to_image/num_repeated": 1,
    }
    print_run("a run", RESULTS | COUNTS | words)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    place = next(i for i, line in enumerate(lines) if line[:1] == ["image_to_image"])
    assert lines[place][:3] == ["image_to_image", "7", "3"]
    assert lines[place + 1] == ["words=with", "3", "0.250", "-", "-"]
    assert lines[place + 2] == ["words=without", "4", "1.000", "0.50", "-", "1.00", "-"]
    text = " ".join(word for line in lines for word in line)
    assert "image_to_image: 2 queries left out, image is in the gallery" in text
    assert text.endswith("image_to_image: 1 query left out, same image and answer again")


def test_a_result_below_the_initial_models_is_reported() -> None:
    monitor = "val/image_to_image/hit@1"
    assert describe_decline(RESULTS, monitor) is None
    worse = describe_decline(RESULTS | {"initial/image_to_image/hit@1": 0.75}, monitor)
    assert worse is not None and f"{monitor} worse: 0.500, 0.750 before training" in worse
    assert describe_decline({monitor: 0.5}, monitor) is None  # no sanity pass, nothing to compare with
