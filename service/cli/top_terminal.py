"""A terminal that shows a screen and gives keys, and is as it was before whatever ends the program."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from moescope.service.cli.codes import ExitCode
from moescope.service.cli.terminal import terminal

_SIGHUP_ENDS = 129


class Screen:
    """The whole terminal, from ``__enter__`` to ``__exit__``.

    Signals and other threads wake who waits for a key: a new size, Ctrl-Z, :meth:`wake`. SIGTERM and SIGHUP
    end the program by way of :class:`SystemExit`, so that ``__exit__`` is reached.
    """

    def __init__(self) -> None:
        self._console = terminal()
        self._stack = ExitStack()
        self._keys = sys.stdin.fileno()
        self.suspended = False
        """Whether the user wants to have the shell back for a while: Ctrl-Z."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            stack.callback(os.close, writing)
            for end in (reading, writing):
                os.set_blocking(end, False)
            self._wakes, self._wake = reading, writing
            before = termios.tcgetattr(self._keys)
            stack.callback(termios.tcsetattr, self._keys, termios.TCSAFLUSH, before)
            tty.setcbreak(self._keys)
            stack.enter_context(_handling(signal.SIGTERM, _ending(ExitCode.TERMINATED)))
            stack.enter_context(_handling(signal.SIGHUP, _ending(_SIGHUP_ENDS)))
            stack.enter_context(_handling(signal.SIGTSTP, self._suspend))
            stack.enter_context(_handling(signal.SIGWINCH, lambda *_: self.wake()))
            self._live = Live(Text(), console=self._console, screen=True, auto_refresh=False)
            stack.enter_context(self._live)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        found = os.get_terminal_size(sys.stdout.fileno())
        return max(found.columns, 20), max(found.lines, 4)

    def show(self, lines: Sequence[Text]) -> None:
        """Draw these lines in place of what was there."""
        self._console.size = self.size
        self._live.update(Group(*lines), refresh=True)

    def wait(self, seconds: float) -> str:
        """What was typed within these seconds; empty: nothing, or something else woke us.

        Raises:
            EOFError: the terminal is gone.
        """
        ready, _, _ = select.select([self._keys, self._wakes], [], [], seconds)
        if self._wakes in ready:
            os.read(self._wakes, 4096)
        if self._keys not in ready:
            return ""
        try:
            typed = os.read(self._keys, 4096)
        except OSError:
            typed = b""
        if not typed:
            raise EOFError
        return typed.decode(errors="ignore")

    def wake(self) -> None:
        """Let :meth:`wait` return; any thread may call it."""
        with suppress(BlockingIOError):  # it is awake already
            os.write(self._wake, b"\0")

    def _suspend(self, *_: object) -> None:
        self.suspended = True
        self.wake()


def stop_until_continued() -> None:
    """Give the terminal back to the shell until ``fg``."""
    os.kill(os.getpid(), signal.SIGTSTP)


def _ending(code: int) -> Callable[[int, FrameType | None], None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(int(code))

    return end


@contextmanager
def _handling(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
