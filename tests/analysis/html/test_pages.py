"""Pages: self-contained, with the right images in the right frames, and no text taken for markup."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mim_lightning.analysis.comparison.comparison import Comparison, compare_groups
from mim_lightning.analysis.html.images import open_images
from mim_lightning.analysis.html.pages import write_comparison_page, write_report_page
from mim_lightning.analysis.html.size_figure import SizeFigure
from mim_lightning.analysis.query_history import TrackedRank
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.analysis.run_groups import RunGroup
from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings
from tests.analysis.evaluations import Row, config, write_evaluation
from tests.shop import write_shop

VOID = {"meta", "img", "line", "circle", "polyline", "br"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str = "", **wanted: str) -> list[Node]:
        found = [part for part in self.children if isinstance(part, Node)]
        own = [self] if tag in ("", self.tag) and all(self.get(k) == v for k, v in wanted.items()) else []
        return own + [node for part in found for node in part.all(tag, **wanted)]

    def get(self, name: str) -> str | None:
        return self.attributes.get({"class_": "class"}.get(name, name.replace("_", "-")))

    @property
    def text(self) -> str:
        return " ".join(" ".join(p.text if isinstance(p, Node) else p for p in self.children).split())


class Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("page", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop().tag == tag, "tags close in the order in which they were opened"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(path: Path) -> Node:
    tree = Tree()
    tree.feed(path.read_text(encoding="utf-8"))
    assert len(tree.open) == 1, "every tag is closed"
    return tree.open[0]


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    products, queries = write_shop(tmp_path / "shop", num_products=8)
    return prepare_shards(ManifestSource(str(products), str(queries)), tmp_path / "prepared", ShardSettings())


def rows(prepared: PreparedData, ranks: list[int], text: str = "red one") -> list[Row]:
    shards = prepared.queries("val")
    known = sorted((f["query_id"], f["asked_ids"][0]) for f in map(shards.read_facts, range(len(shards))))
    made = []
    for (query_id, product_id), rank in zip(known, ranks, strict=True):
        others = [f"{number:03d}" for number in range(8) if f"{number:03d}" != product_id]
        hits = [*others[: rank - 1], product_id, *others[rank - 1 :]] if rank else others
        made.append(Row(query_id, product_id, rank, {"kind": "plain"}, text, hits))
    return made


BEFORE, AFTER = [1, 1, 4, 3, 2, 2, 1, 1], [1, 3, 1, 3, 1, 2, 1, 0]


def compared(folder: Path, prepared: PreparedData, data_folder: str | None = None, text: str = "red one") -> Comparison:
    arms = []
    for name, ranks in (("2tower", BEFORE), ("4tower", AFTER)):
        where = data_folder or str(prepared.folder)
        record = write_evaluation(folder / name, rows(prepared, ranks, text), config(name), data_folder=where)
        arms.append(RunGroup(name, {0: (record,)}))
    return compare_groups(arms)


def test_the_table_says_what_was_found(tmp_path: Path, prepared: PreparedData) -> None:
    comparison = compared(tmp_path, prepared)
    write_comparison_page(comparison, tmp_path / "out" / "compare.html")
    page = read_page(tmp_path / "out" / "compare.html")
    (row,) = [node for node in page.all("tr") if node.get("data_metric")]
    cells = {cell.get("data_label"): cell.text for cell in row.all("td") if cell.get("data_label")}
    (found,) = comparison.overall
    assert cells["baseline"] == "0.500" and cells["group"] == "0.500" and cells["difference"] == "+0.000"
    assert cells["95 %"] == f"[{found.low:+.3f}, {found.high:+.3f}]"
    assert (cells["queries"], cells["products"]) == ("8", "50")
    segments = [node.get("data_label") for node in page.all("tr") if node.get("data_segment") == "kind"]
    assert segments == ["plain"]


def test_the_right_images_are_in_the_right_frames(tmp_path: Path, prepared: PreparedData) -> None:
    comparison = compared(tmp_path, prepared)
    write_comparison_page(comparison, tmp_path / "compare.html", num_hits=3)
    page = read_page(tmp_path / "compare.html")
    pictures = open_images(str(prepared.folder), "val")
    for kind, changes in (("gained", comparison.gained), ("lost", comparison.lost)):
        (group,) = page.all(data_kind=kind)
        cards = group.all("article")
        assert [card.get("data_query") for card in cards] == [change.query_id for change in changes]
        for card, change in zip(cards, changes, strict=True):
            first, truth = card.all("img")[:2]
            assert first.get("src") == pictures.query(change.query_id).uri
            assert truth.get("src") == pictures.product(change.unit_id).uri
            assert "“red one”" in card.text
            for label, answer in (("2tower", change.before), ("4tower", change.after)):
                (strip,) = card.all(data_group=label)
                hits = strip.all("li")
                assert [hit.get("data_product") for hit in hits] == answer.hit_ids[:3]
                shown = [hit.all("img")[0].get("src") for hit in hits]
                assert shown == [pictures.product(product).uri for product in answer.hit_ids[:3]]
                assert [hit.get("class_") == "hit right" for hit in hits] == answer.hit_is_relevant[:3]
                assert hits[0].text == f"{'✓' if answer.hit_is_relevant[0] else '✗'} 0.90"
    headlines = [node.text for node in page.all("p") if (node.get("class_") or "").startswith("headline")]
    assert headlines == ["rank 4 → 1", "rank 2 → 1", "rank 1 → -", "rank 1 → 3"]


def test_a_page_has_no_external_resources(tmp_path: Path, prepared: PreparedData) -> None:
    write_comparison_page(compared(tmp_path, prepared), tmp_path / "compare.html")
    page = read_page(tmp_path / "compare.html")
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    sources = {node.get(name) or "" for node in page.all() for name in ("src", "href", "data", "srcset")} - {""}
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "url(" not in page.all("style")[0].text and "@import" not in page.all("style")[0].text


def test_text_is_never_markup(tmp_path: Path, prepared: PreparedData) -> None:
    words = "<script>alert('1')</script>\" onload=\"x"
    write_comparison_page(compared(tmp_path, prepared, text=words), tmp_path / "compare.html")
    page = read_page(tmp_path / "compare.html")
    assert not page.all("script")
    assert f"“{words}”" in page.text


def test_without_the_shards_the_page_has_a_note(tmp_path: Path, prepared: PreparedData) -> None:
    comparison = compared(tmp_path, prepared, data_folder=str(tmp_path / "gone"))
    write_comparison_page(comparison, tmp_path / "compare.html")
    page = read_page(tmp_path / "compare.html")
    assert not page.all("img")
    assert [node.get("data_query") for node in page.all("article")] != []
    assert f"No images: {tmp_path / 'gone'}" in page.text


@pytest.fixture
def record(tmp_path: Path, prepared: PreparedData) -> EvaluationRecord:
    made = rows(prepared, AFTER)
    made = [replace(row, segments={"kind": "plain" if row.rank == 1 else "odd"}) for row in made]
    return write_evaluation(tmp_path / "run", made, config("4tower"), data_folder=str(prepared.folder))


def test_a_report_contains_numbers_segments_and_queries(tmp_path: Path, record: EvaluationRecord) -> None:
    write_report_page(record, tmp_path / "report.html", num_queries=4)
    page = read_page(tmp_path / "report.html")
    (row,) = [node for node in page.all("tr") if node.get("data_direction") == "image_to_image"]
    hit, mrr = [cell.text.split()[0] for cell in row.all("td")[1:3]]
    assert hit == f"{4 / 8:.3f}" and mrr == f"{sum(1 / rank for rank in AFTER if rank) / 8:.3f}"
    by_label = {node.get("data_label"): node.all("td")[1].text for node in page.all("tr") if node.get("data_segment")}
    assert by_label == {"odd": "0.000", "plain": "1.000"}  # four products each: no interval
    cards = page.all("article")
    ranks = dict(zip(record.directions["image_to_image"].query_ids, AFTER, strict=True))
    assert [ranks[card.get("data_query") or ""] == 1 for card in cards] == [True, True, False, False]
    assert not page.all("polyline")


def test_followed_queries_show_their_rank_over_epochs(tmp_path: Path, record: EvaluationRecord) -> None:
    followed = record.directions["image_to_image"].query_ids[3]
    history = {followed: [TrackedRank(*one) for one in ((20, 1, 3), (0, -1, 0), (10, 0, 5))]}
    write_report_page(record, tmp_path / "report.html", history={**history, "of another run": [TrackedRank(9, 0, 1)]})
    page = read_page(tmp_path / "report.html")
    (card,) = page.all("article")
    assert card.get("data_query") == followed
    (curve,) = card.all("polyline")
    (xs, ys) = zip(*[map(float, point.split(",")) for point in (curve.get("points") or "").split()], strict=True)
    assert list(xs) == sorted(xs) and len(xs) == 3
    assert ys[0] > ys[1] > ys[2]  # found later, then higher up
    assert card.all("title")[0].text == "-1: -, 0: 5, 1: 3"
    assert "rank - at epoch -1 → 3 at epoch 1" in card.text
    history[followed][0] = TrackedRank(20, 0, 3)  # a second validation of the same epoch
    write_report_page(record, tmp_path / "report.html", history=history)
    (card,) = read_page(tmp_path / "report.html").all("article")
    (curve,) = card.all("polyline")
    assert [point.split(",")[0] for point in (curve.get("points") or "").split()] == ["5.0", "110.0", "215.0"]
    assert card.all("title")[0].text == "0: -, 10: 5, 20: 3"
    assert "rank - at step 0, epoch -1 → 3 at step 20, epoch 0" in card.text


def test_a_report_of_another_direction(tmp_path: Path, record: EvaluationRecord) -> None:
    with pytest.raises(ValueError, match="no direction 'text_to_image'; it has image_to_image"):
        write_report_page(record, tmp_path / "report.html", direction="text_to_image")


def test_a_run_of_several_widths_has_their_figure(tmp_path: Path, record: EvaluationRecord) -> None:
    results = {"val/a/ndcg@10": 0.8, "val/b/ndcg@10": 0.7, "val/a/hit@1/width_8": 0.1}
    write_report_page(record, tmp_path / "report.html", results=results, full_width=32)
    assert "Small vectors" not in (tmp_path / "report.html").read_text()  # none at a width
    name = "val/a/ndcg@10/width_8"
    results |= {name: 0.5, f"{name}/low": 0.25, f"{name}/high": 0.6}
    results |= {"val/a/ndcg@10/low": 0.75, "val/a/ndcg@10/high": 1.0}
    write_report_page(record, tmp_path / "report.html", results=results, full_width=32)
    page = read_page(tmp_path / "report.html")
    found = [[cell.text.split()[0] for cell in row.all("td")] for row in page.all("tr") if row.get("data_width")]
    assert found == [["a", "8", "32", "0.500"], ["a", "32", "128", "0.800"]]
    figure = SizeFigure.of_widths(results, 32)
    assert figure is not None and not figure.has_costs and len(page.all("polyline")) == 1
    (line,) = figure.lines  # 0.25 is the bottom, 1 the top
    assert line.points == ((44.0, 172.0), (516.0, 95.2))
    assert line.band == ((44.0, 146.4), (516.0, 44.0), (516.0, 108.0), (44.0, 236.0))
