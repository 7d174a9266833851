"""The API does what its own description says, whatever is made of that description: schemathesis, all checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import APIOperation, BaseSchema

from onsight.api.app import ApiSettings
from onsight.api.keys import KeyBook, new_key, write_keys
from onsight.api.rates import Rate
from onsight.tasks.admission import QueueLimits
from tests.security.doors import House

# A description cannot say which base64 holds a picture, or that the last message is the user's.
MAY_BE_REFUSED = [200, 400, 404, 413, 422]
MUST_BE_REFUSED = [400, 404, 405, 406, 415, 422]
KINDS = {"no key": 401, "another key": 403, "often": 429, "full": 429, "stopping": 503, "late": 504}
"""Servers that refuse nearly everything, and how."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("uploads"))
    yield house
    house.door.close()


def description(house: House, *also: int) -> BaseSchema:
    """What the application says of itself; it may answer anything with the statuses `also`."""
    checks = {
        "positive_data_acceptance": {"expected-statuses": [*MAY_BE_REFUSED, *also]},
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", *also]},
        "negative_data_rejection": {"expected-statuses": [*MUST_BE_REFUSED, *also]},
    }
    config = SchemathesisConfig.from_dict({"checks": checks})
    return schemathesis.openapi.from_asgi("/openapi.json", house.bench.app, config=config)


@pytest.fixture(scope="module")
def described(house: House) -> BaseSchema:
    return description(house)


def operations(described: BaseSchema) -> list[APIOperation]:
    return [found.ok() for found in described.get_all_operations()]


def ask_all(operation: APIOperation, mode: GenerationMode, cases: int, headers: dict[str, str]) -> Counter[int]:
    """Send what `mode` makes of the operation's description; every check holds of every answer. Their statuses."""
    told: Counter[int] = Counter()

    @seed(1)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        told[case.call_and_validate(headers=headers).status_code] += 1

    ask()
    return told


def ask_everything(
    described: BaseSchema, mode: GenerationMode, cases: int, headers: dict[str, str] | None = None
) -> Counter[int]:
    """`cases` for each route, wrong ones for those alone that read a body. The answers' statuses."""
    wrong, told = mode is GenerationMode.NEGATIVE, Counter[int]()
    for operation in operations(described):
        if operation.body or not wrong:
            told += ask_all(operation, mode, cases, headers or {})
    return told


def strict(kind: str, folder: Path) -> tuple[House, dict[str, str]]:
    """A house that refuses nearly everything, and what its callers send."""
    text, key = new_key("caller", ("embed",) if kind == "another key" else ("admin",))
    write_keys(folder / "keys.json", [key])
    settings = ApiSettings(
        keys=KeyBook(file=folder / "keys.json"), open_docs=True, rate_by_key=Rate("key", 1) if kind == "often" else None
    )
    house = House(folder, settings, QueueLimits(timeout_s=0.01 if kind == "late" else None))
    house.engine.step_s = house.pages.step_s = 10.0 if kind == "late" else 0.0
    if kind == "full":
        house.admission.taken = house.admission.places
    if kind == "stopping":
        house.admission.close()
    return house, {} if kind == "no key" else {"authorization": f"Bearer {text}"}


def ask_the_strict(kind: str, mode: GenerationMode, folder: Path, cases: int) -> Counter[int]:
    house, headers = strict(kind, folder)
    try:
        return ask_everything(description(house, KINDS[kind]), mode, cases, headers)
    finally:
        house.door.close()


MODES = pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])


@MODES
def test_every_route_answers_as_it_is_described(described: BaseSchema, house: House, mode: GenerationMode) -> None:
    assert ask_everything(described, mode, 10).total() > 100
    assert house.admission.taken == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_refusal_is_as_it_is_described(kind: str, tmp_path: Path) -> None:
    told = ask_the_strict(kind, GenerationMode.POSITIVE, tmp_path, 2)
    assert told[KINDS[kind]] >= 2, told


@pytest.mark.slow
@MODES
def test_every_route_answers_as_it_is_described_thousands_of_times(
    described: BaseSchema, house: House, mode: GenerationMode
) -> None:
    assert ask_everything(described, mode, 400).total() > 2000
    assert house.admission.taken == 0


@pytest.mark.slow
@MODES
@pytest.mark.parametrize("kind", KINDS)
def test_every_refusal_is_as_it_is_described_thousands_of_times(
    kind: str, tmp_path: Path, mode: GenerationMode
) -> None:
    told = ask_the_strict(kind, mode, tmp_path, 100)
    assert told.total() > 1000
    if (kind, mode) == ("late", GenerationMode.NEGATIVE):
        assert set(told) <= {400, 404, 422}, f"refused before any work, so never late: {told}"
    else:
        assert told[KINDS[kind]] > 20, told
