"""Functions from the grade of a relevant product to its weight in the loss, for `loss.grades`.

A grade is the whole number in the manifest's column `grade`: 1 or more, the higher the more relevant. The loss is a
mean weighted by what these return, so their unit does not matter. A function of your own takes and returns a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

GradeFunction = Callable[[Tensor], Tensor]


def linear(grades: Tensor) -> Tensor:
    """Return the grades themselves (GCL with its scores that fall by rank; Zhu et al. 2024, arXiv 2404.08535)."""
    return grades


def exponential(grades: Tensor) -> Tensor:
    """Return 2^grade - 1, the gain of nDCG (Burges et al. 2005)."""
    return grades.exp2() - 1


def reciprocal_rank(grades: Tensor, max_grade: int) -> Tensor:
    """Return 1 / rank, where the products of `max_grade` have rank 1, those a grade below rank 2 (also of GCL)."""
    return 1 / (max_grade + 1 - grades)


GRADE_FUNCTIONS: dict[str, GradeFunction] = {"linear": linear, "exponential": exponential}
