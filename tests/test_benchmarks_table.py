"""The table of the README says what the results say."""

import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "table.py"


def test_the_readme_shows_the_results():
    subprocess.run([sys.executable, SCRIPT, "--check"], check=True)


def test_another_figure_is_found(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "table.py").write_text(SCRIPT.read_text())
    (tmp_path / "benchmarks" / "results").symlink_to(ROOT / "benchmarks" / "results")
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text().replace(" times |", " times more |"))
    done = subprocess.run(
        [sys.executable, tmp_path / "benchmarks" / "table.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "run python benchmarks/table.py" in done.stderr
