"""Where the command line keeps compiled programs."""

import json

import jax
import pytest
from helpers import tiny_run, write_config

from clipa_eqx.cli import main
from clipa_eqx.cli._compiled import keep_compiled


@pytest.fixture
def jax_settings(monkeypatch):
    """What the call changes, put back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_enable_compilation_cache", True)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_by_default_in_the_users_cache_folder(jax_settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled("auto")
    assert jax_settings.jax_compilation_cache_dir == str(tmp_path / "clipa_eqx" / "compiled")


def test_the_variable_of_jax_wins_over_auto_and_a_flag_over_both(jax_settings, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    before = jax_settings.jax_compilation_cache_dir
    keep_compiled("auto")
    assert jax_settings.jax_compilation_cache_dir == before
    keep_compiled(str(tmp_path / "own"))
    assert jax_settings.jax_compilation_cache_dir == str(tmp_path / "own")


def test_none_keeps_nothing(jax_settings):
    keep_compiled("none")
    assert not jax_settings.jax_enable_compilation_cache


def _other_world(folder):
    """Where the demo stops, because a world of other numbers lies there."""
    (folder / "world").mkdir()
    (folder / "world" / "world.json").write_text(json.dumps({"pairs": 1, "seed": 0}))
    return folder


# Each stops before it compiles.
COMMANDS = {
    "train": lambda folder: ["train", "--config", write_config(folder / "config.json", tiny_run(folder)), "--dry-run"],
    "evaluate": lambda folder: ["evaluate", folder, "--retrieval", "nowhere"],
    "demo": lambda folder: ["demo", _other_world(folder)],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_compiles_much_keeps_its_programs(command, jax_settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = [*map(str, COMMANDS[command](tmp_path))]
    main(arguments)
    assert jax_settings.jax_compilation_cache_dir == str(tmp_path / "cache" / "clipa_eqx" / "compiled")
    main([*arguments, "--compilation-cache", str(tmp_path / "own")])
    assert jax_settings.jax_compilation_cache_dir == str(tmp_path / "own")
    main([*arguments, "--compilation-cache", "none"])
    assert not jax_settings.jax_enable_compilation_cache
