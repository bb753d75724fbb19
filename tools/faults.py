"""``make faults``: the numbered faults, the tests that bring each about, and the tests' outcomes.

python tools/faults.py             run every test with a fault's number, then print the table
python tools/faults.py --list      print the table without running tests
python tools/faults.py 1 2 8       run these numbers only
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

WANTED = [*range(1, 78), *range(85, 92)]
REASONS: dict[int, str] = {}  # number → why no test can bring it about here


class Faults:
    """A pytest plug-in that records the outcome of each test with a fault's number."""

    def __init__(self, only: set[int], run: bool) -> None:
        self.only, self.run = only, run
        self.numbers: dict[str, list[int]] = {}  # test → its faults
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            numbers = [int(m.args[0]) for m in item.iter_markers("fault")]
            if numbers:
                self.numbers[item.nodeid] = numbers
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
    """Return the table, and whether no test failed and every number has a test or a reason."""
    by_number: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for test, numbers in faults.numbers.items():
        for number in numbers:
            name = test.partition("[")[0]  # count the cases of a parametrised test as one test
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
