"""The fuzz lane: every compiled part on inputs that nobody would write, under ASan and UBSan.

__main__.py  the run: the parts one after the other, progress, what becomes of a failing input
lane.py      one part's process, watched from outside
worker.py    inside that process: inputs made, run and judged
record.py    what both share: the count and the input that is running
mutate.py    new inputs from old ones
minimise.py  a failing input made smaller
draw.py      values out of an input, for parts that take calls rather than bytes
target.py    what a part's file in targets/ has to say
targets/     one file for each compiled module
"""
