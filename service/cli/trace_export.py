"""Many traces into a folder, part by part, so that a stopped export goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TransferSpeedColumn,
)

from moescope.service.cli.codes import ExitCode
from moescope.service.cli.terminal import failure, is_terminal, say, terminal
from moescope.service.cli.trace_client import trace_filter

if TYPE_CHECKING:
    from moescope.client import Client, ExportPart

NOTES: Final = "export.json"
"""Beside the parts: what was asked, which parts there are, and where the next one begins."""

Kind = Literal["ndjson", "arrow", "parquet"]


@dataclass(frozen=True, slots=True)
class Question:
    """What an export asks for; see ``Client.export_file``."""

    kind: Kind
    where: dict[str, Any]
    options: dict[str, Any]


@dataclass(slots=True)
class Notes:
    """What is known of an export that has begun.

    Attributes:
        question: what was asked.
        where: the same filter with times instead of ``-1h``: those of the first part.
        parts: file, requests, tokens and bytes of each part.
        cursor: where the next part begins; empty: with the newest request.
        done: there are no more.
    """

    question: dict[str, Any]
    where: dict[str, Any]
    parts: list[dict[str, Any]]
    cursor: str = ""
    done: bool = False

    @classmethod
    def of(cls, folder: Path, question: Question) -> Notes:
        """Those in a folder, or new ones; the command ends where they are of another question."""
        path = folder / NOTES
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(folder.iterdir()):
                    raise failure(f"{folder} is not empty and has no {NOTES}: give a new folder")
                return cls(asdict(question), _anchored(question.where), [])
            found = cls(**json.loads(path.read_text()))
        except OSError as error:
            raise failure(f"{folder} can't be used: {error.strerror}") from None
        except (ValueError, TypeError):
            raise failure(f"{path} can't be read: give a new folder") from None
        if found.question != asdict(question):
            raise failure(
                f"{folder} has an export of another question, {json.dumps(found.question)}: give the same "
                "options to go on with it, or a new folder"
            )
        return found

    def write(self, folder: Path) -> None:
        """Keep them: whole, or as they were."""
        unfinished = folder / f"{NOTES}.unfinished"
        try:
            unfinished.write_text(json.dumps(asdict(self), indent=1))
            unfinished.replace(folder / NOTES)
        except OSError as error:
            raise failure(f"{folder} can't be written: {error.strerror}") from None


def export_folder(client: Client, folder: Path, question: Question, page_size: int) -> None:
    """Write what is wanted, or what is left of it, and say how far it is.

    A part is one answer of the service. One that broke off is begun anew; those before it stay.
    """
    notes = Notes.of(folder, question)
    if notes.parts and not notes.done:
        say(f"{folder} has {len(notes.parts)} parts: going on")
    while not notes.done:
        name = f"part-{len(notes.parts) + 1:05}.{question.kind}"
        with _progress(name) as progress:
            part = _one(client, folder / name, question, notes, page_size, progress)
        if part.requests:
            counts = {"requests": part.requests, "tokens": part.tokens, "bytes": part.nbytes}
            notes.parts.append({"file": name, **counts})
            left_out = count_left_out(folder / name, question.kind)
            said = "" if not left_out else f", {left_out} of them left out or not whole: see left_out in it"
            say(f"{name}: {part.requests} requests, {part.tokens} tokens, {part.nbytes} bytes{said}")
        else:
            (folder / name).unlink()
        notes.cursor, notes.done = part.next_cursor, not part.next_cursor
        notes.write(folder)
    requests, tokens = (sum(part[name] for part in notes.parts) for name in ("requests", "tokens"))
    say(f"{folder}: {requests} requests, {tokens} tokens in {len(notes.parts)} parts; that is all")


def _one(
    client: Client,
    file: Path,
    question: Question,
    notes: Notes,
    page_size: int,
    progress: Callable[[int], None],
) -> ExportPart:
    try:
        return client.export_file(
            file,
            question.kind,
            trace_filter(**notes.where),
            cursor=notes.cursor,
            page_size=page_size,
            progress=progress,
            **question.options,
        )
    except KeyboardInterrupt:
        raise failure(f"stopped; the same command goes on with {file.name}", ExitCode.INTERRUPTED) from None


def _anchored(where: dict[str, Any]) -> dict[str, Any]:
    found = trace_filter(**where).anchored(time.time())
    return {**where, "start": found.start, "end": found.end}


def count_left_out(file: Path, kind: Kind) -> int | None:
    """How many requests a part lacks, wholly or to their end, as it says; None: pyarrow isn't there."""
    if kind == "ndjson":
        with file.open("rb") as lines:
            return sum(b'"left_out":' in line for line in lines)
    try:
        import pyarrow as pa  # an optional extra
        from pyarrow import parquet
    except ImportError:
        return None
    if kind == "parquet":
        found = parquet.ParquetFile(file)
        batches = found.iter_batches(columns=["left_out"])
        return sum(int(batch.num_rows - batch.column(0).null_count) for batch in batches)
    with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
        return sum(int(batch.num_rows - batch.column("left_out").null_count) for batch in stream)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int], None]]:
    """What shows how many bytes of a part have come, on a terminal; the sum of them isn't known before."""
    if not is_terminal(stderr=True):
        yield lambda _: None
        return
    console = terminal(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(20), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda nbytes: progress.update(task, completed=nbytes)
