"""Archives from strangers: what is refused before anything reads them."""

from __future__ import annotations

import warnings
import zipfile

import pytest

from graphopt.converters.importers._archive import check_archive, read_member
from graphopt.errors import InputError


@pytest.fixture
def archive(tmp_path):
    def write(members: dict[str, bytes], compression=zipfile.ZIP_STORED):
        path = tmp_path / "file.zip"
        with zipfile.ZipFile(path, "w", compression) as made:
            for name, content in members.items():
                made.writestr(name, content)
        return path

    return write


def test_an_ordinary_archive(archive):
    path = archive({"a": b"123", "b/c": b"4"})
    assert [member.filename for member in check_archive(path)] == ["a", "b/c"]
    assert read_member(path, "a", 3) == b"123"


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\\b", "C:a"])
def test_names_that_leave_the_archive(archive, name):
    with pytest.raises(InputError, match="would leave the archive"):
        check_archive(archive({name: b""}))


def test_bombs(archive, monkeypatch):
    with pytest.raises(InputError, match="unpacks to more than 100 times its size"):
        check_archive(archive({"a": bytes(50 << 20)}, zipfile.ZIP_DEFLATED))
    monkeypatch.setattr("graphopt.converters.importers._archive.ARCHIVE_MEMBERS", 2)
    with pytest.raises(InputError, match="has 3 members; 2 are the limit"):
        check_archive(archive({"a": b"", "b": b"", "c": b""}))


def test_two_members_of_one_name_or_place(tmp_path):
    path = tmp_path / "twice.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as made:
        warnings.simplefilter("ignore")
        made.writestr("a", b"1")
        made.writestr("a", b"2")
    with pytest.raises(InputError, match="two members have one name"):
        check_archive(path)
    with zipfile.ZipFile(tmp_path / "overlap.zip", "w") as made:
        made.writestr("a", b"1" * 100)
        made.writestr("b", b"2" * 100)
        made.infolist()[1].header_offset = made.infolist()[0].header_offset
    with pytest.raises(InputError, match="share bytes"):
        check_archive(tmp_path / "overlap.zip")


def test_damage(archive, tmp_path):
    path = archive({"a": b"1" * 1000})
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(InputError, match="damaged archive"):
        check_archive(path)
    path.write_bytes(whole.replace(b"1111", b"2111", 1))
    check_archive(path)
    with pytest.raises(InputError, match="damaged member 'a'"):
        read_member(path, "a", 1000)
    with pytest.raises(InputError, match="damaged archive"):
        check_archive(tmp_path / "no such file")


def test_members_are_read_up_to_a_limit(archive):
    path = archive({"a": b"123"})
    with pytest.raises(InputError, match="member 'a' has more than 2 bytes"):
        read_member(path, "a", 2)
    with pytest.raises(InputError, match="damaged member 'b'"):
        read_member(path, "b", 2)
