"""Tars are read as Python's tarfile reads them, and damage ends the reading with what is whole."""

import io
import tarfile

import pytest
from data_files import write_tar

from clipa_eqx.data.formats._tar import scan_tar, TarError


FORMS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
MEMBERS = [
    ("a.jpg", b"x" * 700),
    ("a.txt", b""),
    ("folder/b.jpg", b"y" * 512),
    ("folder/b.txt", b"one"),
    ("long/" + "n" * 80 + "/" + "m" * 60 + ".txt", b"long name"),
    ("c.txt", b"after"),
]


def scan(content):
    """Names and bytes of the members found, and the reason why reading stopped early."""
    found = []
    try:
        for name, offset, size in scan_tar(io.BytesIO(content), len(content)):
            found.append((name.decode(), content[offset : offset + size]))
    except TarError as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize("form", FORMS)
def test_members_of_each_form(tmp_path, form):
    content = write_tar(tmp_path / "x.tar", MEMBERS, FORMS[form]).read_bytes()
    assert scan(content) == (MEMBERS, None)


@pytest.mark.parametrize("form", ["pax", "gnu"])
def test_very_long_and_foreign_names(tmp_path, form):
    members = [("d/" * 200 + "ÄÖ 中.jpg", b"1"), ("after.txt", b"2")]
    content = write_tar(tmp_path / "x.tar", members, FORMS[form]).read_bytes()
    assert scan(content) == (members, None)


def test_sizes_in_pax_headers_and_base_256():
    data = b"z" * 600
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("big.txt")
        info.size, info.pax_headers = len(data), {"size": "600", "comment": "a=b\n"}
        tar.addfile(info, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo("next.txt"))
    assert scan(file.getvalue()) == ([("big.txt", data), ("next.txt", b"")], None)

    content = bytearray(file.getvalue())
    start = content.index(b"big.txt")
    content[start + 124 : start + 136] = b"\x80" + (600).to_bytes(11, "big")
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    assert scan(bytes(content)) == ([("big.txt", data), ("next.txt", b"")], None)


def test_folders_and_links_are_passed_over():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "k" * 150
            # Some writers give a link the size of its target; no bytes follow all the same.
            info.size = 700 if kind == tarfile.LNKTYPE else 0
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("last.txt"))
    assert scan(file.getvalue()) == ([("last.txt", b"")], None)


def test_every_truncation_keeps_the_whole_members(tmp_path):
    content = write_tar(tmp_path / "x.tar", MEMBERS).read_bytes()
    end_of_last = content.index(b"after") + 512
    for length in range(1, end_of_last, 100):
        found, reason = scan(content[:length])
        assert found == MEMBERS[: len(found)]
        whole = sum(content.index(data) + len(data) <= length for _, data in MEMBERS if data)
        assert sum(bool(data) for _, data in found) == whole
        assert reason == ("truncated tar" if length >= 512 else "not a tar")


def test_damage_is_noticed(tmp_path):
    content = write_tar(tmp_path / "x.tar", MEMBERS, tarfile.USTAR_FORMAT).read_bytes()
    second = content.index(b"folder/b.jpg")
    for place in (second, second + 124, second + 130, second + 150):
        broken = bytearray(content)
        broken[place] ^= 0x01
        assert scan(bytes(broken)) == (MEMBERS[:2], "damaged tar header")


def test_other_files_are_no_tars():
    for content in (b"<html>" * 200, b"\x1f\x8b" + b"\1" * 600, b"short"):
        assert scan(content) == ([], "not a tar")
    assert scan(b"") == scan(bytes(10240)) == ([], "empty tar")
