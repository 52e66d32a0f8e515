"""How a step becomes fast: trace → fuse → plan → execute.

`trace` turns a model into a graph, `fuse` rewrites it by a table of rules, `plan` measures which form is fastest and still
right, and `execute` runs what was chosen.
"""

from convolt.compiler.plan import Plan, Row, check_fusions, make_plan

__all__ = ["Plan", "Row", "check_fusions", "make_plan"]
