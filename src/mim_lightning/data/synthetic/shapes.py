"""Shapes of the synthetic shop's items, two a category, as vector paths on a square of 100 by 100.

Every shape spans the square in its longer direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from mim_lightning.data.synthetic.vector_paths import Path, Point, blob, box, curve, line, mirror, oval, poly, rim


@dataclass(frozen=True)
class Shape:
    """A shape in layers, from back to front; `badge` is the center of the brand's mark."""

    body: tuple[Path, ...]  # has color and pattern
    badge: Point
    back: tuple[Path, ...] = ()  # darker parts behind the body: handles, straps, legs
    seams: tuple[Path, ...] = ()  # thin shadows on the body: folds, ribs
    front: tuple[Path, ...] = ()  # darker parts on the body: bands, collars, pockets
    light: tuple[Path, ...] = ()  # near-white parts on top: soles, laces, buttons, buckles


def both(*paths: Path) -> tuple[Path, ...]:
    """Return the paths and their mirror images."""
    return paths + tuple(mirror(path) for path in paths)


SQUARE_CUSHION = blob("5,5 5,5 50,10 95,5 95,5 90,50 95,95 95,95 50,90 5,95 5,95 10,50")
HEART_CUSHION = blob("50,24 50,24 63,10 82,8 96,24 94,46 76,72 50,95 50,95 24,72 6,46 4,24 18,8 37,10")

SHAPES: dict[str, dict[str, Shape]] = {
    "bag": {
        "tote": Shape(
            back=(curve(5, "30,40 32,14 50,4 68,14 70,40"),),
            body=(poly("10,34 90,34 97,97 3,97"),),
            front=(poly("10,32 90,32 91,41 9,41"),),
            badge=(50, 72),
        ),
        "round": Shape(
            back=(curve(4, "10,56 16,20 50,4 84,20 90,56"),),
            body=(oval(6, 28, 94, 98),),
            front=(curve(4.5, "8,55 50,47 92,55"),),
            light=(box(66, 46, 70, 60, 2),),
            badge=(50, 76),
        ),
    },
    "mug": {
        "tall": Shape(
            back=(curve(7.5, "66,28 90,32 90,66 66,70"),),
            body=(box(12, 8, 70, 97, 6),),
            front=(oval(12, 3, 70, 15),),
            badge=(41, 62),
        ),
        "wide": Shape(
            back=(curve(7, "70,36 92,34 94,56 66,66"), box(24, 80, 54, 88, 3)),
            body=(blob("2,24 2,24 5,54 19,79 39,84 59,79 73,54 76,24 76,24"),),
            front=(oval(2, 16, 76, 31),),
            badge=(39, 58),
        ),
    },
    "shirt": {
        "short-sleeved": Shape(
            body=(poly("37,7 43,14 50,16 57,14 63,7 78,13 99,38 83,50 75,41 76,96 24,96 25,41 17,50 1,38 22,13"),),
            seams=both(line(1.2, "25,42 27,20")),
            front=(curve(4, "37,7 43,14 50,16 57,14 63,7"),),
            badge=(50, 36),
        ),
        "long-sleeved": Shape(
            body=(poly("38,6 50,14 62,6 78,12 87,30 98,86 86,90 74,42 75,96 25,96 26,42 14,90 2,86 13,30 22,12"),),
            seams=both(line(1.2, "26,42 25,18")),
            front=(line(3, "50,15 50,95"), *both(line(6, "4,84 13,87"), poly("37,4 50,14 44,24"))),
            light=tuple(oval(48.5, y, 51.5, y + 3) for y in (28, 42, 56, 70, 84)),
            badge=(62, 36),
        ),
    },
    "shoe": {
        "low": Shape(
            body=(blob("4,30 4,30 19,38 34,27 40,20 40,20 60,40 86,48 96,60 96,72 96,72 4,72 4,72 7,50"),),
            seams=(curve(1.4, "66,70 70,56 78,46"),),
            front=(curve(4, "5,31 19,39 34,28 39,22"),),
            light=(
                box(2, 69, 98, 80, 5),
                line(2.6, "40,40 49,31"),
                line(2.6, "49,45 57,37"),
                line(2.6, "58,50 65,42"),
            ),
            badge=(24, 56),
        ),
        "high-top": Shape(
            body=(blob("12,6 12,6 48,5 48,5 54,40 74,54 92,64 96,84 96,84 10,84 10,84 14,50"),),
            seams=(curve(1.4, "66,82 70,68 80,58"),),
            front=(line(5, "13,8 47,7"),),
            light=(
                box(6, 81, 99, 93, 5),
                line(2.6, "36,20 49,18"),
                line(2.6, "36,30 49,28"),
                line(2.6, "36,40 49,38"),
                line(2.6, "42,54 55,45"),
                line(2.6, "53,60 64,52"),
            ),
            badge=(26, 54),
        ),
    },
    "lamp": {
        "table": Shape(
            back=(blob("46,50 54,50 55,60 63,74 54,88 46,88 37,74 45,60"), box(30, 88, 70, 97, 3)),
            body=(poly("31,4 69,4 93,56 7,56"),),
            front=(line(3.5, "8,55 92,55"), line(3, "32,5 68,5")),
            badge=(50, 34),
        ),
        "pendant": Shape(
            back=(line(3, "50,2 50,40"), box(43, 20, 57, 36, 2)),
            body=(blob("3,80 3,80 10,52 30,34 50,30 70,34 90,52 97,80 97,80"),),
            front=(line(4.5, "5,79 95,79"),),
            light=(blob("40,82 40,82 42,92 50,96 58,92 60,82 60,82"),),
            badge=(50, 56),
        ),
    },
    "hat": {
        "sun": Shape(
            body=(oval(2, 50, 98, 86), blob("23,66 23,66 26,34 40,17 60,17 74,34 77,66 77,66 50,72")),
            front=(blob("24,52 24,52 50,58 76,52 76,52 77,64 77,64 50,71 23,64 23,64"),),
            badge=(50, 36),
        ),
        "top": Shape(
            body=(oval(3, 68, 97, 92), poly("22,12 78,12 73,78 27,78")),
            front=(
                oval(22, 8, 78, 17),
                blob("26.2,62 26.2,62 50,66 73.8,62 73.8,62 73,76 73,76 50,81 27,76 27,76"),
            ),
            badge=(50, 40),
        ),
    },
    "umbrella": {
        "dome": Shape(
            back=(line(3.5, "50,3 50,86"), curve(4.5, "50,82 49,93 42,96 35,93 34,86")),
            body=(blob("2,58 2,58 8,34 26,14 50,7 74,14 92,34 98,58 98,58 82,52 66,58 66,58 50,52 34,58 34,58 18,52"),),
            seams=both(curve(1.6, "50,7 38,26 34,57")),
            badge=(50, 36),
        ),
        "folded": Shape(
            back=(line(5, "50,24 50,10"), line(3, "50,90 50,98"), curve(5.5, "50,14 49,6 42,3 35,6 34,14")),
            body=(blob("50,95 50,95 38,72 31,34 34,22 34,22 42,25 50,21 58,25 66,22 66,22 69,34 62,72"),),
            seams=(curve(1.4, "43,26 43,60 49,92"), curve(1.4, "58,26 58,60 51,92")),
            front=(line(5, "37,63 63,59"),),
            badge=(50, 42),
        ),
    },
    "bottle": {
        "sports": Shape(
            body=(box(26, 22, 74, 98, 9),),
            front=(box(33, 10, 67, 25, 4), line(3, "27,36 73,36")),
            light=(box(43, 2, 57, 12, 3),),
            badge=(50, 64),
        ),
        "wine": Shape(
            body=(blob("43,6 43,6 43,32 33,45 30,58 30,98 30,98 70,98 70,98 70,58 67,45 57,32 57,6 57,6"),),
            front=(box(41, 2, 59, 16, 2),),
            badge=(50, 70),
        ),
    },
    "vase": {
        "amphora": Shape(
            back=both(curve(5, "42,15 20,14 14,28 24,44")),
            body=(blob("40,8 40,8 41,26 24,38 16,54 27,78 40,92 60,92 73,78 84,54 76,38 59,26 60,8 60,8"),),
            front=(oval(34, 3, 66, 13), box(35, 91, 65, 98, 2)),
            badge=(50, 58),
        ),
        "trumpet": Shape(
            body=(blob("12,9 12,9 29,30 38,56 38,76 31,96 31,96 69,96 69,96 62,76 62,56 71,30 88,9 88,9"),),
            front=(oval(12, 3, 88, 15), line(3, "37.5,70 62.5,70")),
            badge=(50, 45),
        ),
    },
    "chair": {
        "dining": Shape(
            back=both(line(5.5, "17,68 13,96"), line(5, "31,66 31,86"), line(5.5, "30,30 28,60")),
            body=(box(21, 3, 79, 45, 7), box(10, 56, 90, 71, 5)),
            badge=(50, 24),
        ),
        "lounge": Shape(
            back=both(line(6, "14,84 12,95")),
            body=(box(15, 5, 85, 72, 16), box(16, 58, 84, 87, 3)),
            seams=(line(2.2, "23,57 77,57"), line(2.2, "23,71 77,71")),
            front=both(box(2, 40, 23, 88, 9)),
            badge=(50, 30),
        ),
    },
    "cushion": {
        "square": Shape(body=(SQUARE_CUSHION,), front=(rim(3.5, SQUARE_CUSHION),), badge=(50, 50)),
        "heart": Shape(body=(HEART_CUSHION,), front=(rim(3.5, HEART_CUSHION),), badge=(50, 48)),
    },
    "backpack": {
        "school": Shape(
            back=(curve(4.5, "38,14 40,4 60,4 62,14"), *both(box(3, 50, 20, 88, 7))),
            body=(blob("12,97 12,97 12,40 24,15 50,9 76,15 88,40 88,97 88,97"),),
            seams=(curve(1.6, "16,50 27,24 50,18 73,24 84,50"),),
            front=(box(22, 62, 78, 92, 7),),
            light=(line(2.2, "28,70 72,70"),),
            badge=(50, 42),
        ),
        "rolltop": Shape(
            body=(box(14, 16, 86, 97, 6),),
            front=(box(8, 4, 92, 20, 8), line(5.5, "30,14 30,95"), line(5.5, "70,14 70,95")),
            light=(box(25.5, 30, 34.5, 39, 1.5), box(65.5, 30, 74.5, 39, 1.5)),
            badge=(50, 62),
        ),
    },
}
