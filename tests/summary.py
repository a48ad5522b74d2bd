"""summary.py REGISTERED CTEST.xml COLLECTED PYTEST.xml [PYTEST.xml ...]: add up reports of tests.

Prints every skip with its reason and the failures' names; the last line is `N passed, N failed[, N skipped]`. A test that
was registered but is in no report counts as failed: a runner that dies half-way must not look like success.
"""
import sys
import xml.etree.ElementTree as ElementTree


def cases_of(path):
    """Those of one JUnit report; none where there is no whole report."""
    try:
        return list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError) as problem:
        print(f"no report in {path}: {problem}")
        return []


def count(expected, *paths):
    """(passed, failed, skipped) of the reports together, given how many tests there should be."""
    cases = [case for path in paths for case in cases_of(path)]
    passed = failed = skipped = 0
    for case in cases:
        name = f"{case.get('classname')}.{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            failed += 1
            print(f"FAILED   {name}")
        elif skip is not None or case.get("status") in ("notrun", "disabled"):
            skipped += 1
            print(f"skipped  {name}: {skip.get('message') if skip is not None else case.get('status')}")
        else:
            passed += 1
    if len(cases) < expected or expected == 0:
        print(f"FAILED   {' '.join(paths)}: {len(cases)} tests ran, {expected} are registered")
        failed += max(expected - len(cases), 1)
    return passed, failed, skipped


def main():
    registered, ctest, collected, *pytest = sys.argv[1:]
    counts = [count(int(registered), ctest), count(int(collected), *pytest)]
    passed, failed, skipped = (sum(column) for column in zip(*counts))
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
