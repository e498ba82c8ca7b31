"""Regular expressions as a tree: what Python's `re` and RE2 have in common.

Literals, `.`, classes, `\\d \\w \\s` and their opposites, `^ $ \\b \\B`, groups, `|`, and the
repetitions `* + ? {m,n}`.  There are no back-references and no look-around: what has neither can be
matched in time that grows with the text alone (pattern.py).
"""

from __future__ import annotations

from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: A tree: ("one", test), ("at", kind), ("all", [...]), ("any", [...]), ("repeat", low, high, tree).
    Tree = tuple[object, ...]
    Test = Callable[[str], bool]

#: Characters of a pattern, and groups within groups.
MOST = 1000
DEEPEST = 50

#: The highest number in `{m,n}`.
MOST_REPEATS = 1000

_SPECIAL = frozenset("\\.[]()|*+?{}^$")
_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}


def is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


_CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "s": str.isspace,
    "w": is_word,
    "D": lambda char: not char.isdecimal(),
    "S": lambda char: not char.isspace(),
    "W": lambda char: not is_word(char),
}


class Literal:
    """The test for one character."""

    __slots__ = ("char", "fold")

    def __init__(self, char: str, fold: bool) -> None:
        self.fold = fold
        self.char = char.lower() if fold else char

    def __call__(self, char: str) -> bool:
        return (char.lower() if self.fold else char) == self.char


class Set:
    """The test for a class in brackets: single tests, and ranges of characters."""

    __slots__ = ("_fold", "_negated", "_ranges", "_tests")

    def __init__(self, negated: bool, fold: bool) -> None:
        self._negated = negated
        self._fold = fold
        self._tests: list[Test] = []
        self._ranges: list[tuple[str, str]] = []

    def add(self, test: Test) -> None:
        self._tests.append(test)

    def add_range(self, low: str, high: str) -> None:
        self._ranges.append((low, high))

    def _has(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self._ranges) or any(test(char) for test in self._tests)

    def __call__(self, char: str) -> bool:
        found = self._has(char) or (self._fold and (self._has(char.lower()) or self._has(char.upper())))
        return found is not self._negated


def _is_any(char: str) -> bool:
    return char != "\n"


class Parser:
    """One pattern.  `fold`: it began with (?i), so that case makes no difference."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MOST:
            raise BadRequestError(f"the pattern has {len(pattern)} characters: give {MOST} or less")
        self.fold = pattern.startswith("(?i)")
        self._text = pattern[4:] if self.fold else pattern
        self._at = 0
        self._depth = 0

    def parse(self) -> Tree:
        """BadRequestError: it is none, or has what is not known here."""
        tree = self._alternatives()
        if self._at < len(self._text):
            raise self._wrong("this ) closes nothing")
        return tree

    def _wrong(self, why: str) -> BadRequestError:
        return BadRequestError(f"the pattern is wrong at character {self._at + (4 if self.fold else 0)}: {why}")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += len(char)
        return char

    def _alternatives(self) -> Tree:
        found = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            found.append(self._sequence())
        return found[0] if len(found) == 1 else ("any", found)

    def _sequence(self) -> Tree:
        found: list[Tree] = []
        while (char := self._peek()) and char not in "|)":
            found.append(self._repeated(self._atom()))
        return ("all", found)

    def _repeated(self, tree: Tree) -> Tree:
        while (char := self._peek()) and char in "*+?{":
            low, high = 0, -1  # -1: without end
            if char == "{":
                bounds = self._bounds()
                if bounds is None:
                    break  # a brace that stands for itself: the next atom
                low, high = bounds
            else:
                self._at += 1
                low, high = {"*": (0, -1), "+": (1, -1), "?": (0, 1)}[char]
            if self._peek() == "?":
                self._at += 1  # as few as possible: whether it matches does not depend on that
            elif self._peek() == "+":
                raise self._wrong("possessive repetitions are not known here")
            if tree[0] == "at":
                raise self._wrong("nothing to repeat")
            tree = ("repeat", low, high, tree)
        return tree

    def _bounds(self) -> tuple[int, int] | None:
        end = self._text.find("}", self._at)
        first, comma, last = self._text[self._at + 1 : max(end, 0)].partition(",")
        if (
            end < 0
            or not (first or last)
            or not all(part.isascii() and part.isdigit() for part in (first, last) if part)
        ):
            return None
        if len(first) > 4 or len(last) > 4 or max(int(first or 0), int(last or 0)) > MOST_REPEATS:
            raise self._wrong(f"repetitions are at most {MOST_REPEATS}")
        low = int(first or 0)
        high = (int(last) if last else -1) if comma else low
        if -1 < high < low:
            raise self._wrong(f"{{{low},{high}}} is upside down")
        self._at = end + 1
        return low, high

    def _atom(self) -> Tree:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return ("one", self._set())
        if char == ".":
            return ("one", _is_any)
        if char == "^":
            return ("at", "begin")
        if char == "$":
            return ("at", "end")
        if char == "\\":
            return self._escape()
        if char in "*+?":
            self._at -= 1
            raise self._wrong("nothing to repeat")
        return ("one", Literal(char, self.fold))

    def _group(self) -> Tree:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._wrong(f"more than {DEEPEST} groups in one another")
        if self._peek() == "?":
            if self._text[self._at : self._at + 2] == "?:":
                self._at += 2
            elif self._text[self._at : self._at + 3] == "?P<":
                self._at = self._text.find(">", self._at) + 1 or len(self._text)
            else:
                raise self._wrong("of the groups with ? only (?:...) and (?P<name>...) are known here, and (?i) first")
        tree = self._alternatives()
        if self._next() != ")":
            raise self._wrong("a ) is missing")
        self._depth -= 1
        return tree

    def _escape(self) -> Tree:
        char = self._next()
        if char in _CLASSES:
            return ("one", _CLASSES[char])
        if char in ("b", "B"):
            return ("at", "word" if char == "b" else "no word")
        if char in ("A", "Z"):
            return ("at", "begin" if char == "A" else "end")
        return ("one", Literal(self._escaped(char), self.fold))

    def _escaped(self, char: str) -> str:
        if char in _CONTROL:
            return _CONTROL[char]
        if char == "x":
            digits = self._text[self._at : self._at + 2]
            self._at += 2
            try:
                return chr(int(digits, 16)) if len(digits) == 2 and digits.isalnum() else self._unknown(char)
            except ValueError:
                return self._unknown(char)
        if not char or char.isalnum():
            return self._unknown(char)
        return char

    def _unknown(self, char: str) -> str:
        raise self._wrong(f"\\{char} is not known here")

    def _set(self) -> Set:
        negated = self._peek() == "^"
        self._at += negated
        found = Set(negated, self.fold)
        first = True
        while True:
            char = self._next()
            if not char:
                raise self._wrong("a ] is missing")
            if char == "]" and not first:
                return found
            first = False
            if char == "\\":
                char = self._next()
                if char in _CLASSES:
                    found.add(_CLASSES[char])
                    continue
                char = "\b" if char == "b" else self._escaped(char)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                high = self._next()
                if high == "\\":
                    high = self._next()
                    if high in _CLASSES:
                        raise self._wrong("a class ends no range")
                    high = self._escaped(high)
                if high < char:
                    raise self._wrong(f"{char}-{high} is upside down")
                found.add_range(char, high)
            else:
                found.add_range(char, char)
