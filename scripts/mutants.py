#!/usr/bin/env python
"""How many small faults do the tests catch? Draws one-token mutations over all modules and runs each module's tests.

Mutations (an operator, a comparison, a constant, a condition) are drawn by a seed, in proportion to the size of the
modules. Each is applied to a copy of the repository; the tests of its module run there with -x. A mutation is caught
if a test fails. Where the tests exceed the time limit, the mutation may have caused an endless loop, or the machine is
slow: these are counted apart. Prints a line for each mutation, then the counts.
Usage: python scripts/mutants.py [--count 60] [--seed 0] [--timeout 60] [--repo .]
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*",
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.And: "or", ast.Or: "and",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One changed piece of source: 0-based offsets into the text of a module."""

    path: Path
    line: int
    start: int
    stop: int
    new: str


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All mutations of a module."""
    text = path.read_text(encoding="utf-8")
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def offset(lineno: int, column: int) -> int:
        line = text[starts[lineno - 1] : starts[lineno]]
        return starts[lineno - 1] + len(line.encode()[:column].decode())

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator[Mutant]:
        assert left.end_lineno is not None
        assert left.end_col_offset is not None
        start, stop = offset(left.end_lineno, left.end_col_offset), offset(right.lineno, right.col_offset)
        new = OPERATORS.get(type(operator))
        old = text[start:stop].strip(" ()\n")
        if new is not None and old and "#" not in old:
            at = text.index(old, start)
            yield Mutant(path, left.end_lineno, at, at + len(old), new)

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.BinOp):
            yield from between(node.left, node.right, node.op)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield from between(node.left, node.comparators[0], node.ops[0])
        elif isinstance(node, ast.BoolOp):
            yield from between(node.values[0], node.values[1], node.op)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.end_col_offset:
            new = repr(not node.value) if isinstance(node.value, bool) else repr(node.value + 1)
            start = offset(node.lineno, node.col_offset)
            yield Mutant(path, node.lineno, start, start + node.end_col_offset - node.col_offset, new)
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            test = node.test
            start, stop = offset(test.lineno, test.col_offset), offset(test.end_lineno or 0, test.end_col_offset or 0)
            yield Mutant(path, test.lineno, start, stop, f"not ({text[start:stop]})")


def tests_of(module: Path, repo: Path) -> list[str]:
    """The test files of a module, or the folder of its package's tests."""
    relative = module.relative_to(repo / "defectseg")
    folder = repo / "tests" / relative.parent
    while not folder.is_dir():
        folder = folder.parent
    own = sorted(folder.glob(f"test_*{relative.stem}*.py"))
    return [str(path) for path in own] or [str(folder)]


def verdict_on(mutant: Mutant, repo: Path, timeout_s: float) -> str:
    """Apply a mutation in `repo`, run the tests of its module, and take it back: caught, SURVIVED or timed out."""
    before = mutant.path.read_text(encoding="utf-8")
    mutant.path.write_text(before[: mutant.start] + mutant.new + before[mutant.stop :], encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(repo), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests_of(mutant.path, repo)]
    try:
        done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, timeout=timeout_s, check=False)
        return "caught" if done.returncode else "SURVIVED"
    except subprocess.TimeoutExpired:
        return "timed out"
    finally:
        mutant.path.write_text(before, encoding="utf-8")


def main() -> None:
    """Draw, apply and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--repo", type=Path, default=Path(__file__).resolve().parents[1])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder) / "repo"
        shutil.copytree(arguments.repo, repo, ignore=shutil.ignore_patterns(".git", ".venv", "*_cache", "__pycache__"))
        everything = [mutant for path in sorted((repo / "defectseg").rglob("*.py")) for mutant in mutants_of(path)]
        verdicts: Counter[str] = Counter()
        drawn = random.Random(arguments.seed).sample(everything, arguments.count)
        for mutant in drawn:
            verdict = verdict_on(mutant, repo, arguments.timeout)
            verdicts[verdict] += 1
            old = mutant.path.read_text(encoding="utf-8")[mutant.start : mutant.stop]
            where = f"{mutant.path.relative_to(repo)}:{mutant.line}"
            print(f"{verdict:9} {where}: {old!r} -> {mutant.new!r}", flush=True)
        print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))


if __name__ == "__main__":
    main()
