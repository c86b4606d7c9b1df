"""Archives of a pod that does harm: `espalier checkpoint export` writes its output or nothing."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from tests.cli.test_checkpoint_export import export

from espalier.cli.archive import MOST_BYTES

HONEST = b"{}"


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> bytes:
    """The header of an entry, as GNU's tar writes it; its data would follow."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.size, header.mode = kind, link, size, 0o4777
    return header.tobuf(tarfile.GNU_FORMAT)


def pax(**fields: str) -> bytes:
    """An entry with such fields in a header of its own."""
    header = tarfile.TarInfo("plain")
    header.pax_headers = fields
    return header.tobuf(tarfile.PAX_FORMAT)


def file(name: str, data: bytes = HONEST) -> bytes:
    return entry(name, size=len(data)) + data.ljust(tarfile.BLOCKSIZE, b"\0")


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
HOSTILE = {
    "a name above the output": file("../stolen"),
    "one below a folder that is not there": file("a/../../stolen"),
    "an absolute name": file("/stolen-by-an-archive"),
    "a folder above the output": entry("../stolen", tarfile.DIRTYPE),
    "a link out": entry("out", LINK, "..") + file("out/stolen"),
    "a link to the outside": entry("secret", LINK, "/etc/passwd"),
    "a link within": file("a") + entry("b", LINK, "a"),
    "a hard link to the outside": entry("mine", HARD, "../mine") + file("mine"),
    "a hard link within": file("a") + entry("b", HARD, "a"),
    "a device": entry("null", tarfile.CHRTYPE),
    "a disk": entry("sda", tarfile.BLKTYPE),
    "a pipe": entry("waits", tarfile.FIFOTYPE),
    "a sparse file of a terabyte": entry("sparse", tarfile.GNUTYPE_SPARSE, size=2**40),
    "a file beyond every size": entry("large", size=2**62),
    "a file of a negative size": entry("small", size=-(2**62)),
    "files that are too large together": file("a") + entry("b", size=MOST_BYTES - 1),
    "a name that is longer than memory": entry("@", tarfile.GNUTYPE_LONGNAME, size=2**62),
    "names of names of names": entry("@", tarfile.GNUTYPE_LONGNAME, size=1) * 5_000,
    "a name that its fields change": pax(path="../stolen"),
    "fields that are longer than memory": entry("@", tarfile.XHDTYPE, size=2**62),
    "fields for all entries": entry("@", tarfile.XGLTYPE, size=2**62),
    "a million entries": entry("a") * 1_000_000,
    "a file that is also a folder": file("a") + file("a/b"),
    "a file in place of the output": file("."),
    "a text that moves the cursor": entry("\x1b[2J", LINK, "a"),
    "no archive": b"\x1f\x8b" + b"{}" * 10_000,
    "none at all": b"",
    "one that ends early": entry("a", size=10**9),
}

# Of these nothing more would be read.
CUT = {"none at all", "one that ends early"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_in_a_sentence_and_leaves_nothing(
    pod: Path, tmp_path: Path, name: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine").write_text("untouched")
    (pod / "archive").write_bytes(HOSTILE[name] + (b"" if name in CUT else file("honest.json")))
    code, told = export("arith-000001", "--output", home / "out")
    assert (code, told.startswith("error: ")) == (1, True), told
    assert [path.name for path in home.iterdir()] == ["mine"]
    assert (home / "mine").read_text() == "untouched"
    assert not Path("/stolen-by-an-archive").exists()
