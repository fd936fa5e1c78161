"""Every image is inspected once, by any number of processes, and an interrupted scan resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mim_lightning.data.images.reader import ImageRef, TarMember
from mim_lightning.data.validation import image_scan as module
from mim_lightning.data.validation.image_scan import CHUNK_SIZE, scan_images
from tests.data.validation.broken import jpeg, one_coloured
from tests.data.validation.readers import die_at_seven, read

DATA = [jpeg(seed) for seed in range(5)]


def write_pictures(folder: Path, num: int) -> list[ImageRef]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        (folder / f"{number}.jpg").write_bytes(DATA[number % len(DATA)])
    return [folder / f"{number}.jpg" for number in range(num)]


class Reader:
    """Reads files, and remembers which."""

    def __init__(self, on_read: Callable[[int], None] = lambda number: None) -> None:
        self.seen: list[ImageRef] = []
        self.on_read = on_read

    def __call__(self, ref: ImageRef) -> bytes:
        self.on_read(len(self.seen))
        self.seen.append(ref)
        return Path(str(ref)).read_bytes()


def test_repeated_images_are_read_once(tmp_path: Path) -> None:
    refs = write_pictures(tmp_path, 3)
    reader = Reader()
    found = scan_images([*refs, *refs, refs[0]], reader, num_processes=1)
    assert reader.seen == refs and list(found) == refs


def test_cached_image_properties_are_not_read_again(tmp_path: Path) -> None:
    refs, facts_path = write_pictures(tmp_path, 3), tmp_path / "kept" / "facts.jsonl"
    first = scan_images(refs, Reader(), facts_path, 1)
    again = Reader()
    assert scan_images(refs, again, facts_path, 1) == first and again.seen == []


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    refs, facts_path = write_pictures(tmp_path, 3), tmp_path / "facts.jsonl"
    scan_images(refs, Reader(), facts_path, 1)
    (tmp_path / "1.jpg").write_bytes(one_coloured())
    reader = Reader()
    found = scan_images(refs, reader, facts_path, 1)
    assert reader.seen == [refs[1]] and found[refs[1]].uniform_fraction == 1.0
    stamp = (tmp_path / "2.jpg").stat()
    os.utime(tmp_path / "2.jpg", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    reader = Reader()
    scan_images(refs, reader, facts_path, 1)
    assert reader.seen == [refs[2]]


def test_unreadable_images_are_retried(tmp_path: Path) -> None:
    facts_path, gone = tmp_path / "facts.jsonl", tmp_path / "gone.jpg"
    assert scan_images([gone], Reader(), facts_path, 1)[gone].kind == "unreadable_image"
    gone.write_bytes(DATA[0])
    assert scan_images([gone], Reader(), facts_path, 1)[gone].kind == ""
    address = "https://shop.example/a.jpg"

    def fail(ref: ImageRef) -> bytes:
        raise OSError("status 503")

    assert scan_images([address], fail, facts_path, 1)[address].reason == "status 503"
    assert scan_images([address], lambda ref: DATA[0], facts_path, 1)[address].kind == ""
    assert scan_images([address], fail, facts_path, 1)[address].kind == ""  # known by its address


def test_members_of_a_tar_file_change_with_it(tmp_path: Path) -> None:
    tar, facts_path = tmp_path / "a.tar", tmp_path / "facts.jsonl"
    tar.write_bytes(b"1")
    members = [TarMember(str(tar), "a.jpg", 512, 9), TarMember(str(tar), "b.jpg", 1024, 9)]
    pictures = dict(zip(members, DATA, strict=False))
    first = scan_images(members, pictures.__getitem__, facts_path, 1)
    assert first[members[0]] != first[members[1]]
    assert scan_images(members, lambda ref: b"", facts_path, 1) == first
    tar.write_bytes(b"22")
    assert scan_images(members, lambda ref: b"", facts_path, 1)[members[0]].kind == "unreadable_image"


def test_a_partial_line_costs_one_image(tmp_path: Path) -> None:
    refs, facts_path = write_pictures(tmp_path, 4), tmp_path / "facts.jsonl"
    first = scan_images(refs, Reader(), facts_path, 1)
    text = facts_path.read_text().rstrip("\n")
    facts_path.write_text(text[:-20])
    reader = Reader()
    assert scan_images(refs, reader, facts_path, 1) == first and reader.seen == [refs[3]]
    again = Reader()
    assert scan_images(refs, again, facts_path, 1) == first and again.seen == []


def test_an_interrupted_image_scan_resumes(tmp_path: Path) -> None:
    refs, facts_path = write_pictures(tmp_path, CHUNK_SIZE + 10), tmp_path / "facts.jsonl"

    def interrupt(number: int) -> None:
        if number == CHUNK_SIZE + 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_images(refs, Reader(interrupt), facts_path, 1)
    reader = Reader()
    assert len(scan_images(refs, reader, facts_path, 1)) == len(refs)
    assert reader.seen == refs[CHUNK_SIZE:]


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_killed_image_scan_resumes(tmp_path: Path) -> None:
    refs, facts_path = write_pictures(tmp_path, 4 * CHUNK_SIZE), tmp_path / "facts.jsonl"
    words = f"{str(tmp_path)!r}, {len(refs)}, {CHUNK_SIZE + 9}"
    code = f"from tests.data.validation.readers import survey_and_stop; survey_and_stop({words})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    try:
        deadline = time.monotonic() + 300
        while count_lines(facts_path) < CHUNK_SIZE and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    num_known = sum(map(bool, facts_path.read_text().split("\n")))  # the last line may be half of one
    assert CHUNK_SIZE <= num_known < len(refs), "it was killed on the way"
    reader = Reader()
    found = scan_images(refs, reader, facts_path, 1)
    assert len(refs) - num_known <= len(reader.seen) <= len(refs) - num_known + 1
    assert reader.seen == refs[-len(reader.seen) :]
    assert found == scan_images(refs, Reader(), None, 1)


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    refs = write_pictures(tmp_path, 2 * CHUNK_SIZE + 3)
    assert scan_images(refs, read, None, 2) == scan_images(refs, Reader(), None, 1)


def test_a_killed_process_is_reported(tmp_path: Path) -> None:
    chunk = write_pictures(tmp_path, 9)
    with pytest.raises(
        ValueError,
        match=r"a process that checked images died near .*0\.jpg, .*; run the same command again.*num_processes=1",
    ) as error:
        list(module._inspect_in_processes([chunk], die_at_seven, 1))
    assert "\n" not in str(error.value)


def test_inspecting_images_needs_no_torch() -> None:
    """Each of the processes would load it."""
    code = (
        "import sys, mim_lightning.data.validation.image_scan; print({'torch', 'faiss', 'pyarrow'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
