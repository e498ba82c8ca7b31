"""Mutation testing: does a small change of the code fail a test?

    .venv/bin/python -m tools.mutants [--files PART ...] [--seconds N] [--seed N]

Each mutant is one small change of one file: a comparison moved by one, a condition negated, a
statement removed.  It is made in a scratch copy of the checkout, and the tests nearest to that
file are run against it.  A mutant that no test notices has survived: either a test is missing,
or the change makes no difference, which a person has to judge.

    mutate.py     Python source -> its mutants, by the syntax tree
    compiled.py   mutants of the compiled modules, written by hand
    nearest.py    which tests are nearest to which file
    scratch.py    the copy of the checkout, and a run of tests in it
    __main__.py   the run: order, bounds, results, report

Results are kept in build/mutants/results.jsonl.  A run that was cut off goes on where it was, and
a mutant of a file that has not changed is not tried again; `--again` starts anew.
"""
