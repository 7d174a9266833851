"""The containers' files: pinned, no compiler, not root, healthy by /health; compose stands in by name and port."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from onsight.config import Settings, load_settings
from onsight.core.errors import StartError
from onsight.engine_choice import build_roster
from tests.deploy.build import expand, read
from tests.servers import served

ROOT = Path(__file__).parents[2]
DOCKERFILES = [ROOT / "deploy/Dockerfile", ROOT / ".runpod/Dockerfile"]
STAGES = [(path, name) for path in DOCKERFILES for name in read(path)[1]]
TARGETS = ("cpu", "gpu", "cpu-baked", "gpu-baked")
SCRIPTS = [ROOT / "start_runpod.sh", ROOT / ".ci/run", ROOT / "deploy/ray/start.sh"]


def lines_of(path: Path, target: str) -> list[tuple[str, str]]:
    """The target's instructions with those of the stages that it stands on, the first one first."""
    stages = read(path)[1]
    steps: list[tuple[str, str]] = []
    name = target
    while name in stages:
        steps = [*stages[name].steps, *steps]
        name = stages[name].parent
    return steps


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_every_stage_stands_on_one_pinned_base(path: Path) -> None:
    arguments, stages = read(path)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm", arguments["BASE"])
    assert all(stage.parent == "${BASE}" or stage.parent in stages for stage in stages.values())


@pytest.mark.parametrize(("path", "name"), STAGES, ids=[name for _, name in STAGES])
def test_no_stage_installs_a_compiler_or_builds_one_of_our_dependencies(path: Path, name: str) -> None:
    for word, rest in read(path)[1][name].steps:
        assert word != "RUN" or not re.search(r"\b(gcc|curl|wget|git)\b", rest), rest
        installed = re.findall(r"\bapt(?:-get)? install ([^&]*)", rest)
        assert set(installed) <= {"--yes --no-install-recommends libgomp1 "}
        if word == "RUN" and "pip install" in rest:
            assert "--only-binary :all: --no-binary docopt --constraint /constraints.txt" in rest


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_not_root_and_is_asked_for_its_health(target: str) -> None:
    steps = lines_of(DOCKERFILES[0], target)
    assert [rest for word, rest in steps if word == "USER"][-1] == "10001:10001"
    (health,) = [rest for word, rest in steps if word == "HEALTHCHECK"]
    assert "/health" in health
    assert ("ENTRYPOINT", '["onsight"]') in steps
    assert ("CMD", '["serve", "--host", "0.0.0.0"]') in steps
    # Else every command, not only serve, would ask for a key.
    assert not any("ONSIGHT_HOST" in rest for _, rest in steps)


@pytest.mark.parametrize("target", TARGETS)
def test_a_port_by_any_of_its_names_is_the_port(target: str) -> None:
    ours = environment_of(DOCKERFILES[0], target)
    assert load_settings({}, environment=ours).port == 8000
    for name in ("ONSIGHT_PORT", "PORT", "APP_PORT"):
        assert load_settings({}, environment={**ours, name: "5000"}).port == 5000


def test_docker_asks_the_port_that_is_set_by_a_name_that_is_answered_and_no_proxy() -> None:
    (health,) = [rest for word, rest in lines_of(DOCKERFILES[0], "cpu") if word == "HEALTHCHECK"]
    _, *command = json.loads(health[health.index("[") :])
    names = {"ONSIGHT_ALLOWED_HOSTS": "a.example, b.example"}
    with served("--engine", "fake", **names) as server:
        port = server.url.rpartition(":")[2]

        def code(**environment: str) -> int:
            given = {"http_proxy": "http://127.0.0.1:9", **environment}
            return subprocess.run([sys.executable, *command], env=given, capture_output=True, check=False).returncode

        assert [code(**names, **{name: port}) for name in ("ONSIGHT_PORT", "PORT", "APP_PORT")] == [0, 0, 0]
        assert code(PORT=port) != 0
    assert code(**names, PORT=port) != 0


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_serves_gguf_files_too_and_chooses_nothing_that_another_engine_would_refuse(target: str) -> None:
    steps = lines_of(DOCKERFILES[0], target)
    (packages,) = [rest.split()[0] for word, rest in steps if word == "COPY" and "--from=packages" in rest]
    ((_, install),) = [step for step in lines_of(DOCKERFILES[0], packages.partition("=")[2]) if "install" in step[1]]
    assert '[ui,llama]"' in install
    assert any("install --yes --no-install-recommends libgomp1" in rest for word, rest in steps if word == "RUN")
    ours = environment_of(DOCKERFILES[0], target)
    assert ours.keys() - {"ONSIGHT_MODEL", "ONSIGHT_REVISION"} == ({"ONSIGHT_WANTS_GPU"} if "gpu" in target else set())
    for others in ({"upstream": "http://127.0.0.1:1"}, {"engine": "vllm", "vllm": sys.executable}):
        build_roster(load_settings(others, environment=ours), None)
    with pytest.raises(StartError, match="there is no file"):
        build_roster(load_settings({"model": "none.gguf"}, environment=ours), None)


@pytest.mark.parametrize(
    ("path", "target"), [(DOCKERFILES[0], "gpu"), (DOCKERFILES[0], "gpu-baked"), (DOCKERFILES[1], "worker")]
)
def test_an_image_for_gpus_does_not_serve_on_the_cpu_unless_it_is_told_to(path: Path, target: str) -> None:
    ours = environment_of(path, target)
    assert load_settings({}, environment=ours).torch_device == "gpu"
    assert load_settings({"device": "cpu"}, environment=ours).torch_device == "cpu"


def environment_of(path: Path, target: str) -> dict[str, str]:
    """The options that a target sets, without those that are filled in at build."""
    pairs = [rest.split() for word, rest in lines_of(path, target) if word == "ENV"]
    found = dict(pair.split("=", 1) for line in pairs for pair in line if pair.startswith("ONSIGHT_"))
    return {name: "" if value.startswith("$") else value for name, value in found.items()}


@pytest.mark.parametrize("target", ["cpu-baked", "gpu-baked"])
def test_a_baked_target_pulls_with_a_secret_and_serves_offline(target: str) -> None:
    steps = lines_of(DOCKERFILES[0], target)
    ((index, pull),) = [(index, rest) for index, (_, rest) in enumerate(steps) if "onsight pull" in rest]
    assert pull.startswith("--mount=type=secret,id=hf_token")
    assert not any("TOKEN" in rest for word, rest in steps if word in ("ARG", "ENV"))
    assert ("ENV", "HF_HUB_OFFLINE=1") in steps[index:]
    assert any("HF_HOME=/opt/models" in rest for word, rest in steps[:index] if word == "ENV")


def test_the_hubs_image_is_made_as_the_gpu_image_is() -> None:
    ours, hubs = (read(path)[1] for path in DOCKERFILES)
    assert hubs["wheel"].steps == ours["wheel"].steps
    install = [rest.replace(".whl)[runpod]", ".whl)[ui,llama]") for _, rest in hubs["packages"].steps]
    assert install == [rest for _, rest in ours["packages-gpu"].steps]


def test_what_a_dockerfile_copies_is_not_ignored_and_nothing_else_is_sent() -> None:
    first, *kept = (ROOT / ".dockerignore").read_text("utf-8").split()
    sent = {line.removeprefix("!") for line in kept if line.startswith("!")}
    copied = set()
    for path, name in STAGES:
        for word, rest in read(path)[1][name].steps:
            if word == "COPY" and not rest.startswith("--from"):
                copied.update(rest.split()[:-1])
    assert first == "*"
    assert copied == sent
    assert all((ROOT / name).exists() for name in sent)


def compose() -> dict[str, dict[str, object]]:
    table = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text("utf-8"))
    services = table["services"]
    assert isinstance(services, dict)
    return services


def filled(value: object, **given: str) -> str:
    """A value of compose with its variables' defaults, or `given`."""
    return re.sub(r"\$\{(\w+)(?::?-([^}]*))?\}", lambda match: given.get(match[1], match[2] or ""), str(value))


@pytest.mark.parametrize(
    ("service", "port", "volume"),
    [
        ("peek", 8000, None),
        ("holo-api", 8000, "hf-cache:/data/hf-cache"),
        ("captions", 8000, "hf-cache:/data/hf-cache"),
        ("api-cpu", 7001, "hf-cache:/data/hf-cache"),
        ("api-gpu", 7002, "hf-cache:/data/hf-cache"),
        ("smolvlm2", 7860, "../data/hf_cache:/data/hf_cache"),
        ("llama-vision", 5000, "../models:/models:ro"),
    ],
)
def test_a_service_has_its_port_and_volume_and_settings_that_the_server_accepts(
    service: str, port: int, volume: str | None
) -> None:
    table = compose()[service]
    environment = table["environment"]
    assert isinstance(environment, dict)
    given = {name: filled(value) for name, value in environment.items()}
    settings = load_settings({"host": "0.0.0.0"}, environment=given)
    ours = {name for name in given if name.startswith("ONSIGHT_")}
    assert {name.removeprefix("ONSIGHT_").lower() for name in ours} <= Settings.model_fields.keys()
    assert settings.port == port
    # By a name of its own a page elsewhere could reach a service through its reader's browser; neighbours call by ours.
    assert {"localhost", "127.0.0.1", service} <= set(settings.allowed_hosts)
    assert load_settings({"host": "0.0.0.0"}, environment={**given, "ONSIGHT_ALLOWED_HOSTS": ""}).allowed_hosts == ()
    assert [filled(one) for one in list(table["ports"])] == [f"127.0.0.1:{port}:{port}"]  # type: ignore[call-overload]
    assert [filled(one) for one in list(table.get("volumes", []))] == ([volume] if volume else [])  # type: ignore[call-overload]
    assert table["read_only"] is True
    assert table["init"] is True
    assert str(table["restart"]).startswith("on-failure:")
    assert float(str(table["stop_grace_period"]).removesuffix("s")) > settings.drain_timeout_s


def test_a_container_without_a_key_is_run_for_names_that_its_health_is_asked_by() -> None:
    text = (ROOT / "docs/deploy/containers.md").read_text("utf-8")
    (command,) = [line for line in text.splitlines() if "docker run" in line and "-e ONSIGHT_NO_AUTH=true" in line]
    given = dict(re.findall(r"-e (\w+)=(\S+)", command))
    assert load_settings({"host": "0.0.0.0"}, environment=given).allowed_hosts == ("localhost", "127.0.0.1")


def test_the_old_services_variables_are_passed_on() -> None:
    services = compose()
    smolvlm2, llama = services["smolvlm2"]["environment"], services["llama-vision"]["environment"]
    assert isinstance(smolvlm2, dict)
    assert isinstance(llama, dict)
    assert filled(smolvlm2["ONSIGHT_MODEL"], SMOLVLM2_MODEL_ID="a/b") == "a/b"
    assert filled(smolvlm2["ONSIGHT_PORT"], APP_PORT="8080") == "8080"
    assert filled(llama["ONSIGHT_MODEL"], MODEL_NAME="x") == "/models/x"
    for given, mmproj in (({}, None), ({"CLIP_MODEL_NAME": "mmproj.gguf"}, "mmproj.gguf")):
        passed_on = {name: filled(value, **given) for name, value in llama.items()}
        assert load_settings({"host": "0.0.0.0"}, environment=passed_on).mmproj == mmproj


def test_every_variable_of_compose_is_in_the_example_with_its_default() -> None:
    text = (ROOT / "deploy/compose.yaml").read_text("utf-8")
    used = dict(re.findall(r"\$\{(\w+):?-([^}]*)\}", text))
    example = (ROOT / "deploy/.env.example").read_text("utf-8")
    assert dict(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE)) == used


def test_variables_of_a_dockerfile_are_filled_in_as_docker_does() -> None:
    assert expand("${A}/$B-${C}", {"A": "1", "B": "2"}) == "1/2-"


@pytest.mark.deploy
def test_hadolint_and_shellcheck_find_nothing() -> None:
    tools = Path(sys.executable).parent
    for command in (["hadolint", *map(str, DOCKERFILES)], ["shellcheck", *map(str, SCRIPTS)]):
        done = subprocess.run([str(tools / command[0]), *command[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("schema", "files"), [("compose-spec", "deploy/compose.yaml"), ("github-workflows", ".github/workflows/*.yaml")]
)
def test_compose_and_the_workflows_are_as_their_schemas_want(schema: str, files: str) -> None:
    found = sorted(ROOT.glob(files))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found
    assert done.returncode == 0, done.stdout + done.stderr
