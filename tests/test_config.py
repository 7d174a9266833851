"""Defaults, file, environment and flags, in that order; what contradicts or is unknown stops the start by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from onsight.config import Settings, load_settings
from onsight.core.errors import StartError
from onsight.models.hub import cached_models, locate_model


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


@pytest.mark.parametrize(
    ("environment", "option", "value"),
    [
        ({"MODEL_NAME": "owner/name"}, "model", "owner/name"),
        ({"MODEL_PATH": "/models/holo"}, "model", "/models/holo"),
        ({"CLIP_MODEL_NAME": "mmproj-f16.gguf"}, "mmproj", "mmproj-f16.gguf"),
        ({"MODEL_PATH": "/models", "MODEL_NAME": "holo"}, "model", "/models/holo"),
        ({"MODEL_PATH": "/models", "MODEL_NAME": "holo"}, "served_model_name", ("holo",)),
        (
            {"SMOLVLM2_MODEL_ID": "HuggingFaceTB/SmolVLM2-2.2B-Instruct"},
            "model",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        ),
        ({"MODEL_DEVICE": "cuda"}, "device", "cuda-or-cpu"),
        ({"MODEL_DEVICE": "cuda", "ONSIGHT_DEVICE": "cuda"}, "device", "cuda"),
        ({"PORT": "5000"}, "port", 5000),
        ({"APP_PORT": "7860"}, "port", 7860),
        ({"N_THREADS": "4"}, "threads", 4),
        ({"N_THREADS": "0"}, "threads", None),
        ({"PORT": ""}, "port", Settings().port),
    ],
)
def test_other_servers_names_in_the_environment_set_our_options(
    environment: dict[str, str], option: str, value: object
) -> None:
    settings = load_settings({}, environment=environment)
    assert settings.model_dump()[option] == value


def test_a_gpu_is_wanted_of_the_torch_engine_until_a_device_is_named() -> None:
    assert load_settings({}, environment={}).torch_device == "auto"
    image = {"ONSIGHT_WANTS_GPU": "true"}
    assert load_settings({}, environment=image).torch_device == "gpu"
    assert load_settings({"device": "cpu"}, environment=image).torch_device == "cpu"
    assert load_settings({}, environment={**image, "MODEL_DEVICE": "cuda"}).torch_device == "cuda-or-cpu"


def test_what_is_taken_from_other_names_is_told() -> None:
    settings = load_settings({}, environment={"MODEL_PATH": "/m", "MODEL_NAME": "a", "APP_PORT": "7860"})
    assert settings.taken == (
        "model '/m/a' is taken from MODEL_PATH with MODEL_NAME",
        "port '7860' is taken from APP_PORT",
    )
    assert load_settings({}, environment={"ONSIGHT_PORT": "1"}).taken == ()


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"PORT": "1", "APP_PORT": "2"}, ("PORT", "APP_PORT")),
        ({"ONSIGHT_PORT": "1", "APP_PORT": "2"}, ("ONSIGHT_PORT", "APP_PORT")),
        ({"MODEL_NAME": "a", "SMOLVLM2_MODEL_ID": "b"}, ("MODEL_NAME", "SMOLVLM2_MODEL_ID")),
        (
            {"MODEL_PATH": "/m", "MODEL_NAME": "a", "ONSIGHT_MODEL": "a"},
            ("ONSIGHT_MODEL", "MODEL_PATH with MODEL_NAME"),
        ),
        ({"TRANSFORMERS_CACHE": "/a", "HF_HUB_CACHE": "/b"}, ("TRANSFORMERS_CACHE", "HF_HUB_CACHE")),
    ],
)
def test_names_that_contradict_each_other_stop_the_start(environment: dict[str, str], names: tuple[str, str]) -> None:
    with pytest.raises(StartError, match=f"^{names[0]} gives .* and {names[1]} gives .*unset one"):
        load_settings({}, environment=environment)


def test_names_that_agree_or_are_overruled_by_a_flag_do_not_contradict() -> None:
    assert load_settings({}, environment={"PORT": "1", "APP_PORT": "1"}).port == 1
    settings = load_settings({"port": 3}, environment={"PORT": "1", "APP_PORT": "2"})
    assert (settings.port, settings.taken) == (3, ())


def test_a_served_name_of_our_own_stands_before_the_one_that_another_server_took() -> None:
    environment = {"MODEL_PATH": "/m", "MODEL_NAME": "a", "ONSIGHT_SERVED_MODEL_NAME": "mine"}
    assert load_settings({}, environment=environment).served_model_name == ("mine",)
    flagged = load_settings({"model": "peek"}, environment={"MODEL_PATH": "/m", "MODEL_NAME": "a"})
    assert (flagged.model, flagged.served_model_name) == ("peek", ())


def test_a_wrong_value_is_named_with_the_name_that_it_came_from() -> None:
    with pytest.raises(StartError, match=r"device 'tpu'.*MODEL_DEVICE"):
        load_settings({}, environment={"MODEL_DEVICE": "tpu"})


def test_models_are_looked_for_where_transformers_cache_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere")
    assert cached_models() == ()
    commit = "0" * 40
    folder = tmp_path / "models--owner--name" / "snapshots" / commit
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    settings = load_settings({}, environment={"TRANSFORMERS_CACHE": str(tmp_path)})
    assert settings.taken == (f"the folder of models {str(tmp_path)!r} is taken from TRANSFORMERS_CACHE",)
    assert locate_model("owner/name") == folder
    assert [model.name for model in cached_models()] == ["owner/name"]


@pytest.mark.parametrize(
    ("given", "beside"),
    [
        ({}, "leaf"),
        ({"engine": "torch", "served_model_name": "mine"}, "leaf"),
        ({"model": "peek"}, None),
        ({"embed_model": "x"}, "x"),
        ({"engine": "fake"}, None),
        ({"upstream": "http://h"}, None),
    ],
)
def test_a_server_without_a_named_model_gets_the_bundled_retriever(
    given: dict[str, object], beside: str | None
) -> None:
    settings = load_settings(given, environment={"PORT": "7"})
    served = settings.with_retriever
    assert (served.model, served.embed_model) == (settings.model, beside)
    assert (served.port, served.taken) == (7, settings.taken)
