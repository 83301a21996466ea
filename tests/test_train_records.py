"""Records survive kills and rewind to a checkpoint."""

from clipa_eqx.train import Records


def _row(stage, step):
    return {"stage": stage, "step": step, "loss": step / 3}


def test_rows_come_back_exactly(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    rows = [_row("few", step) for step in range(5)]
    records.append(rows[:2])
    records.append(rows[2:])
    assert records.read() == rows


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path)
    records.append([_row("few", 1), _row("few", 2)])
    path.write_bytes(path.read_bytes()[:-5])
    assert records.read() == [_row("few", 1)]


def test_rewind_keeps_finished_stages_and_steps_up_to_the_checkpoint(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    records.append([_row("few", 1), _row("few", 2), _row("all", 1), _row("all", 2), _row("all", 3)])
    records.rewind(["few"], "all", 2)
    assert records.read() == [_row("few", 1), _row("few", 2), _row("all", 1), _row("all", 2)]
    records.rewind([], "few", 1)
    assert records.read() == [_row("few", 1)]


def test_a_missing_file_is_an_empty_record(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    records.rewind([], "few", 0)
    assert records.read() == []
