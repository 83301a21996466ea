"""Where the command line keeps compiled programs."""

import jax
import pytest

from clipa_eqx.cli._compiled import keep_compiled


@pytest.fixture
def jax_settings(monkeypatch):
    """What the call changes, put back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
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
