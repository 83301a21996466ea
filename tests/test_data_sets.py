"""Evaluation sets in CLIP_benchmark's tars and in folders."""

import pickle

import pytest
from data_files import write_tar

from clipa_eqx.data import open_classification, open_retrieval


NAMES = "tench\ngoldfish, Carassius\ngreat white shark\n"


def write_set(folder, labels, shards=1, names=NAMES):
    for shard in range(shards):
        members = []
        for number, label in list(enumerate(labels))[shard::shards]:
            members += [(f"s{number:04d}.cls", label), (f"s{number:04d}.webp", b"image %d" % number)]
        write_tar(folder / "test" / f"{shard}.tar", members)
    (folder / "classnames.txt").write_text(names)
    return folder


def test_classification_from_tars(tmp_path):
    write_set(tmp_path, [b"2", b"0\n", b"1", b"2"], shards=2)
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}\n")
    (tmp_path / "test" / "nshards.txt").write_text("2")
    found = open_classification(tmp_path)
    assert found.class_names == ("tench", "goldfish, Carassius", "great white shark")
    assert found.templates == ("a photo of a {c}.", "a {c}")
    assert [(found.key(index), found.read(index), found.label(index)) for index in range(len(found))] == [
        ("0.tar/s0000", b"image 0", 2),
        ("0.tar/s0002", b"image 2", 1),
        ("1.tar/s0001", b"image 1", 0),
        ("1.tar/s0003", b"image 3", 2),
    ]
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert copy.read(3) == b"image 3"


def test_classification_faults(tmp_path):
    for label, shown in ((b"3", "'3'"), (b"-1", "'-1'"), (b"one", "'one'"), ("²".encode(), "'²'")):
        with pytest.raises(ValueError, match=rf"0.tar/s0001 has the label {shown}; it must be one of 0 to 2"):
            open_classification(write_set(tmp_path / shown, [b"0", label]))
    (tmp_path / "'3'" / "test" / "nshards.txt").write_text("2")
    with pytest.raises(ValueError, match=r"holds 1 tars, but its nshards.txt says 2"):
        open_classification(tmp_path / "'3'")
    (tmp_path / "'3'" / "classnames.txt").unlink()
    with pytest.raises(ValueError, match="nshards"):
        open_classification(tmp_path / "'3'")
    (tmp_path / "'3'" / "test" / "nshards.txt").unlink()
    with pytest.raises(FileNotFoundError, match="needs a classnames.txt"):
        open_classification(tmp_path / "'3'")
    with pytest.raises(ValueError, match="blank line 2"):
        open_classification(write_set(tmp_path / "blank", [b"0"], names="a\n\nb"))
    (tmp_path / "'one'" / "zeroshot_classification_templates.txt").write_text("a {c}\na photo\n")
    with pytest.raises(ValueError, match=r"'a photo' .* has no \{c\}"):
        open_classification(tmp_path / "'one'")
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_classification(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither tars nor a folder of images"):
        open_classification(tmp_path / "empty")


def test_images_without_label_are_counted(tmp_path):
    write_set(tmp_path, [b"0"])
    write_tar(tmp_path / "test" / "1.tar", [("a.jpg", b"1"), ("b.cls", b"0"), ("b.png", b"2"), ("c.cls", b"1")])
    found = open_classification(tmp_path)
    assert found.skipped == {"image without label": 1, "label without image": 1}
    assert len(found) == 2


def test_classification_from_folders(tmp_path):
    for name in ("b dog/1.JPEG", "b dog/2.png", "a cat/deep/1.jpg", "a cat/notes.txt", ".hidden/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = open_classification(str(tmp_path))
    assert found.class_names == ("a cat", "b dog")
    assert found.templates == ()
    keys = ["a cat/deep/1.jpg", "b dog/1.JPEG", "b dog/2.png"]
    assert [found.key(index) for index in range(len(found))] == keys
    assert [found.read(index).decode() for index in range(3)] == keys
    assert found.labels.tolist() == [0, 1, 1]
    (tmp_path / "classnames.txt").write_text("feline\ncanine")
    assert open_classification(tmp_path).class_names == ("feline", "canine")
    (tmp_path / "classnames.txt").write_text("feline\n")
    with pytest.raises(ValueError, match=r"2 class folders, but its classnames.txt has 1 names"):
        open_classification(tmp_path)


def test_retrieval(tmp_path):
    members = [("1.jpg", b"1"), ("1.txt", "one\n two\r\n\nthr\u00e9e\n".encode()), ("2.jpg", b"2"), ("2.txt", b"four")]
    for place in (tmp_path / "a", tmp_path / "b" / "test"):
        write_tar(place / "0.tar", members)
    for path in (tmp_path / "a", str(tmp_path / "b")):
        found = open_retrieval(path)
        assert [found.captions(index) for index in range(len(found))] == [("one", "two", "thrée"), ("four",)]
        assert (found.read(1), found.key(1), found.skipped) == (b"2", "0.tar/2", {})
    (tmp_path / "c").mkdir()
    with pytest.raises(FileNotFoundError, match="no tar"):
        open_retrieval(tmp_path / "c")
