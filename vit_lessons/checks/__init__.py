"""Checks of the reader's own code.

>>> from vit_lessons.checks import check
>>> result = check("patchify", my_patchify)

A check calls your code and the package's code on the same inputs and
compares the results. It never reads your source.
"""

from vit_lessons.checks.check import CheckResult, check, exercises

__all__ = ["CheckResult", "check", "exercises"]
