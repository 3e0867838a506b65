"""Every state that a kill or a power cut can leave of a folder, from a record of what was done.

What the disk is taken to promise is what POSIX does, and no more: bytes of a file are on it once
that file was flushed, names in a folder once that folder was. Until then each name and each file
stands, whatever became of the others, as it was when last flushed or as at any moment since; of
what was written to a file any part may be there, the rest missing, zero, or as it was before.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, islice, pairwise, product
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

ROOT, SECTOR, MANY = 0, 512, 128
CALLS = ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir")
Tree = dict[str, bytes | None]  # path -> bytes of a file, None of a folder


class Look(NamedTuple):
    """A folder as it is: (folder's number, name) -> number of what has it, number -> its bytes."""

    names: dict[tuple[int, str], int]
    bytes_: dict[int, bytes]


class Record:
    """Looks at a folder, and between them what was flushed and which marks were made, in order."""

    def __init__(self, folder: Path):
        self.folder, self.numbers, self.count = folder, {}, count(1)
        self.events: list[tuple[str, Any]] = []
        self.lock = Lock()  # Orbax has threads of its own
        self.look()

    def look(self) -> None:
        """What is new since the last, whoever has written it; a number is of one file for ever."""
        with self.lock:
            while not self._looked():
                pass

    def _looked(self) -> bool:
        """False if a name was gone before it was read, as another program or thread may do."""
        names, contents, seen = {}, {}, {}

        def visit(folder: Path, number: int) -> None:
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                inode = entry.inode()
                mine = seen[inode] = self.numbers.get(inode) or next(self.count)
                names[number, entry.name] = mine
                if entry.is_dir():
                    visit(Path(entry.path), mine)
                else:
                    contents[mine] = Path(entry.path).read_bytes()

        try:
            visit(self.folder, ROOT)
        except FileNotFoundError:
            if self.folder.exists():
                return False
            raise
        self.numbers = seen
        self.events.append(("look", Look(names, contents)))
        return True

    def flushed(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        number = ROOT if inode == self.folder.stat().st_ino else self.numbers.get(inode)
        if number is not None:
            self.events.append(("flush", number))

    def mark(self, what: Any) -> None:
        self.look()
        self.events.append(("mark", what))


@contextmanager
def recorded(folder: Path) -> Iterator[Record]:
    """A look before and behind every call that orders what is on the disk, but for writes.

    Those need no look: `torn` makes all that lies between two.
    """
    record, before = Record(folder), {name: getattr(os, name) for name in CALLS}

    def watched(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            record.look()
            found = before[name](*args, **kwargs)
            if name == "fsync":
                record.flushed(args[0])
            record.look()
            return found

        return call

    for name in CALLS:
        setattr(os, name, watched(name))
    try:
        yield record
    finally:
        for name, call in before.items():
            setattr(os, name, call)
    record.look()


def crash_states(record: Record, every: int = 1) -> Iterator[tuple[list[Any], Tree]]:
    """The marks made so far and the folder's files, every distinct pair of them once.

    Of the states in which a file is torn only one in `every`, of the others all.
    """
    names: dict[tuple[int, str], list[int | None]] = {}  # since flushed, the last is what is seen
    contents: dict[int, list[bytes]] = {}
    marks, known = [], set()
    for index, (kind, what) in enumerate(record.events):
        if kind == "mark":
            marks = [*marks, what]
        elif kind == "flush":
            if what in contents:
                contents[what] = contents[what][-1:]
            for name in names:
                if name[0] == what:
                    names[name] = names[name][-1:]
            left = {number for history in names.values() for number in history} | {ROOT}
            names = {name: history for name, history in names.items() if name[0] in left}
        else:
            new = not index
            for name in names.keys() | what.names.keys():
                now = what.names.get(name)
                new |= _then(names, name, now, None if index else now)
            for number, content in what.bytes_.items():
                new |= _then(contents, number, content, b"" if index else content)
            if not new:
                continue
        if kind == "flush":
            continue  # which only takes states away
        for tree in _trees(names, contents, every):
            key = (len(marks), hash(tuple(sorted(tree.items()))))
            if key not in known:
                known.add(key)
                yield marks, tree


def _then(histories: dict[Any, list[Any]], key: Any, now: Any, at_first: Any) -> bool:
    """Whether it is new."""
    history = histories.setdefault(key, [at_first])
    if history[-1] == now:
        return False
    history.append(now)
    return True


def _trees(
    names: Mapping[Any, list[Any]], contents: Mapping[int, list[bytes]], every: int
) -> Iterator[Tree]:
    now = {name: history[-1] for name, history in names.items()}
    few = prod(map(len, names.values())) <= MANY
    for chosen in choices(names):
        paths = dict(_paths(chosen, ROOT, ""))
        tree: Tree = {path: None for path, number in paths.items() if number not in contents}
        ends = {path: contents[n] for path, n in paths.items() if n in contents}
        if not few and chosen != now:
            yield from (tree | {path: h[end] for path, h in ends.items()} for end in (-1, 0))
            continue
        for some in choices(ends):
            yield tree | some
        for path, history in ends.items():  # one torn at a time
            for others in (-1, 0):
                rest = {p: history[others] for p, history in ends.items()}
                for a, b in pairwise(history):
                    for content in islice(torn(a, b), every // 2, None, every):
                        yield tree | rest | {path: content}


def _paths(
    names: Mapping[tuple[int, str], int | None], folder: int, path: str
) -> Iterator[tuple[str, int]]:
    for (where, name), number in names.items():
        if where == folder and number is not None:
            yield path + name, number
            yield from _paths(names, number, f"{path}{name}/")


def choices(histories: Mapping[Any, list[Any]]) -> Iterator[dict[Any, Any]]:
    """A value of each in every combination; of too many, one beside the first or last of others."""
    if prod(map(len, histories.values())) <= MANY:
        for values in product(*histories.values()):
            yield dict(zip(histories, values, strict=True))
        return
    for end in (-1, 0):
        rest = {key: history[end] for key, history in histories.items()}
        yield rest
        for key, history in histories.items():
            for value in history:
                yield rest | {key: value}


def torn(before: bytes, after: bytes) -> Iterator[bytes]:
    """What can be there of a file that was overwritten, or written anew, and not flushed."""
    zeros = bytes(len(after))
    for n in range(len(after) + 1):
        yield after[:n]
        yield after[:n] + zeros[n:]
        yield after[:n] + before[n:]
    size = max(SECTOR, -(-len(after) // 10))
    starts = range(0, len(after), size)
    for written in product((False, True), repeat=len(starts)):
        for rest in (zeros, before.ljust(len(after), b"\0")):
            yield b"".join(
                (after if w else rest)[i : i + size] for i, w in zip(starts, written, strict=True)
            )[: len(after)]


class Disk:
    """A folder that is set to one state after another."""

    def __init__(self, folder: Path):
        self.folder, self.tree = folder, {}

    def set(self, tree: Tree) -> None:
        """Whatever its user has made of the last."""
        found = self.read()
        for path in sorted(found, reverse=True):
            if path not in tree or (tree[path] is None) != (found[path] is None):
                here = self.folder / path
                shutil.rmtree(here) if found[path] is None else here.unlink(missing_ok=True)
        for path in sorted(tree):
            content, here = tree[path], self.folder / path
            if content is None:
                here.mkdir(exist_ok=True)
            elif content != found.get(path):
                here.write_bytes(content)

    def read(self) -> Tree:
        found: Tree = {}

        def visit(folder: Path, path: str) -> None:
            for entry in os.scandir(folder):
                name = path + entry.name
                if entry.is_dir():
                    found[name] = None
                    visit(Path(entry.path), f"{name}/")
                else:
                    found[name] = Path(entry.path).read_bytes()

        visit(self.folder, "")
        return found


def flipped_bits(file: Path) -> Iterator[int]:
    """The number of each bit of a file while it is flipped in it; whole again at the end."""
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        at = bit // 8
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit % 8]) + content[at + 1 :])
        yield bit
    file.write_bytes(content)


def told(record: Record) -> Iterator[str]:
    """What was done, in the words of strace: of calls that succeeded, and no writes."""
    paths: dict[int, str] = {ROOT: str(record.folder)}
    for kind, what in record.events:
        if kind == "flush":
            yield f"fsync {paths[what]}"
        elif kind == "look":
            found = {number: path for path, number in _paths(what.names, ROOT, f"{record.folder}/")}
            found |= {ROOT: str(record.folder)}
            for number in {**paths, **found}:
                was, is_ = paths.get(number), found.get(number)
                if was and is_ and was != is_:
                    yield f"rename {was} {is_}"
                elif was and not is_ and was not in found.values():
                    yield f"unlink {was}"
                elif is_ and not was and number not in what.bytes_:
                    yield f"mkdir {is_}"
            paths = found
