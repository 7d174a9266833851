"""Defaults, file, environment and flags, in that order; what contradicts or is unknown stops the start by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from onsight.config import Settings, load_settings
from onsight.core.errors import StartError


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "onsight.toml"
    file.write_text('port = 1\nhost = "localhost"\nmax_queue = 7\n[media]\nmax_pixels = 123\n')
    environment = {"ONSIGHT_PORT": "2", "ONSIGHT_MAX_QUEUE": "8", "UNRELATED": "x"}
    settings = load_settings({"port": 3}, file=file, environment=environment)
    assert (settings.port, settings.max_queue, settings.host) == (3, 8, "localhost")
    assert settings.media_max_pixels == 123
    assert settings.max_num_seqs == Settings().max_num_seqs


def test_lists_come_from_one_text_with_commas() -> None:
    settings = load_settings({}, environment={"ONSIGHT_SERVED_MODEL_NAME": "a, b/c"})
    assert settings.served_model_name == ("a", "b/c")


def test_a_server_that_others_can_reach_needs_a_key_or_a_clear_word() -> None:
    with pytest.raises(StartError, match="ONSIGHT_API_KEY"):
        load_settings({"host": "0.0.0.0"}, environment={})
    assert load_settings({"host": "0.0.0.0", "no_auth": True}, environment={}).host == "0.0.0.0"
    assert load_settings({"host": "0.0.0.0"}, environment={"ONSIGHT_API_KEY": "k"}).api_key == "k"


def test_options_of_a_model_that_is_not_named_are_refused() -> None:
    assert load_settings({"embed_model": "a/b", "embed_revision": "v1"}, environment={}).embed_revision == "v1"
    for flags in ({"embed_revision": "v1"}, {"served_embed_name": ["pages"]}):
        with pytest.raises(StartError, match="embed_model, which is not set"):
            load_settings(flags, environment={})


def test_a_wrong_value_is_named_with_its_option() -> None:
    with pytest.raises(StartError, match=r"port 'many'.*ONSIGHT_PORT"):
        load_settings({}, environment={"ONSIGHT_PORT": "many"})


def test_an_unknown_option_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "onsight.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(StartError, match="'prot'"):
        load_settings({}, file=file, environment={})


@pytest.mark.parametrize("text", ["port = ", "\xff\xfe"])
def test_a_file_that_is_no_toml_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "onsight.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(StartError, match="is not TOML"):
        load_settings({}, file=file, environment={})


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read"):
        load_settings({}, file=tmp_path / "none.toml", environment={})


def test_a_key_is_never_shown_in_an_error() -> None:
    with pytest.raises(StartError) as caught:
        load_settings({"api_key": ""}, environment={"ONSIGHT_PORT": "x"})
    assert "''" not in str(caught.value)
