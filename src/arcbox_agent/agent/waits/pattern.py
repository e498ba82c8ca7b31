"""Whether a line matches a regular expression, in time that grows with the line alone.

Python's `re` backtracks, with patterns that take years for a line of a hundred characters, and
holds the interpreter's lock meanwhile.  Here all ways through the pattern are followed at once
(a set of states), and sets that came up before are kept with what each character makes of them:
a DFA that is built as far as it is used.
"""

from __future__ import annotations

from arcbox_agent.agent.waits.syntax import Literal, Parser, is_word
from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.waits.syntax import Test, Tree

#: Steps that a pattern may unfold to, and sets of them that are kept.
MOST_STEPS = 4000
MOST_SETS = 500

#: Transitions that are kept, all sets together.
MOST_KEPT = 50_000

#: Characters after which it is looked whether anybody still wants to know.
PIECE = 4096

# What a character before or behind a place can be.
_EDGE, _WORD, _OTHER = range(3)


class GivenUp(Exception):
    """Nobody wants to know any more."""


class Places(dict[str, "Places"]):
    """A set of steps in which a match may be, and what was before; as a dict: the set behind each character."""

    __slots__ = ("before", "steps")

    def __init__(self, steps: frozenset[int], before: int) -> None:
        super().__init__()
        self.steps = steps
        self.before = before


class Pattern:
    """BadRequestError: `pattern` is none.  `given_up`: set by whoever waits no longer, from any thread."""

    def __init__(self, pattern: str) -> None:
        parser = Parser(pattern)
        tree = parser.parse()
        # A step: the test of a character and the step behind it, or the steps that follow without one,
        # or the edge at which the one that follows is reached.
        self._tests: list[Test | None] = []
        self._ways: list[tuple[int, ...]] = []
        self._edges: list[str] = []
        self._end = self._step(None, ())
        self._first = self._compile(tree, self._end)
        self._literal = "" if parser.fold else _required(tree)
        self._matched = Places(frozenset(), _EDGE)
        self.given_up = False
        self._forget()

    def _forget(self) -> None:
        self._sets: dict[tuple[frozenset[int], int], Places] = {}
        self._kept = 0
        self._start = self._places(frozenset({self._first}), _EDGE)

    # ------------------------------------------------------------------ building

    def _step(self, test: Test | None, ways: tuple[int, ...], edge: str = "") -> int:
        if len(self._tests) >= MOST_STEPS:
            raise BadRequestError(f"the pattern unfolds to more than {MOST_STEPS} steps: lower its {{m,n}}")
        self._tests.append(test)
        self._ways.append(ways)
        self._edges.append(edge)
        return len(self._tests) - 1

    def _compile(self, tree: Tree, then: int) -> int:
        """The first step of `tree`, behind which comes `then`."""
        kind = tree[0]
        if kind == "one":
            return self._step(tree[1], (then,))  # type: ignore[arg-type]
        if kind == "at":
            return self._step(None, (then,), tree[1])  # type: ignore[arg-type]
        if kind == "all":
            for each in reversed(tree[1]):  # type: ignore[call-overload]
                then = self._compile(each, then)
            return then
        if kind == "any":
            return self._step(None, tuple(self._compile(each, then) for each in tree[1]))  # type: ignore[attr-defined]
        _, low, high, inner = tree
        if high == -1:
            loop = self._step(None, ())
            self._ways[loop] = (self._compile(inner, loop), then)  # type: ignore[arg-type]
            then = loop
        else:
            after = then
            for _ in range(high - low):  # type: ignore[operator]
                then = self._step(None, (self._compile(inner, then), after))  # type: ignore[arg-type]
        for _ in range(low):  # type: ignore[call-overload]
            then = self._compile(inner, then)  # type: ignore[arg-type]
        return then

    # ------------------------------------------------------------------ matching

    def matches(self, line: str) -> bool:
        """Whether it matches anywhere in `line`, which is without its newline.  GivenUp."""
        if self._literal and self._literal not in line:
            return False
        places = self._start
        matched = self._matched
        for begin in range(0, len(line), PIECE):
            if self.given_up:
                raise GivenUp
            for char in line[begin : begin + PIECE]:
                places = places.get(char) or self._go(places, char)
                if places is matched:
                    return True
        return self._end in self._reached(places, _EDGE)

    def _go(self, places: Places, char: str) -> Places:
        if char in places:
            return places[char]  # an empty dict is false too
        if self.given_up:
            raise GivenUp
        kind = _WORD if is_word(char) else _OTHER
        reached = self._reached(places, kind)
        if self._end in reached:
            found = self._matched
        else:
            tests, ways = self._tests, self._ways
            behind = {ways[step][0] for step in reached if (test := tests[step]) is not None and test(char)}
            behind.add(self._first)  # a match may begin anywhere
            found = self._places(frozenset(behind), kind)
        if self._kept >= MOST_KEPT:
            self._forget()
        self._kept += 1
        places[char] = found
        return found

    def _places(self, steps: frozenset[int], before: int) -> Places:
        found = self._sets.get((steps, before))
        if found is None:
            if len(self._sets) >= MOST_SETS:
                self._sets.clear()
            found = self._sets[steps, before] = Places(steps, before)
        return found

    def _reached(self, places: Places, behind: int) -> set[int]:
        """The steps of `places`, and those that follow without a character; `behind`: what comes next."""
        before = places.before
        todo = list(places.steps)
        found = set(todo)
        while todo:
            step = todo.pop()
            if self._tests[step] is not None:
                continue
            edge = self._edges[step]
            if edge and not _is_edge(edge, before, behind):
                continue
            for way in self._ways[step]:
                if way not in found:
                    found.add(way)
                    todo.append(way)
        return found


def _is_edge(edge: str, before: int, behind: int) -> bool:
    if edge == "begin":
        return before == _EDGE
    if edge == "end":
        return behind == _EDGE
    return ((before == _WORD) != (behind == _WORD)) == (edge == "word")


def _required(tree: Tree) -> str:
    """The longest text that every match has in it, as far as that is plain to see."""
    if tree[0] != "all":
        return ""
    texts = [""]
    for each in tree[1]:  # type: ignore[attr-defined]
        if each[0] == "one" and type(each[1]) is Literal:
            texts[-1] += each[1].char
        elif each[0] != "at":
            texts.append("")
    return max(texts, key=len)
