"""The API does what its own description says, whatever is made of that description: schemathesis, all checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import APIOperation, BaseSchema

from tests.security.doors import House

# A description cannot say which base64 holds a picture, or that the last message is the user's.
MAY_BE_REFUSED = {"positive_data_acceptance": {"expected-statuses": [200, 400, 404, 413, 422]}}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("uploads"))
    yield house
    house.door.close()


@pytest.fixture(scope="module")
def described(house: House) -> BaseSchema:
    config = SchemathesisConfig.from_dict({"checks": MAY_BE_REFUSED})
    return schemathesis.openapi.from_asgi("/openapi.json", house.bench.app, config=config)


def operations(described: BaseSchema) -> list[APIOperation]:
    return [found.ok() for found in described.get_all_operations()]


def ask_all(operation: APIOperation, mode: GenerationMode, cases: int) -> int:
    """Send what `mode` makes of the operation's description; every check holds of every answer. How many were sent."""
    asked = 0

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
        nonlocal asked
        asked += 1
        case.call_and_validate()

    ask()
    return asked


def ask_everything(described: BaseSchema, mode: GenerationMode, cases: int) -> int:
    """`cases` for each route, wrong ones for those alone that read a body. How many were sent."""
    wrong = mode is GenerationMode.NEGATIVE
    return sum(ask_all(operation, mode, cases) for operation in operations(described) if operation.body or not wrong)


MODES = pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])


@MODES
def test_every_route_answers_as_it_is_described(described: BaseSchema, house: House, mode: GenerationMode) -> None:
    assert ask_everything(described, mode, 10) > 100
    assert house.admission.taken == 0


@pytest.mark.slow
@MODES
def test_every_route_answers_as_it_is_described_thousands_of_times(
    described: BaseSchema, house: House, mode: GenerationMode
) -> None:
    assert ask_everything(described, mode, 400) > 2000
    assert house.admission.taken == 0
