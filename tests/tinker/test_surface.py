"""Every public method of Tinker's SDK, version by version, against a gateway and a real trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.compat.stage import Stage
from tests.tinker.conftest import BASE
from tests.tinker.sdk import EACH_VERSION, NEWEST, environment, run
from tests.tinker.surface_table import PAGE, as_expected, page, row_of
from tests.trainer import tiny

pytestmark = pytest.mark.timeout(900)
SCRIPT = Path(__file__).with_name("surface.py")


@pytest.mark.parametrize("version", EACH_VERSION)
async def test_every_public_method_works_or_is_refused_as_the_table_says(
    stage: Stage, key: str, version: str, tmp_path: Path
) -> None:
    # The tokenizer is looked for in a directory of the base's name before any hub.
    tiny.write_model(tmp_path / BASE)
    variables = environment(stage.url, key, tmp_path)
    done = await run(version, variables, str(SCRIPT), json.dumps({"base": BASE}))
    assert done.code == 0, done.errors[-4000:]
    told = json.loads(done.output.splitlines()[-1])
    methods, found = told["methods"], told["found"]
    assert [method for method in methods if row_of(method) is None] == [], "not in the table"
    assert sorted(set(methods) - set(found)) == [], "not called"
    wrong = {name: text for name, text in found.items() if not as_expected(name, text)}
    assert wrong == {}
    if version == NEWEST:
        assert PAGE.read_text() == page(len(methods)), "python -m tests.tinker.surface_table > …"
