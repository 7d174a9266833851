"""The Helm chart: Helm itself renders it, Kubernetes' schemas accept that, and every metric that it names exists."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from onsight.config import Settings, load_settings
from onsight.core.errors import StartError
from onsight.serve import assemble

CHART = Path(__file__).parents[2] / "deploy/helm/onsight"
KUBERNETES = ("1.29", "1.37")
"""The oldest that Chart.yaml allows, and the newest whose schemas there are."""
OF_OPERATORS = {"ServiceMonitor", "PrometheusRule"}
EVERYTHING: dict[str, Any] = {
    "auth": {"secret": "onsight-key", "keysFile": "/keys/keys.json"},
    "env": [{"name": "ONSIGHT_QDRANT_KEY", "valueFrom": {"secretKeyRef": {"name": "qdrant", "key": "key"}}}],
    "volumes": [{"name": "keys", "secret": {"secretName": "onsight-keys"}}],
    "volumeMounts": [{"name": "keys", "mountPath": "/keys", "readOnly": True}],
    "hub": {"secret": "hub", "offline": True},
    "embedModel": "leaf",
    "revision": "v1",
    "settings": {"media_max_pixels": 40_000_000, "open_docs": True, "cors_origins": ["https://a", "https://b"]},
    "gpus": 2,
    "imagePullSecrets": [{"name": "ghcr"}],
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"a": "b"},
    "weights": {"accessMode": "ReadWriteMany", "storageClass": "fast"},
    "service": {"annotations": {"a": "b"}},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
}
LEAST: dict[str, Any] = {"auth": {"none": True}, "weights": {"enabled": False}}
DEFAULT: dict[str, Any] = {"auth": {"secret": "onsight-key"}}


def render(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What Helm makes of the chart, by kind (there is one of each)."""
    import helm_python as helm

    with helm.Chart.load(CHART) as chart:
        made = chart.render(dict(values), name="demo", namespace="prod")
    documents = [
        one for name, text in made.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one
    ]
    assert len({one["kind"] for one in documents}) == len(documents)
    return {one["kind"]: one for one in documents}


def pod(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(the pod, its container, its environment by name)."""
    spec = render(values)["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container, {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.mark.deploy
def test_helm_has_nothing_to_complain_of() -> None:
    import helm_python as helm

    found = helm.lint(CHART, values=DEFAULT, strict=True)
    assert [one for one in found["messages"] if "icon is recommended" not in one["error"]] == []
    assert found["errors"] == []


@pytest.mark.deploy
@pytest.mark.parametrize("values", [DEFAULT, LEAST, EVERYTHING], ids=["default", "least", "everything"])
def test_kubernetes_accepts_what_is_rendered(values: Mapping[str, Any]) -> None:
    import kubernetes_validate

    for kind, document in render(values).items():
        for version in KUBERNETES:
            if kind not in OF_OPERATORS:
                kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.deploy
def test_a_pod_is_given_the_time_that_running_answers_have() -> None:
    for seconds in (0, 30, 600):
        spec, container, environment = pod({**DEFAULT, "drainTimeoutSeconds": seconds})
        settings = load_settings({"host": "0.0.0.0", "no_auth": True}, environment=texts(environment))
        wait = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert settings.drain_timeout_s == seconds
        assert spec["terminationGracePeriodSeconds"] > wait + settings.drain_timeout_s


@pytest.mark.deploy
def test_probes_ask_what_they_are_for() -> None:
    _, container, _ = pod({**DEFAULT, "startupTimeoutSeconds": 601})
    assert container["startupProbe"]["httpGet"]["path"] == container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 601
    (port,) = container["ports"]
    assert port["name"] == startup["httpGet"]["port"]


def texts(environment: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if isinstance(value, str)}


@pytest.mark.deploy
def test_values_become_settings_that_the_server_accepts() -> None:
    _, container, environment = pod(EVERYTHING)
    assert environment["ONSIGHT_API_KEY"] == {"secretKeyRef": {"name": "onsight-key", "key": "api-key"}}
    assert environment["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert environment["HF_HUB_OFFLINE"] == "1"
    settings = load_settings({"host": "0.0.0.0", "api_key": "k"}, environment=texts(environment))
    assert (settings.model, settings.revision, settings.embed_model) == ("peek", "v1", "leaf")
    assert settings.port == container["ports"][0]["containerPort"]
    assert settings.media_max_pixels == 40_000_000
    assert settings.open_docs is True
    assert settings.cors_origins == ("https://a", "https://b")
    assert container["args"] == ["serve", "--host", "0.0.0.0"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert settings.torch_device == "gpu"
    assert "ONSIGHT_WANTS_GPU" not in pod(DEFAULT)[2]


@pytest.mark.deploy
def test_keys_come_by_variables_and_volumes_of_ones_own() -> None:
    spec, container, environment = pod(EVERYTHING)
    assert environment["ONSIGHT_KEYS_FILE"] == "/keys/keys.json"
    assert environment["ONSIGHT_QDRANT_KEY"] == {"secretKeyRef": {"name": "qdrant", "key": "key"}}
    assert EVERYTHING["volumes"][0] in spec["volumes"]
    assert EVERYTHING["volumeMounts"][0] in container["volumeMounts"]
    _, _, environment = pod({**DEFAULT, "auth": {"keysFile": "/keys/keys.json"}})
    assert environment.keys() & {"ONSIGHT_API_KEY", "ONSIGHT_KEYS_FILE", "ONSIGHT_NO_AUTH"} == {"ONSIGHT_KEYS_FILE"}


@pytest.mark.deploy
def test_services_of_the_namespace_set_nothing_in_a_pod() -> None:
    # What Kubernetes sets for a Service named `app`, where it is let.
    with pytest.raises(StartError, match="APP_PORT"):
        load_settings({}, environment={"APP_PORT": "tcp://10.0.0.7:80"})
    assert pod(DEFAULT)[0]["enableServiceLinks"] is False


@pytest.mark.deploy
def test_weights_have_a_volume_and_pods_that_share_one_of_a_node_end_before_they_are_replaced() -> None:
    made = render(DEFAULT)
    (volume,) = [one for one in made["Deployment"]["spec"]["template"]["spec"]["volumes"] if one["name"] == "weights"]
    assert volume["persistentVolumeClaim"]["claimName"] == made["PersistentVolumeClaim"]["metadata"]["name"]
    assert made["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    assert render(EVERYTHING)["Deployment"]["spec"]["strategy"]["type"] == "RollingUpdate"
    existing = render({**DEFAULT, "weights": {"existingClaim": "mine"}})
    assert "PersistentVolumeClaim" not in existing
    assert "mine" in json.dumps(existing["Deployment"])
    assert "weights" not in json.dumps(render(LEAST))


@pytest.mark.deploy
def test_the_autoscaler_owns_the_number_of_pods() -> None:
    made = render(EVERYTHING)
    scaler = made["HorizontalPodAutoscaler"]["spec"]
    assert "replicas" not in made["Deployment"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == made["Deployment"]["metadata"]["name"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] in exported()


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "auth.secret"),
        ({**DEFAULT, "settings": {"colour": "red"}}, "colour"),
        ({**DEFAULT, "settings": {"allowed_hosts": "a"}}, "allowed_hosts"),
        ({**DEFAULT, "replica": 2}, "replica"),
        ({**DEFAULT, "gpus": -1}, "gpus"),
        ({**DEFAULT, "env": [{"name": "ONSIGHT_PORT", "value": "1"}]}, "env"),
        ({**DEFAULT, "auth": {"keysFile": "keys.json"}}, "keysFile"),
        ({"auth": {"keysFile": "/keys.json"}, "serviceMonitor": {"enabled": True}}, "open_metrics=true"),
    ],
)
def test_values_that_would_do_nothing_or_harm_are_refused(values: Mapping[str, Any], why: str) -> None:
    import helm_python as helm

    with pytest.raises(helm.HelmError, match=why):
        render(values)


@pytest.mark.deploy
def test_what_prometheus_and_grafana_get_is_what_the_files_hold() -> None:
    made = render(EVERYTHING)
    assert made["PrometheusRule"]["spec"] == alerts()
    assert made["PrometheusRule"]["metadata"]["labels"]["release"] == "prometheus"
    assert json.loads(made["ConfigMap"]["data"]["onsight.json"]) == dashboard()
    (endpoint,) = made["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "onsight-key", "key": "api-key"}
    for open_to_all in ({"auth": {"keysFile": "/keys.json"}, "settings": {"open_metrics": True}}, LEAST):
        (plain,) = render({**open_to_all, "serviceMonitor": {"enabled": True}})["ServiceMonitor"]["spec"]["endpoints"]
        assert "authorization" not in plain
    assert (
        made["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= made["Service"]["metadata"]["labels"].items()
    )


def test_the_settings_that_the_chart_takes_are_those_of_the_server() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    set_by_others = {"model", "revision", "embed_model", "drain_timeout_s", "host", "port", "wants_gpu"}
    guards = {"api_key", "keys_file", "no_auth", "upstream_key", "qdrant_key"}
    # Probes and Prometheus come by address, and would be refused.
    taken = Settings.model_fields.keys() - set_by_others - guards - {"allowed_hosts"}
    assert schema["properties"]["settings"]["properties"].keys() == taken


def alerts() -> dict[str, Any]:
    found = yaml.safe_load((CHART / "files/alerts.yaml").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def dashboard() -> dict[str, Any]:
    found = json.loads((CHART / "files/dashboard.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def queries() -> Iterator[str]:
    """Every expression of PromQL in the chart."""
    yield from (rule["expr"] for group in alerts()["groups"] for rule in group["rules"])
    yield from (target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])


@cache
def exported() -> frozenset[str]:
    """Every name that /metrics can have, of histograms each series."""

    async def ask() -> str:
        transport = httpx.ASGITransport(assemble(load_settings({"engine": "fake"}, environment={})).app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.get("/metrics")).text

    names: set[str] = set()
    for family in text_string_to_metric_families(asyncio.run(ask())):
        ends = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
        names.update(family.name + end for end in ends)
    return frozenset(names)


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for query in queries() for name in re.findall(r"onsight_\w+", query)}
    for variable in dashboard()["templating"]["list"]:
        asked.update(re.findall(r"onsight_\w+", str(variable["query"])))
    asked.update(re.findall(r"onsight_\w+", (CHART / "values.yaml").read_text("utf-8")))
    assert asked
    assert asked - exported() == set()
    # Whoever adds a metric decides whether it belongs on the board.
    shown = {name.removesuffix("_bucket") for query in queries() for name in re.findall(r"onsight_\w+", query)}
    left_out = {"onsight_kv_cache_tokens", "onsight_prefix_cached_tokens_total"}
    beside = {name for name in exported() if name.endswith(("_sum", "_count"))}
    assert {name.removesuffix("_bucket") for name in exported() - beside} - shown == left_out


@pytest.mark.deploy
def test_every_query_can_be_read() -> None:
    import promql_parser

    for query in queries():
        promql_parser.parse(query.replace("$__rate_interval", "5m"))
