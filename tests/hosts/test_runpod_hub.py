"""What RunPod's Hub reads: strict JSON with the fields of its publishing guide, and settings that the server has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onsight.config import Settings, load_settings
from onsight.hosts.runpod import read_job

ROOT = Path(__file__).parents[2]

# From https://docs.runpod.io/hub/publishing-guide: (needed, allowed besides).
METADATA = ({"title", "description", "type", "category", "config"}, {"iconUrl"})
CONFIG = ({"runsOn", "containerDiskInGb", "gpuCount", "gpuIds"}, {"allowedCudaVersions", "env", "presets"})
INPUT = (
    {"name", "type", "description", "default"},
    {"advanced", "options", "min", "max", "trueValue", "falseValue"},
)
TEST = ({"name", "input"}, {"timeout"})
TEST_CONFIG = ({"gpuTypeId", "gpuCount"}, {"env", "allowedCudaVersions"})
NOT_OURS = {"HF_TOKEN"}


def read(name: str) -> dict[str, object]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len({key for key, _ in pairs}) == len(pairs), f"a key stands twice in {[key for key, _ in pairs]}"
        return dict(pairs)

    def no_constant(word: str) -> object:
        raise AssertionError(f"{word} is no JSON")

    text = (ROOT / ".runpod" / name).read_text("ascii")
    table = json.loads(text, object_pairs_hook=once, parse_constant=no_constant)
    assert isinstance(table, dict)
    return table


def check(table: object, fields: tuple[set[str], set[str]]) -> dict[str, object]:
    needed, allowed = fields
    assert isinstance(table, dict)
    assert needed <= table.keys() <= needed | allowed, table.keys()
    return table


def listed(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list)
    return value


def accept(settings: dict[str, object]) -> None:
    """The server must take these names and values from its environment."""
    ours = {name: str(value) for name, value in settings.items() if name not in NOT_OURS and value != ""}
    for name in ours:
        assert name.removeprefix("ONSIGHT_").lower() in Settings.model_fields, name
    load_settings({}, environment=ours)


def test_the_metadata_are_those_of_the_guide() -> None:
    hub = check(read("hub.json"), METADATA)
    assert hub["type"] == "serverless"
    assert hub["category"] in ("audio", "embedding", "language", "video", "image")
    config = check(hub["config"], CONFIG)
    assert config["runsOn"] == "GPU"
    assert isinstance(config["containerDiskInGb"], int)
    assert isinstance(config["gpuCount"], int)


def test_workers_have_a_driver_for_the_cuda_that_pytorch_is_built_for() -> None:
    hub, tests = (table["config"] for table in (read("hub.json"), read("tests.json")))
    assert isinstance(hub, dict)
    assert isinstance(tests, dict)
    allowed = hub["allowedCudaVersions"]
    assert allowed
    assert allowed == tests["allowedCudaVersions"]
    # Another PyTorch may be built for another CUDA: look, and change both.
    assert "\ntorch==2.13." in (ROOT / "constraints.txt").read_text("utf-8")
    assert all(str(one).startswith("13.") for one in allowed)


def test_every_variable_is_a_setting_with_a_default_that_it_accepts() -> None:
    config = read("hub.json")["config"]
    assert isinstance(config, dict)
    for variable in listed(config["env"]):
        assert variable.keys() == {"key", "input"}
        asked = check(variable["input"], INPUT)
        assert asked["type"] in ("string", "number", "boolean", "huggingface")
        assert ("min" in asked and "max" in asked) == (asked["type"] == "number")
        values = [asked["default"], *(option["value"] for option in listed(asked.get("options", [])))]
        values += [asked[bound] for bound in ("min", "max") if bound in asked]
        for value in values:
            accept({str(variable["key"]): value})
    keys = [variable["key"] for variable in listed(config["env"])]
    assert len(set(keys)) == len(keys)
    for preset in listed(config["presets"]):
        assert preset.keys() == {"name", "defaults"}
        defaults = preset["defaults"]
        assert isinstance(defaults, dict)
        assert defaults.keys() <= set(keys)
        accept(defaults)


def test_the_hubs_tests_are_jobs_that_are_read() -> None:
    table = read("tests.json")
    assert table.keys() == {"tests", "config"}
    for test in listed(table["tests"]):
        check(test, TEST)
        assert isinstance(test.get("timeout", 1), int)
        read_job(test)
    config = check(table["config"], TEST_CONFIG)
    for variable in listed(config["env"]):
        assert variable.keys() == {"key", "value"}
        accept({str(variable["key"]): variable["value"]})


@pytest.mark.parametrize("name", ["handler.py", "Dockerfile", "README.md"])
def test_what_the_hub_needs_stands_where_it_looks(name: str) -> None:
    assert (ROOT / ".runpod" / name).is_file() or (ROOT / name).is_file()


def test_the_handler_really_starts_the_worker() -> None:
    assert "runpod.serverless.start(worker)" in (ROOT / "handler.py").read_text("utf-8")
    script = ROOT / "start_runpod.sh"
    assert script.stat().st_mode & 0o111
    assert "exec python -u handler.py" in script.read_text("utf-8")
