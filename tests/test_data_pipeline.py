"""Training batches: every pair once per epoch, the same whatever the threads, processes and restarts."""

import subprocess
import sys

import numpy as np
import pytest
from data_files import encode, NumberTexts, pair_members, picture, write_tar

from clipa_eqx.config import AugmentConfig, DataConfig, StageConfig
from clipa_eqx.data import Batch, BatchIterator, open_pairs, training_batches
from clipa_eqx.data.io._reading import ChangedFileError


COUNT = 26


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for shard in range(2):
        write_tar(folder / f"{shard}.tar", pair_members(COUNT // 2, first=shard * COUNT // 2))
    return folder


def batches(folder, steps, start=0, *, batch_size=8, seed=3, threads=2, process=(0, 1), **options):
    """The first batches from a step on."""
    data = DataConfig(train=str(folder), caption_tokens=5, threads=threads, **options)
    stage = StageConfig(batch_size=batch_size, image_size=16, augment=AugmentConfig(mirror=True))
    iterator = training_batches(
        open_pairs(data),
        NumberTexts(),
        data,
        stage,
        seed=seed,
        process_index=process[0],
        process_count=process[1],
        start_step=start,
    )
    try:
        return [next(iterator) for _ in range(steps)]
    finally:
        iterator.close()


def same(first, second):
    return len(first) == len(second) and all(
        (a.pixels == b.pixels).all() and (a.tokens == b.tokens).all() and a.faults == b.faults
        for a, b in zip(first, second, strict=True)
    )


def numbers(taken):
    return np.concatenate([batch.tokens[:, 0] for batch in taken])


def test_what_a_batch_holds(folder):
    (batch,) = batches(folder, 1)
    assert isinstance(batch, Batch)
    assert batch.pixels.shape == (8, 16, 16, 3)
    assert batch.tokens.shape == batch.word_class.shape == (8, 5)
    assert (batch.pixels.dtype, batch.tokens.dtype, batch.word_class.dtype) == (np.uint8, np.int32, np.uint8)
    assert (batch.word_class == batch.tokens % 4).all()
    assert batch.faults == ()


def test_each_pair_comes_once_in_each_epoch(folder):
    taken = numbers(batches(folder, 13))
    epochs = taken.reshape(4, COUNT)
    assert (np.sort(epochs, axis=1) == np.arange(COUNT)).all()
    assert (epochs[0] != epochs[1]).any()


def test_pixels_belong_to_the_caption(tmp_path):
    shades = [
        (f"{number}.png", encode(picture(0, 8, 8).point(lambda _, n=number: n * 9), "PNG")) for number in range(20)
    ]
    write_tar(tmp_path / "x.tar", shades + [(f"{number}.txt", f"caption {number}".encode()) for number in range(20)])
    for batch in batches(tmp_path, 5):
        assert (batch.pixels == batch.tokens[:, :1, None, None] * 9).all()


def test_neither_threads_nor_restarts_change_a_batch(folder):
    whole = batches(folder, 8, threads=1, prefetch=1)
    assert same(whole, batches(folder, 8, threads=5, prefetch=9))
    for start in range(8):
        assert same(whole[start : start + 3], batches(folder, len(whole[start : start + 3]), start))
    assert not same(whole, batches(folder, 8, seed=4))
    assert not same(whole[:2], whole[1:3])


def test_processes_share_the_global_batch(folder):
    whole = batches(folder, 4)
    for count in (2, 4):
        parts = [batches(folder, 4, process=(index, count)) for index in range(count)]
        for step, batch in enumerate(whole):
            assert (np.concatenate([part[step].pixels for part in parts]) == batch.pixels).all()
            assert (np.concatenate([part[step].tokens for part in parts]) == batch.tokens).all()


def test_crops_differ_between_epochs_and_not_with_the_batch_size(folder):
    def by_pair(taken):
        return [dict(zip(batch.tokens[:, 0].tolist(), batch.pixels, strict=True)) for batch in taken]

    first, second = by_pair(batches(folder, 2, batch_size=COUNT))
    assert sum((first[number] != second[number]).any() for number in range(COUNT)) > COUNT // 2
    for small in by_pair(batches(folder, 2, batch_size=13)):
        assert all((first[number] == pixels).all() for number, pixels in small.items())


def test_more_rows_than_pairs(tmp_path):
    write_tar(tmp_path / "x.tar", pair_members(3))
    (batch,) = batches(tmp_path, 1, batch_size=9)
    assert (np.sort(batch.tokens[:, 0].reshape(3, 3), axis=1) == np.arange(3)).all()


def test_broken_pictures_are_replaced_and_reported(tmp_path):
    broken = {3: b"", 11: b"<html>", 12: encode(picture(12))[:-300], 17: encode(picture(17, 200, 200))}
    members = [
        (name, broken[number] if name.endswith("jpg") and (number := int(name[:9])) in broken else content)
        for name, content in pair_members(30)
    ]
    write_tar(tmp_path / "x.tar", members)
    taken = batches(tmp_path, 3, batch_size=10, max_pixels=10_000)
    assert not set(broken) & set(numbers(taken).tolist())
    assert all(len(set(batch.tokens[:, 0].tolist())) == 10 for batch in taken), "no pair comes twice in a batch"
    faults = [fault for batch in taken for fault in batch.faults]
    assert {fault.key for fault in faults} == {f"x.tar/{number:09d}" for number in broken}
    reasons = {int(fault.key[-9:]): fault.reason for fault in faults}
    assert reasons[3] == "empty file"
    assert "known format" in reasons[11]
    assert "Premature end" in reasons[12]
    assert "40000" in reasons[17] or "200 x 200" in reasons[17]

    # Only the faulty rows differ from those of a whole set, and they are the same in every reading.
    write_tar(tmp_path / "whole" / "x.tar", pair_members(30))
    for batch, whole in zip(taken, batches(tmp_path / "whole", 3, batch_size=10), strict=True):
        rows = {fault.row for fault in batch.faults}
        assert set(np.flatnonzero(batch.tokens[:, 0] != whole.tokens[:, 0]).tolist()) == rows
    assert same(taken, batches(tmp_path, 3, batch_size=10, max_pixels=10_000, threads=4))
    parts = [batches(tmp_path, 1, 1, batch_size=10, max_pixels=10_000, process=(index, 2))[0] for index in range(2)]
    assert (np.concatenate([part.pixels for part in parts]) == taken[1].pixels).all()


def test_a_set_without_pictures_ends_with_an_error(tmp_path):
    write_tar(tmp_path / "x.tar", pair_members(5, image=b"no picture"))
    with pytest.raises(ValueError, match=r"64 pictures in a row .* x.tar/00000000\d: not a picture"):
        batches(tmp_path, 1)


def test_missing_files_are_faults_and_changed_data_is_an_error(tmp_path):
    names = [f"{number}.jpg" for number in range(6)]
    for number, name in enumerate(names[1:], start=1):
        (tmp_path / name).write_bytes(encode(picture(number)))
    rows = "".join(f"{name},caption {number}\n" for number, name in enumerate(names))
    (tmp_path / "list.csv").write_text("filepath,title\n" + rows)
    (batch,) = batches(tmp_path / "list.csv", 1, batch_size=6)
    (fault,) = batch.faults
    assert "0.jpg" in fault.reason
    assert 0 not in batch.tokens[:, 0]

    path = write_tar(tmp_path / "set" / "x.tar", pair_members(4))
    data = DataConfig(train=str(path))
    pairs = open_pairs(data)
    write_tar(path, pair_members(5))
    iterator = training_batches(pairs, NumberTexts(), data, StageConfig(batch_size=2), seed=0)
    with pytest.raises(ChangedFileError):
        next(iterator)
    iterator.close()


def test_an_iterator_can_be_closed(folder):
    data = DataConfig(train=str(folder))
    stage = StageConfig(batch_size=2, image_size=8)
    iterator = training_batches(open_pairs(data), NumberTexts(), data, stage, seed=0)
    assert isinstance(iterator, BatchIterator)
    assert iter(iterator) is iterator
    next(iterator)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_faults_of_the_call(folder):
    with pytest.raises(ValueError, match="batch_size=8 does not split over 3 processes"):
        batches(folder, 1, process=(0, 3))
    with pytest.raises(ValueError, match="process_index"):
        batches(folder, 1, process=(2, 2))
    with pytest.raises(ValueError, match="start_step"):
        batches(folder, 1, -1)


def test_reading_data_starts_no_accelerator_library():
    code = "import sys, clipa_eqx.data; sys.exit('jax' in sys.modules or 'grain' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
