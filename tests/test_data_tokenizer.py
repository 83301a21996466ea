"""Tokenizers: ids by hand on small vocabularies of the published formats, hostile text, reproducible training."""

import dataclasses
import gzip
import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import message, PIECES, spiece

from clipa_eqx.data.text._tokenizer import load_tokenizer, Tokenizer, train_tokenizer


VOCAB_LINE = "[PAD] [UNK] [CLS] [SEP] [MASK] a dog cafe run ##ning ##s , ! ' 中 skate ##board"
WORD_PIECES = VOCAB_LINE.split()
BYTE_SYMBOLS = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 512)]][:256]
MERGES = [("d", "o"), ("do", "g</w>"), ("r", "u"), ("ru", "n</w>"), ("'", "s</w>")]
HOSTILE = [
    "",
    " \n\t ",
    "\x00\x01",
    "a \ud83d\ude00 dog",
    "a\ud800",
    "\udfff" * 3,
    "a" * 100_000,
    "dog " * 25_000,
    "[SEP] [PAD]",
]


@pytest.fixture
def vocab_txt(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n", encoding="utf-8")
    return tmp_path / "vocab.txt"


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP vocabulary as Hugging Face stores it: byte symbols, word ends, merges, bounds."""
    folder = tmp_path / "clip"
    folder.mkdir()
    pieces = BYTE_SYMBOLS + [symbol + "</w>" for symbol in BYTE_SYMBOLS] + ["".join(pair) for pair in MERGES]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    return folder


def ids_of(tokenizer, text, length=12):
    ids = tokenizer.encode_batch([text], length)
    assert ids.dtype == np.int32
    assert ids.shape == (1, length)
    return ids[0].tolist()


def pieces_of(tokenizer, text, length=12):
    pieces = tokenizer.tokens()
    return [pieces[index] for index in ids_of(tokenizer, text, length) if index != tokenizer.pad_id]


def test_word_piece_ids_by_hand(vocab_txt):
    tokenizer = load_tokenizer(vocab_txt)
    assert (tokenizer.kind, tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == ("wordpiece", 0, 2, None)
    assert tokenizer.vocab_size == len(WORD_PIECES)
    assert tokenizer.tokens() == WORD_PIECES
    assert ids_of(tokenizer, "A dog, running!") == [2, 5, 6, 11, 8, 9, 12, 0, 0, 0, 0, 0]
    assert ids_of(tokenizer, "Cafés a中dog") == [2, 7, 10, 5, 14, 6, 0, 0, 0, 0, 0, 0]
    assert ids_of(tokenizer, "d\x00og\u200b \ufffd skateboard cat a'") == [2, 6, 15, 16, 1, 5, 13, 0, 0, 0, 0, 0]


def test_word_of_more_than_100_characters_is_unknown(vocab_txt):
    tokenizer = load_tokenizer(vocab_txt)
    assert ids_of(tokenizer, "dog" + "s" * 97, 128)[:99] == [2, 6, *[10] * 97]
    assert ids_of(tokenizer, "dog" + "s" * 98 + " a", 128)[:4] == [2, 1, 5, 0]


def test_word_piece_keeps_the_first_ids(vocab_txt):
    tokenizer = load_tokenizer(vocab_txt)
    assert ids_of(tokenizer, "a dog, running!", 4) == [2, 5, 6, 11]
    assert ids_of(tokenizer, "a dog", 1) == [2]


def test_settings_file_chooses_the_separator_form(vocab_txt):
    (vocab_txt.parent / "clipa_tokenizer.json").write_text('{"kind": "wordpiece_sep"}')
    for path in (vocab_txt, str(vocab_txt.parent)):
        tokenizer = load_tokenizer(path)
        assert (tokenizer.kind, tokenizer.start_id, tokenizer.end_id) == ("wordpiece_sep", 2, 3)
        assert ids_of(tokenizer, "a dog", 6) == [2, 5, 6, 3, 0, 0]
        assert ids_of(tokenizer, "a dog, run", 4) == [2, 5, 6, 3]
        assert ids_of(tokenizer, "a dog, run", 1) == [3]


def test_crlf_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(WORD_PIECES).encode() + b"\r\n")
    assert load_tokenizer(tmp_path).tokens() == WORD_PIECES


def test_byte_pair_ids_by_hand(clip_folder):
    tokenizer = load_tokenizer(clip_folder)
    assert (tokenizer.kind, tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == ("byte_pair", 0, 517, 518)
    assert tokenizer.vocab_size == 519
    letter = {character: BYTE_SYMBOLS.index(character) for character in "abcdefghijklmnopqrstuvwxyz0123456789!'<|>"}
    end = {character: index + 256 for character, index in letter.items()}
    assert letter["a"] == 64
    assert ids_of(tokenizer, "A  dog\n", 6) == [517, end["a"], 513, 518, 0, 0]
    assert ids_of(tokenizer, "Run's 42!!", 9) == [517, 515, 516, end["4"], end["2"], letter["!"], end["!"], 518, 0]
    # U+00E9 is the bytes C3 A9, whose symbols stand for themselves.
    assert pieces_of(tokenizer, "e\u0301") == ["<|startoftext|>", "Ã", "©</w>", "<|endoftext|>"]


def test_byte_pair_ends_a_cut_text_with_the_end_token(clip_folder):
    tokenizer = load_tokenizer(clip_folder)
    assert ids_of(tokenizer, "dog dog dog", 5) == [517, 513, 513, 513, 518]
    assert ids_of(tokenizer, "dog dog dog", 4) == [517, 513, 513, 518]
    assert ids_of(tokenizer, "dog dog dog", 2) == [517, 518]
    assert ids_of(tokenizer, "dog dog dog", 1) == [518]


def test_open_clip_merges_make_the_same_tokenizer(tmp_path, clip_folder):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(b'"bpe_simple_vocab_16e6.txt#version: 0.2\n' + merges_text().encode()))
    expected, text = load_tokenizer(clip_folder), "A dog's run, 42 — naïve!!"
    for source in (path, tmp_path):
        tokenizer = load_tokenizer(source)
        assert tokenizer.tokens() == expected.tokens()
        assert ids_of(tokenizer, text, 32) == ids_of(expected, text, 32)


def test_open_clip_file_uses_48894_merges(tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    pairs = [f"{a} {b}" for a in BYTE_SYMBOLS for b in BYTE_SYMBOLS][: 48894 + 100]
    path.write_bytes(gzip.compress(("header\n" + "\n".join(pairs) + "\n").encode(), 1))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id) == (49408, 49406, 49407)


def merges_text():
    return "".join(f"{a} {b}\n" for a, b in MERGES)


def test_save_and_load_give_an_equal_tokenizer(vocab_txt, clip_folder, tmp_path):
    separated = train_tokenizer(["a dog runs"] * 3, vocab_size=40, kind="wordpiece_sep")
    for number, tokenizer in enumerate([load_tokenizer(vocab_txt), load_tokenizer(clip_folder), separated]):
        tokenizer.save(tmp_path / str(number) / "deep")
        again = load_tokenizer(tmp_path / str(number) / "deep")
        for copy in (again, pickle.loads(pickle.dumps(again))):  # noqa: S301
            same = ("kind", "pad_id", "start_id", "end_id", "vocab_size")
            assert [getattr(copy, name) for name in same] == [getattr(tokenizer, name) for name in same]
            assert copy.tokens() == tokenizer.tokens()
            assert copy.special_ids() == tokenizer.special_ids()
            np.testing.assert_array_equal(copy.encode_batch(HOSTILE, 16), tokenizer.encode_batch(HOSTILE, 16))


def test_tokenizer_json_alone_decides_by_its_template(vocab_txt, tmp_path):
    (tmp_path / "clipa_tokenizer.json").write_text('{"kind": "wordpiece_sep"}')
    load_tokenizer(vocab_txt).save(tmp_path / "saved")
    (tmp_path / "saved" / "clipa_tokenizer.json").unlink()
    tokenizer = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    assert (tokenizer.kind, tokenizer.end_id) == ("wordpiece_sep", 3)
    (tmp_path / "saved" / "clipa_tokenizer.json").write_text('{"kind": "wordpiece", "pad_id": 1}')
    tokenizer = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    assert ids_of(tokenizer, "a dog", 4) == [2, 5, 6, 1]


def test_settings_can_add_the_separator_to_a_plain_template(vocab_txt, tmp_path):
    load_tokenizer(vocab_txt).save(tmp_path / "saved")
    (tmp_path / "saved" / "clipa_tokenizer.json").write_text('{"kind": "wordpiece_sep"}')
    assert ids_of(load_tokenizer(tmp_path / "saved"), "a dog", 5) == [2, 5, 6, 3, 0]


def test_hostile_text(vocab_txt, clip_folder):
    for path in (vocab_txt, clip_folder):
        tokenizer = load_tokenizer(path)
        start = time.perf_counter()
        ids = tokenizer.encode_batch(HOSTILE, 16)
        assert time.perf_counter() - start < 1
        assert ids.shape == (len(HOSTILE), 16)
        assert ids.min() >= 0
        assert ids.max() < tokenizer.vocab_size
    assert tokenizer.encode_batch([], 16).shape == (0, 16)
    word_piece = load_tokenizer(vocab_txt)
    assert ids_of(word_piece, "a\ud800", 4) == [2, 5, 0, 0]
    assert ids_of(word_piece, "a \ud83d\ude00 dog", 5) == ids_of(word_piece, "a \U0001f600 dog", 5) == [2, 5, 1, 6, 0]


def test_special_tokens_in_a_caption_are_only_text(vocab_txt, clip_folder):
    assert 3 not in ids_of(load_tokenizer(vocab_txt), "[SEP] a")
    ids = ids_of(load_tokenizer(clip_folder), "dog <|endoftext|> dog", 32)
    assert ids.count(518) == 1


def test_tokens_are_counted_before_the_cut(vocab_txt, clip_folder):
    captions = ["", "a dog, run", "skateboard " * 40]
    assert load_tokenizer(vocab_txt).count_tokens(captions).tolist() == [1, 5, 81]
    assert load_tokenizer(clip_folder).count_tokens(["", "a dog"]).tolist() == [2, 4]


def test_sentence_piece_ids_by_hand(tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece())
    tokenizer = load_tokenizer(tmp_path)
    # The likeliest split: scores are minus the ids. Of an unknown character only the blank before it is known.
    assert ids_of(tokenizer, "A dog's, DOGS 中", 10) == [3, 4, 7, 4, 7, 8, 2, 1, 1, 1]
    assert ids_of(tokenizer, "a dog", 4) == [3, 4, 1, 1]
    assert ids_of(tokenizer, "a a a a", 3) == [3, 3, 1]
    assert ids_of(tokenizer, "", 2) == [1, 1]
    assert tokenizer.count_tokens(["a dog", ""]).tolist() == [3, 1]
    assert tokenizer.special_ids() == [0, 1, 2]
    opened = dataclasses.replace(tokenizer, repair=True)
    assert ids_of(opened, "a_a &amp;", 4) == [3, 3, 1, 1]
    assert ids_of(tokenizer, "a_a", 4) != [3, 3, 1, 1]
    opened.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.repair, again.canonical, again.start_id) == (True, True, None)
    assert pickle.loads(pickle.dumps(opened)).repair  # noqa: S301
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "<pad>"}}')
    assert ids_of(load_tokenizer(tmp_path), "a", 3) == [3, 1, 0]


def test_broken_sentence_piece_files_are_named(tmp_path):
    path, whole = tmp_path / "spiece.model", spiece()

    def fails(data, match):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"spiece.model is no SentencePiece model .*{match}"):
            load_tokenizer(path)

    fails(b"", "0 pieces need one for the unknown")
    fails(spiece(PIECES[:1] + PIECES[2:]), "one that is </s>")
    fails(spiece([*PIECES, ("g", 1)]), "no two alike")
    fails(spiece(kind=2), "its tokenizer.json")
    fails(message((3, message((2, b"no table")))) + whole, "table of characters is damaged")
    fails(message((1, 7)) + whole, "a number where bytes belong")
    fails(message((1, message((1, b"\xff")))) + whole, "utf-8")
    fails(message((1, message((2, b"score")))) + whole, "no 32-bit number")
    fails(b"\x0b" + whole, "unknown form 3")
    fails(b"\xff" * 20, "longer than 64 bits")
    for cut in (1, 4, 9):
        fails(whole[:-cut], "the file ends within")


def test_broken_files_are_named(tmp_path, vocab_txt):
    def fails(name, content, match, error=ValueError):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for file, data in {name: content}.items() if isinstance(content, bytes) else content.items():
            (folder / file).write_bytes(data)
        with pytest.raises(error, match=match):
            load_tokenizer(folder)

    with pytest.raises(FileNotFoundError, match="No tokenizer at"):
        load_tokenizer(tmp_path / "nowhere")
    fails("readme", b"", "holds no tokenizer", FileNotFoundError)
    fails("vocab.json", b"{}", "holds no tokenizer", FileNotFoundError)
    fails("vocab.txt", b"\xff\xfe[PAD]", "not a UTF-8")
    fails("vocab.txt", b"[PAD]\n[UNK]\n", r"lack \[CLS\]")
    fails("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\na\na\n", "lists 'a' 2 times")
    fails("tokenizer.json", b"{", "not a file of the tokenizers package")
    fails("tokenizer.json", b"\xff", "not a file of the tokenizers package")
    fails("bpe_simple_vocab_16e6.txt.gz", b"plain text", "not a gzipped list")
    fails("bpe_simple_vocab_16e6.txt.gz", gzip.compress(b"header\na b c\n"), "line 2")
    fails("bpe_simple_vocab_16e6.txt.gz", gzip.compress(b"header\na b\n")[:-9], "not a gzipped list")
    fails("bpe_simple_vocab_16e6.txt.gz", gzip.compress(b"header\nab cd\n"), "outside the vocabulary")
    fails("", {"vocab.json": b"[]", "merges.txt": b""}, "must be a JSON object")
    fails("", {"vocab.json": b'{"a": "b"}', "merges.txt": b""}, "must be a JSON object")
    fails("", {"vocab.json": b'{"a": 0}', "merges.txt": b""}, "have neither pair")
    good = vocab_txt.read_bytes()
    fails("", {"vocab.txt": good, "clipa_tokenizer.json": b'{"kin": 1}'}, "has no field kin; it has: kind")
    fails("", {"vocab.txt": good, "clipa_tokenizer.json": b"{"}, "clipa_tokenizer.json is not a JSON file")
    fails("", {"vocab.txt": good, "clipa_tokenizer.json": b'{"kind": "bert"}'}, "must be one of wordpiece")
    fails("", {"vocab.txt": good, "clipa_tokenizer.json": b'{"kind": "byte_pair"}'}, "holds a wordpiece model")
    fails("", {"vocab.txt": good, "clipa_tokenizer.json": b'{"pad_id": "0"}'}, "pad_id must be int")
    fails("", {"vocab.txt": good, "clipa_tokenizer.json": b'{"pad_id": 99}'}, "outside a vocabulary of 17")


def test_model_of_another_kind_is_refused(tmp_path):
    from tokenizers import models, Tokenizer as FastTokenizer

    FastTokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="WordLevel model"):
        load_tokenizer(tmp_path)


def test_length_below_one_is_refused(vocab_txt):
    with pytest.raises(ValueError, match="length must be at least 1"):
        load_tokenizer(vocab_txt).encode_batch(["a"], 0)


TRAIN = """
from clipa_eqx.data.text._tokenizer import train_tokenizer
captions = [f"the {a}{b} sat on {c} mats" for a in "bcfhprstvw" for b in ("at", "ug", "éd") for c in "12345"]
print(*train_tokenizer(captions, vocab_size=90).tokens())
"""


def test_training_is_the_same_in_every_process():
    runs = [subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in runs}) == 1
    tokens = runs[0].stdout.split()
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert "the" in tokens
    assert len(tokens) == len(set(tokens)) <= 90


def test_trained_tokenizer_spells_its_captions():
    captions = ["A small red circle above a blue square."] * 4 + ["Two gréen squares\ud800"] * 4
    tokenizer = train_tokenizer(iter(captions), vocab_size=120)
    assert isinstance(tokenizer, Tokenizer)
    assert pieces_of(tokenizer, "green SQUARE") == ["[CLS]", "green", "square"]
    assert 1 not in tokenizer.encode_batch(captions, 16)
    assert ids_of(tokenizer, "Ω") == [2, 1, *[0] * 10]


def test_rare_characters_do_not_crowd_out_words():
    captions = ["dog dog dog"] * 50 + [chr(0x4E00 + number) for number in range(3000)]
    tokenizer = train_tokenizer(captions, vocab_size=64)
    assert tokenizer.vocab_size <= 64
    assert pieces_of(tokenizer, "dog") == ["[CLS]", "dog"]


def test_training_refuses_bad_arguments():
    with pytest.raises(ValueError, match="vocab_size must be at least 16, got 3"):
        train_tokenizer(["a"], vocab_size=3)
    empty = train_tokenizer([], vocab_size=16)
    assert empty.tokens() == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
