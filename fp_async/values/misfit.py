"""What is wrong with a value: the place inside it, and what was expected there."""

from __future__ import annotations

from typing import Any

from fp_async.values.annotations import qualified, shown, type_name


class MisfitError(Exception):
    """A value that does not fit its annotation, or a part of it, at `path`, which does not."""

    def __init__(
        self,
        kind: Any,
        value: Any,
        problem: str = "",
        path: tuple[str | int, ...] = (),
    ) -> None:
        self.kind = kind
        self.value = value
        self.problem = problem
        self.path = path
        super().__init__(kind, value, problem, path)

    def within(self, step: str | int) -> MisfitError:
        """The same, told of what contains the value."""
        return MisfitError(self.kind, self.value, self.problem, (step, *self.path))

    def told(self, name: str, *, brief: bool = False) -> str:
        """`name.field[3]: expected int, got str 'x'`; with `brief` a text is only quoted."""
        place = name + "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in self.path)
        return f"{place}: {self.problem or self.expected(brief=brief)}"

    def expected(self, *, brief: bool = False) -> str:
        """`expected int, got str 'x'`; classes of the same name with their modules."""
        wanted, value = type_name(self.kind), self.value
        got = repr(str(value)) if brief and isinstance(value, str) else shown(value)
        if isinstance(value, str) and brief and len(got) > 60:
            got = f"{got[:57]}..."
        if wanted == type(value).__name__ and isinstance(self.kind, type):
            wanted, got = qualified(self.kind), qualified(type(value))
        return f"expected {wanted}, got {got}"
