"""``make faults``: the numbered faults, the tests that bring each about, and what came of them.

python tools/faults.py             run every test that carries a fault's number, then the table
python tools/faults.py --list      the table without running anything
python tools/faults.py 1 2 8       these numbers alone
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

WANTED = [*range(1, 78), *range(85, 92)]
REASONS: dict[int, str] = {}  # number → why it cannot be brought about here


class Faults:
    """Keeps, for every number, the outcome of each test that carries it."""

    def __init__(self, only: set[int], run: bool) -> None:
        self.only, self.run = only, run
        self.numbers: dict[str, list[int]] = {}  # test → its faults
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            found = [int(m.args[0]) for m in item.iter_markers("fault")]
            if found:
                self.numbers[item.nodeid] = found
        items[:] = [
            i
            for i in items
            if self.run and i.nodeid in self.numbers and (not self.only or self.only & set(self.numbers[i.nodeid]))
        ]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        worst = {"passed": 0, "skipped": 1, "failed": 2}
        before = self.outcomes.get(report.nodeid, "passed")
        self.outcomes[report.nodeid] = max(before, report.outcome, key=worst.__getitem__)


def table(faults: Faults) -> tuple[str, bool]:
    """The table, and whether nothing failed and no number is without a test or a reason."""
    by_number: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for test, numbers in faults.numbers.items():
        for number in numbers:
            name = test.partition("[")[0]  # the cases of a parametrised test are one
            by_number[number][name].append(faults.outcomes.get(test, "not run"))
    lines, good = [], True
    for number in sorted(by_number):
        if faults.only and number not in faults.only:
            continue
        for name, outcomes in by_number[number].items():
            result = next((o for o in ("failed", "skipped", "not run") if o in outcomes), "passed")
            good &= result != "failed"
            cases = f" ({len(outcomes)} cases)" if len(outcomes) > 1 else ""
            lines.append(f"{number:>4}  {result:<8} {name}{cases}")
    lines += [f"{n:>4}  not here {why}" for n, why in REASONS.items() if n not in by_number]
    missing = [n for n in sorted(faults.only) or WANTED if n not in by_number | REASONS]
    lines += [f"no test: {', '.join(map(str, missing)) or 'none'}"]
    return "\n".join(lines), good and not missing


def main(arguments: list[str]) -> int:
    faults = Faults({int(a) for a in arguments if a.isdigit()}, "--list" not in arguments)
    tests = str(Path(__file__).parents[1] / "tests")
    options = ["-q", "--no-header", "-m", "not gpu", "-p", "no:cacheprovider", tests]
    code = pytest.main(options + ([] if faults.run else ["--collect-only", "-qq"]), plugins=[faults])
    text, good = table(faults)
    print(text)
    return 0 if good and code in (0, 5) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
