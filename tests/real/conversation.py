"""What an agent of the workload says: one program's conversation, a function of its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Each of these is one token of the test model after a space, so words count tokens.
WORDS = (
    "self return import value index error config client server module string number object result "
    "buffer thread socket request response header stream parse write read open close start stop "
    "check test class method function default options arguments message process signal timeout "
    "queue event handler logger format encode decode bytes length offset position token line file "
    "path name type list dict tuple range print assert raise except finally yield lambda global "
    "break continue while with from None True False"
).split()


@dataclass(frozen=True)
class Shape:
    """Sizes in tokens, times in seconds; each pair is a uniform range."""

    steps: int
    system: int
    task: tuple[int, int]
    tool_output: tuple[int, int]
    reply: tuple[int, int]
    tool_time: tuple[float, float]


class Script:
    """One program's side of the conversation, the same for the same seed."""

    def __init__(self, shape: Shape, salt: str, seed: int, agent: int, program: int):
        self._shape = shape
        self._dice = random.Random(f"{seed}/{agent}/{program}")
        system = text(random.Random(f"{seed}/system"), shape.system)
        self.messages = [
            {"role": "system", "content": f"run {salt} {system}"},
            {"role": "user", "content": f"task {agent} {program} {text(self._dice, self._draw(shape.task))}"},
        ]

    def skip(self, steps: int) -> None:
        """Pretends that the first steps are over, with made-up replies."""
        for _ in range(steps):
            self.answer(text(self._dice, self.reply_tokens()))

    def reply_tokens(self) -> int:
        return self._draw(self._shape.reply)

    def tool_time(self) -> float:
        return self._dice.uniform(*self._shape.tool_time)

    def answer(self, reply: str) -> None:
        """The model's reply and what the tool then printed."""
        output = text(self._dice, self._draw(self._shape.tool_output))
        self.messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": f"output {output}"}]

    def _draw(self, bounds: tuple[int, int]) -> int:
        return self._dice.randint(*bounds)


def text(dice: random.Random, tokens: int) -> str:
    return " ".join(dice.choices(WORDS, k=tokens))
