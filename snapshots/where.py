"""The language of `--where`: what a person types to choose entries, parsed with positions for its errors.

    label.class == "cat" and size < 1e6
    path like "train/%" and not (label.review.score >= 0.5 or label.source in ("web", "crawl"))
    label["given name"] glob "J*" and mtime >= "2024-05-01"

    or, and, not          also in capitals, or ||, && and !
    == != < <= > >=       `=` and `<>` are taken too
    in, not in            a list in () or []; or a value in a list that a label holds: "cat" in label.tags
    like, glob, regex     text patterns: SQL's % and _, the shell's * ? [..], RE2 (found anywhere); `not like` etc.
    is null, is not null  whether an entry has the label or field (None and missing are taken too)

Names are the fields of an entry (FIELDS) and `label` with a path of keys. A comparison is false for an entry that lacks
the label or holds another type there; so `label.class != "cat"` finds entries of other classes, not those without one.

A parser of our own rather than Python's: `label.class` is no Python, and errors can point at the exact character.
"""

import re
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import UsageError

FIELDS = ("path", "name", "folder", "ext", "size", "mtime", "etag", "version_id", "sha256", "key", "store")
NUMBER_FIELDS = ("size", "mtime")

Value: TypeAlias = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the entry, one of FIELDS."""

    name: str


@dataclass(frozen=True, slots=True)
class Label:
    """The place in the labels, as keys from the outside in."""

    place: tuple[str, ...]


Subject: TypeAlias = Field | Label


@dataclass(frozen=True, slots=True)
class Compare:
    subject: Subject
    operator: str
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    subject: Subject
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Holds:
    """A label that is a list holds the value."""

    subject: Label
    value: Value


@dataclass(frozen=True, slots=True)
class Matches:
    """`kind` is like, glob or regex."""

    subject: Subject
    kind: str
    pattern: str


@dataclass(frozen=True, slots=True)
class IsNull:
    subject: Subject


@dataclass(frozen=True, slots=True)
class Not:
    term: "Term"


@dataclass(frozen=True, slots=True)
class Both:
    left: "Term"
    right: "Term"


@dataclass(frozen=True, slots=True)
class Either:
    left: "Term"
    right: "Term"


Term: TypeAlias = Compare | OneOf | Holds | Matches | IsNull | Not | Both | Either

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[-+]?(?:\d+(?:_\d+)*)(?:\.\d*)?(?:[eE][-+]?\d+)?)
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<word>[^\W\d]\w*)
    | (?P<operator>==|!=|<>|<=|>=|&&|\|\||[=<>!()\[\],.])
    )""",
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = {"=": "==", "<>": "!=", "==": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_FLIPPED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_CONSTANTS = {"true": True, "false": False}
_NULLS = ("null", "none", "missing")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_MAX_CHARS, _MAX_DEPTH = 100_000, 100


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int

    @property
    def lowered(self) -> str:
        return self.text.lower() if self.kind in ("word", "operator") else ""


def parse_where(source: str) -> Term:
    """Raises UsageError that shows the place of the first fault."""
    return _Parser(source).parse()


def parse_subject(source: str) -> Subject:
    """A field or label alone (`folder`, `label.patient`). Raises UsageError."""
    return _Parser(source).parse_subject()


class _Parser:
    def __init__(self, source: str) -> None:
        if len(source) > _MAX_CHARS:
            raise UsageError(f"the condition is longer than {_MAX_CHARS} characters")
        self._source = source
        self._tokens = self._scan()
        self._at = 0
        self._depth = 0

    def parse(self) -> Term:
        term = self._either()
        if self._token.kind != "end":
            raise self._fault("expected `and`, `or` or the end")
        return term

    def parse_subject(self) -> Subject:
        subject = self._subject()
        if self._token.kind != "end":
            raise self._fault("expected the end")
        return subject

    def _scan(self) -> list[_Token]:
        tokens = []
        at = 0
        end = len(self._source.rstrip())
        while at < end:
            found = _TOKEN.match(self._source, at)
            if found is None or found.lastgroup is None:
                at += len(self._source[at:]) - len(self._source[at:].lstrip())
                what = "a text without its closing quote" if self._source[at] in "'\"" else "an unknown character"
                raise self._fault(what, at)
            kind = found.lastgroup
            tokens.append(_Token(kind, found[kind], found.start(kind)))
            at = found.end()
        tokens.append(_Token("end", "", end))
        return tokens

    @property
    def _token(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._token
        if token.kind != "end":
            self._at += 1
        return token

    def _taken(self, *texts: str) -> bool:
        if self._token.lowered in texts:
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._taken(text):
            raise self._fault(f"expected {text!r}")

    def _fault(self, message: str, position: int | None = None) -> UsageError:
        at = self._token.position if position is None else position
        # One line of the source with a mark below, however long or broken into lines the condition is.
        start = max(self._source.rfind("\n", 0, at) + 1, at - 60)
        line = self._source[start : at + 40].partition("\n")[0]
        mark = " " * (at - start) + "^"
        return UsageError(f"the condition has a fault at character {at + 1}: {message}\n    {line}\n    {mark}")

    def _either(self) -> Term:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._fault("nested too deeply")
        term = self._both()
        while self._taken("or", "||"):
            term = Either(term, self._both())
        self._depth -= 1
        return term

    def _both(self) -> Term:
        term = self._not()
        while self._taken("and", "&&"):
            term = Both(term, self._not())
        return term

    def _not(self) -> Term:
        negations = 0
        while self._taken("not", "!"):
            negations += 1
        term = self._comparison()
        return Not(term) if negations % 2 else term

    def _comparison(self) -> Term:
        if self._taken("("):
            inner = self._either()
            self._expect(")")
            return inner
        if self._token.kind in ("number", "text") or self._token.lowered in _CONSTANTS:
            return self._value_first()
        subject = self._subject()
        negated = self._taken("not")
        operator = self._token
        if operator.lowered in ("like", "glob", "regex"):
            self._take()
            term: Term = self._pattern(subject, operator.lowered)
        elif operator.lowered == "in":
            self._take()
            term = OneOf(subject, self._list(subject))
        elif operator.lowered == "is" and not negated:
            self._take()
            negated = self._taken("not")
            if not self._taken(*_NULLS):
                raise self._fault("expected `null`")
            term = IsNull(subject)
        elif operator.text in _OPERATORS and not negated:
            self._take()
            if self._token.lowered in _NULLS and operator.text in ("=", "==", "!=", "<>"):
                self._take()
                negated = operator.text in ("!=", "<>")
                term = IsNull(subject)
            else:
                term = self._compare(subject, _OPERATORS[operator.text])
        else:
            wanted = "`in`, `like`, `glob` or `regex`" if negated else "a comparison (==, <, in, like, is null, ...)"
            raise self._fault(f"expected {wanted}")
        return Not(term) if negated else term

    def _value_first(self) -> Term:
        position = self._token.position
        value = self._value()
        negated = self._taken("not")
        if self._taken("in"):
            subject = self._subject()
            if not isinstance(subject, Label):
                raise self._fault("only a label can be a list", position)
            term: Term = Holds(subject, value)
            return Not(term) if negated else term
        operator = self._token
        if negated or operator.text not in _OPERATORS:
            raise self._fault("expected a comparison or `in`")
        self._take()
        subject = self._subject()
        self._check_type(subject, value, position)
        return Compare(subject, _FLIPPED[_OPERATORS[operator.text]], value)

    def _subject(self) -> Subject:
        token = self._take()
        if token.kind != "word":
            raise self._fault("expected a field or a label", token.position)
        if token.text in ("label", "labels"):
            return self._label(token)
        if token.text not in FIELDS:
            raise self._fault(
                f"there is no field {token.text!r}; there are {', '.join(FIELDS)} and label.KEY", token.position
            )
        return Field(token.text)

    def _label(self, start: _Token) -> Label:
        keys: list[str] = []
        while True:
            if self._taken("."):
                token = self._take()
                if token.kind not in ("word", "number") or not re.fullmatch(r"\w+", token.text):
                    raise self._fault("expected a key of a label", token.position)
                keys.append(token.text)
            elif self._token.text == "[" and self._tokens[self._at + 1].kind == "text":
                self._take()
                keys.append(self._text(self._take()))
                self._expect("]")
            else:
                break
        if not keys:
            raise self._fault('say which label: label.KEY or label["KEY"]', start.position)
        return Label(tuple(keys))

    def _compare(self, subject: Subject, operator: str) -> Compare:
        position = self._token.position
        value = self._value()
        self._check_type(subject, value, position)
        if isinstance(value, bool) and operator not in ("==", "!="):
            raise self._fault("true and false can only be compared with == and !=", position)
        return Compare(subject, operator, value)

    def _list(self, subject: Subject) -> tuple[Value, ...]:
        closing = {"(": ")", "[": "]"}.get(self._token.text)
        if closing is None:
            raise self._fault("expected a list in parentheses")
        self._take()
        values: list[Value] = []
        while not self._taken(closing):
            position = self._token.position
            values.append(self._value())
            self._check_type(subject, values[-1], position)
            if not self._taken(",") and self._token.text != closing:
                raise self._fault(f"expected ',' or {closing!r}")
        return tuple(values)

    def _pattern(self, subject: Subject, kind: str) -> Matches:
        token = self._take()
        if token.kind != "text":
            raise self._fault(f"`{kind}` needs a pattern in quotes", token.position)
        if isinstance(subject, Field) and subject.name in NUMBER_FIELDS:
            raise self._fault(f"`{subject.name}` is a number, `{kind}` is for text", token.position)
        return Matches(subject, kind, self._text(token))

    def _check_type(self, subject: Subject, value: Value, position: int) -> None:
        if not isinstance(subject, Field):
            return
        if subject.name == "mtime" and isinstance(value, str):
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if (subject.name in NUMBER_FIELDS) != is_number:
            wanted = "a number" if subject.name in NUMBER_FIELDS else "a text in quotes"
            raise self._fault(f"`{subject.name}` is compared with {wanted}", position)

    def _value(self) -> Value:
        token = self._take()
        if token.kind == "number":
            text = token.text.replace("_", "")
            return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
        if token.kind == "text":
            return self._text(token)
        if token.lowered in _CONSTANTS:
            return _CONSTANTS[token.lowered]
        hint = "; put texts in quotes" if token.kind == "word" else ""
        raise self._fault(f"expected a value{hint}", token.position)

    def _text(self, token: _Token) -> str:
        # Unknown escapes keep their backslash: patterns of regex are full of them.
        return re.sub(
            r"\\(.)",
            lambda found: _ESCAPES.get(found[1]) or (found[1] if found[1] in "\\\"'" else found[0]),
            token.text[1:-1],
            flags=re.DOTALL,
        )
