"""Onsight on two Ray nodes of this machine: streams, keys, affinity, scaling, lost replicas and a lost node."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.media.pictures import data_url, plain
from tests.servers import wait_until

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
ANSWERED_BY = "x-onsight-replica"
BESIDE = "/beside"
KEY = {"Authorization": "Bearer k"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass
class Cluster:
    """Two nodes; `head` and `second`: addresses of their proxies."""

    ray: Any
    nodes: Any
    node: Any
    head: str
    second: str

    def deploy(self, **scaling: object) -> None:
        """Serve the fake engine anew, and wait until both proxies know of it."""
        from ray import serve

        from onsight.hosts.ray import build

        serve.run(build({"engine": "fake", "max_queue": 64, "scaling": {"cpus": 0.1, **scaling}}), name="one")
        for address in (self.head, self.second):
            wait_until(lambda address=address: self.is_ready(address), 60)

    def is_ready(self, address: str) -> bool:
        try:
            return httpx.get(f"{address}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def running(self) -> int:
        """How many replicas answer."""
        from ray import serve

        deployments = serve.status().applications["one"].deployments
        return sum(one.replica_states.get("RUNNING", 0) for one in deployments.values())

    def actors(self) -> dict[str, Any]:
        """The processes of replicas by the names that answers carry."""
        names = [one["name"] for one in self.ray.util.list_named_actors(all_namespaces=True)]
        found = [name for name in names if name.startswith("SERVE_REPLICA::one#")]
        return {name.rpartition("#")[2]: self.ray.get_actor(name, namespace="serve") for name in found}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head, second = free_port(), free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ONSIGHT_")]:
            patch.delenv(name)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path[1:]]))
        patch.setenv("ONSIGHT_API_KEY", "k")
        patch.setenv("ONSIGHT_UI", "off")
        patch.setenv("RAY_SERVE_WORKER_PROXY_HTTP_PORT", str(second))
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "onsight.hosts.ray.door")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster as Nodes

        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        node = nodes.add_node(num_cpus=2)
        ray.init(address=nodes.address, log_to_driver=False)
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": head})
        from onsight.hosts.ray import build

        # A node has a proxy as long as it has a replica: this model has one on each.
        scaling = {"min_replicas": 2, "max_replicas": 2, "replicas_a_node": 1, "cpus": 0.1}
        options = {"engine": "fake", "served_model_name": "beside", "scaling": scaling}
        serve.run(build(options), name="beside", route_prefix=BESIDE)
        try:
            yield Cluster(ray, nodes, node, f"http://127.0.0.1:{head}", f"http://127.0.0.1:{second}")
        finally:
            serve.shutdown()
            ray.shutdown()
            nodes.shutdown()


def chat(text: str = "hello", picture: str | None = None, **options: object) -> dict[str, object]:
    parts: list[dict[str, object]] = [{"type": "text", "text": text}]
    if picture is not None:
        parts.append({"type": "image_url", "image_url": {"url": picture}})
    return {"messages": [{"role": "user", "content": parts}], **options}


def ask(address: str, body: Mapping[str, object]) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=KEY, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"scaling": {"replicas": 2}}, "replicas"),
        ({"port": 80}, "option port has no effect here"),
        ({"colour": "red"}, "colour"),
        ({"no_auth": False}, "no key is set"),
    ],
)
def test_an_application_that_is_not_right_is_refused_before_it_is_deployed(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, object], why: str
) -> None:
    from onsight.core.errors import StartError
    from onsight.hosts.ray import build

    monkeypatch.delenv("ONSIGHT_API_KEY", raising=False)
    with pytest.raises(StartError, match=why):
        build(arguments)


def test_a_request_is_named_after_its_first_picture_else_after_its_first_words() -> None:
    from onsight.hosts.ray import conversation

    def name(body: Mapping[str, object]) -> str:
        return conversation(json.dumps(body).encode(), "application/json")

    first, second = (data_url(plain(size=(size, 24))) for size in (32, 33))
    assert name(chat("what?", first)) == name(chat("why?", first)) == name({"image": {"url": first}, "length": "short"})
    assert name(chat("what?", first)) != name(chat("what?", second))
    words = [{"role": "user", "content": "hello"}]
    later = [*words, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and now?"}]
    assert name({"messages": words}) == name({"messages": later, "max_tokens": 5}) == name({"input": words})
    assert name({"messages": words}) != name({"messages": later[2:]})
    form = b'--%b\r\nContent-Disposition: form-data; name="file"\r\n\r\npixels\r\n--%b--'
    forms = [
        conversation(form % (mark, mark), f"multipart/form-data; boundary={mark.decode()}") for mark in (b"a1", b"b2")
    ]
    assert forms[0] == forms[1]
    assert conversation(b"{", "application/json") != conversation(b"[", "application/json")
    long = json.dumps(chat("hello " * 200_000)).encode()
    assert conversation(long, "application/json") == hashlib.sha256(long).hexdigest()


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Callable[[ASGIApp, str], httpx.AsyncClient]:
    """Makes clients, with their addresses, of what stands in a proxy before `app`; bodies may have a megabyte."""
    from onsight.hosts.ray import door

    monkeypatch.setenv("ONSIGHT_MAX_BODY_MB", "1")
    monkeypatch.setattr("onsight.hosts.ray.set_up_logging", lambda settings: None)
    layers = door()
    doors: dict[ASGIApp, ASGIApp] = {}

    def client(app: ASGIApp, address: str) -> httpx.AsyncClient:
        if app not in doors:
            doors[app] = functools.reduce(
                lambda inner, layer: layer.cls(inner, *layer.args, **layer.kwargs), layers, app
            )
        transport = httpx.ASGITransport(doors[app], client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://proxy")

    return client


async def tell_length(scope: Scope, receive: Receive, send: Send) -> None:
    """A replica that answers how many bytes it was sent."""
    body = (await receive())["body"]
    await PlainTextResponse(str(len(body)), headers={ANSWERED_BY: "one"})(scope, receive, marked(send))


def marked(send: Send) -> Send:
    """Marks the end of an answer, as a replica does."""

    async def sign(message: Message) -> None:
        await send(message if message["type"] == "http.response.start" else {**message, "onsight.whole": True})

    return sign


@pytest.mark.parametrize("depth", [900, 950, 980, 990, 1000, 3000, 100_000])
async def test_what_is_nested_too_deeply_is_left_to_the_replica(
    caller: Callable[[ASGIApp, str], httpx.AsyncClient], depth: int
) -> None:
    body = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    async with caller(tell_length, "192.0.2.1") as client:
        answer = await client.post("/v1/chat/completions", content=body)
    assert (answer.status_code, answer.text) == (200, str(len(body)))


async def test_one_address_leaves_room_for_bodies_of_another(
    caller: Callable[[ASGIApp, str], httpx.AsyncClient],
) -> None:
    stalled = asyncio.Event()
    body = bytes(1 << 20)

    async def nearly() -> AsyncIterator[bytes]:
        yield body[8:]
        await stalled.wait()

    async def send_all_but_8(client: httpx.AsyncClient) -> int:
        headers = {"content-length": str(len(body))}
        return (await client.post("/v1/chat/completions", content=nearly(), headers=headers)).status_code

    async with caller(tell_length, "192.0.2.1") as many, caller(tell_length, "192.0.2.2") as other:
        sent = [asyncio.create_task(send_all_but_8(many)) for _ in range(8)]
        await asyncio.wait(sent, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert (await other.post("/v1/chat/completions", content=body)).status_code == 200
        assert (await many.post("/v1/chat/completions", content=body)).status_code == 429
        stalled.set()
        assert sorted(await asyncio.gather(*sent)) == [200] * 6 + [429] * 2


def test_plain_answers_and_streams_come_through_either_nodes_proxy(cluster: Cluster) -> None:
    cluster.deploy(min_replicas=2, max_replicas=2, replicas_a_node=1)
    whole = ask(cluster.head, chat(temperature=0))
    assert whole.status_code == 200
    text = whole.json()["choices"][0]["message"]["content"]
    assert text.startswith("fake engine: hello")
    streamed = ask(cluster.second, chat(temperature=0, stream=True))
    events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(one)["choices"][0]["delta"].get("content") or "" for one in events[:-1]) == text


def test_a_key_is_asked_for_and_refusals_are_the_servers_own(cluster: Cluster) -> None:
    cluster.deploy()
    assert httpx.post(f"{cluster.head}/v1/chat/completions", json=chat()).status_code == 401
    refused = ask(cluster.head, chat(colour="red"))
    assert refused.status_code == 400
    assert "colour" in refused.json()["error"]["message"]
    assert refused.headers.get_list("x-request-id") == [refused.headers["x-request-id"]]
    nowhere = httpx.get(f"{cluster.head}/nowhere", headers=KEY)
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")


def test_a_second_model_answers_under_its_own_prefix(cluster: Cluster) -> None:
    cluster.deploy()
    answer = ask(f"{cluster.second}{BESIDE}", chat())
    assert (answer.status_code, answer.json()["model"]) == (200, "beside")
    assert httpx.get(f"{cluster.second}{BESIDE}/v1/models").status_code == 401
    assert ask(cluster.second, chat()).json()["model"] != "beside"


def test_requests_about_one_picture_meet_in_one_replica_through_either_proxy(cluster: Cluster) -> None:
    cluster.deploy(min_replicas=2, max_replicas=2)
    pictures = [data_url(plain(size=(32 + index, 24))) for index in range(12)]
    met = [{ask(address, chat("what?", one)).headers[ANSWERED_BY] for address in _both(cluster)} for one in pictures]
    assert all(len(replicas) == 1 for replicas in met)
    assert len(set.union(*met)) == 2
    # The conversation goes on where it began.
    later = chat("what?", pictures[0])["messages"], [{"role": "assistant", "content": "blue"}], chat("why?")["messages"]
    body = {"messages": [turn for turns in later for turn in turns]}  # type: ignore[attr-defined]
    assert {ask(cluster.head, body).headers[ANSWERED_BY]} == met[0]


def _both(cluster: Cluster) -> tuple[str, str]:
    return cluster.head, cluster.second


class Load:
    """Callers that ask again and again until they are told to stop. `seen`: statuses and errors, and how many."""

    def __init__(self, addresses: tuple[str, ...], callers: int, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self.seen: Counter[str] = Counter()
        self._stopped = False
        self._callers = [asyncio.create_task(self._call(addresses[index % len(addresses)])) for index in range(callers)]

    async def _call(self, address: str) -> None:
        async with httpx.AsyncClient(headers=KEY, timeout=60) as client:
            count = 0
            while not self._stopped:
                count += 1
                await asyncio.sleep(self._pause_s)
                body = chat(f"question {count} of {id(client)}", max_tokens=2000)
                try:
                    answer = await client.post(f"{address}/v1/chat/completions", json=body)
                    self.seen[str(answer.status_code)] += 1
                except httpx.TransportError as error:
                    self.seen[type(error).__name__] += 1
                    await asyncio.sleep(0.1)

    async def stop(self) -> Counter[str]:
        self._stopped = True
        await asyncio.gather(*self._callers)
        return self.seen


async def until(true: object, timeout_s: float = 60.0) -> None:
    """As `wait_until`, while callers go on."""
    await asyncio.to_thread(wait_until, true, timeout_s)


async def test_replicas_come_with_load_and_go_after_it_and_no_request_is_lost(cluster: Cluster) -> None:
    cluster.deploy(min_replicas=1, max_replicas=3, target_requests=1, upscale_delay_s=0.2, downscale_delay_s=1)
    load = Load(_both(cluster), 8)
    await until(lambda: cluster.running() == 3)
    seen = await load.stop()
    few = Load((cluster.head,), 1, pause_s=0.2)
    await until(lambda: cluster.running() == 1)
    seen += await few.stop()
    assert seen.keys() == {"200"}


async def test_a_killed_replica_costs_no_request_that_has_not_begun_and_ends_streams_with_an_error(
    cluster: Cluster,
) -> None:
    cluster.deploy(min_replicas=2, max_replicas=2)
    load = Load((cluster.head,), 6)
    await until(lambda: load.seen["200"] > 6)
    actors = await asyncio.to_thread(cluster.actors)
    async with httpx.AsyncClient(headers=KEY, timeout=60) as client:
        body = chat("long " * 1000, stream=True, max_tokens=4000)
        async with client.stream("POST", f"{cluster.head}/v1/chat/completions", json=body) as response:
            pieces = response.aiter_text()
            first = await anext(pieces)
            cluster.ray.kill(actors[response.headers[ANSWERED_BY]])
            text = first + "".join([piece async for piece in pieces])
    error = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "replica_lost")
    killed_at = load.seen["200"]
    await until(lambda: load.seen["200"] > killed_at + 40)
    assert (await load.stop()).keys() == {"200"}


def test_a_replica_whose_engine_is_dead_is_replaced(cluster: Cluster) -> None:
    cluster.deploy()
    first = ask(cluster.head, chat()).headers[ANSWERED_BY]

    def end_engine(_: object) -> int:
        import gc

        from onsight.engines.fake_engine import FakeEngine

        gc.unfreeze()  # what Ray took out of the collector's sight
        engines = [one for one in gc.get_objects() if type(one) is FakeEngine]
        for engine in engines:
            engine._state = "dead"
        return len(engines)

    assert cluster.ray.get(cluster.actors()[first].__ray_call__.remote(end_engine)) == 1
    assert ask(cluster.head, chat()).status_code == 503

    def is_replaced() -> bool:
        answer = ask(cluster.head, chat())
        return answer.status_code == 200 and answer.headers[ANSWERED_BY] != first

    wait_until(is_replaced, 60)


async def test_a_lost_node_costs_the_connections_to_its_own_proxy_alone(cluster: Cluster) -> None:
    cluster.deploy(min_replicas=2, max_replicas=2, replicas_a_node=1)
    near, far = Load((cluster.head,), 4), Load((cluster.second,), 4)
    await until(lambda: min(near.seen["200"], far.seen["200"]) > 8)
    await asyncio.to_thread(cluster.nodes.remove_node, cluster.node, allow_graceful=False)
    lost_at = near.seen["200"]
    await until(lambda: near.seen["200"] > lost_at + 40)
    told, lost = await near.stop(), await far.stop()
    assert told.keys() == {"200"}
    assert lost.pop("200") > 8
    assert lost.keys() <= {"ReadError", "RemoteProtocolError", "ConnectError"}
    assert lost.total() >= 1
    print(f"connections lost with their own proxy: {lost}")


def test_a_cluster_answers_who_has_its_token_and_nobody_with_another() -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # Ray's sockets take long paths ill
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
        start = ["start", "--head", "--block", "--num-cpus", "1", "--include-dashboard", "false", "--temp-dir", folder]
        command = [sys.executable, "-m", "ray.scripts.scripts", *start, "--port", str(port)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as head:
            try:
                wait_until(lambda: joins(port, environment), 60)
                assert not joins(port, {**environment, "RAY_AUTH_TOKEN": TOKEN[::-1]})
            finally:
                head.terminate()


TOKEN = "0123456789abcdef" * 4


def joins(port: int, environment: Mapping[str, str]) -> bool:
    """Whether the cluster runs a task for one with this environment."""
    script = f"import ray; ray.init(address='127.0.0.1:{port}'); print(ray.get(ray.remote(lambda: 'in').remote()))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout.endswith("in\n")
