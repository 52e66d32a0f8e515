"""How a step becomes fast: trace → fuse → plan → execute.

`trace` turns a model into a graph, `fuse` rewrites it by a table of rules, `plan` measures which form is fastest and still
right, and `execute` runs what was chosen.
"""

from convolt.compiler.plan import Plan, check_fusions, first_plan, make_plan
from convolt.compiler.rows import Row

__all__ = ["Plan", "Row", "check_fusions", "first_plan", "make_plan"]
