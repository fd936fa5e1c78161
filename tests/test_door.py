"""Words of people on the command line reach their key as they were typed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mim_lightning.door import _quoted


@pytest.mark.parametrize(
    "text", ["[red] mug", "a, b: c", "it's", '"two" words', "${oc.env:HOME}", "=SUM(A1)", "50% {off}"]
)
def test_words_of_people_are_taken_as_they_are(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([_quoted(f"text={text}", ["text"])])
    assert str(override.value()).replace("\\${", "${") == text


def test_lists_and_null_keep_their_meaning() -> None:
    parser = OverridesParser.create()
    (images, nothing) = parser.parse_overrides([_quoted(a, ["image"]) for a in ("image=[a.jpg,b.jpg]", "image=null")])
    assert (images.value(), nothing.value()) == (["a.jpg", "b.jpg"], None)
