"""Deadlines against the real server: who cannot be in time is told, and when to come back."""

from __future__ import annotations

import asyncio
import pathlib
import re

import grpc
import numpy as np

from headrace.client import AsyncClient, DeadlineExceeded, InferResult, Overloaded, RetryPolicy
from support import models, server

ROW = {"x": np.ones((1, 4), np.float32)}


async def test_a_crowd_with_deadlines_is_refused_not_computed_for_nobody(
    tmp_path: pathlib.Path,
) -> None:
    """Room for some twenty of 400 before their deadline: the others are refused, with RetryInfo."""
    repository = tmp_path / "models"
    models.write(
        repository,
        "slow",
        models.slowed(models.scaled(), steps=16000),
        toml="max_batch_size = 1\ninstances = 1\n",
    )
    with server.serving(tmp_path / "log", repository) as running:
        async with AsyncClient(running.grpc, retry=RetryPolicy(max_attempts=1)) as client:
            explained = await client.infer("slow", ROW, parameters={"headrace_explain": True})
            run = int(explained.parameters["headrace_expected_us"]) / 1e6
            calls = [client.infer("slow", ROW, deadline=20 * run) for _ in range(400)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            (figures,) = await client.model_statistics("slow")
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    answered = [outcome for outcome in outcomes if isinstance(outcome, InferResult)]
    assert refused
    assert answered
    for outcome in refused:
        assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert outcome.retry_after is not None
        assert outcome.retry_after > 0
        # Where runs became slow meanwhile, one alone may be too long: that has its own words.
        assert re.search("the deadline (cannot be met|is .* away)", outcome.details)
    others = {type(outcome) for outcome in outcomes} - {Overloaded, InferResult}
    assert others <= {DeadlineExceeded}
    # What ran was for somebody who could still hope: far from all 400 were computed.
    assert figures.execution_count < 200
