"""What the server has counted, read from its metrics."""

from __future__ import annotations

import asyncio
import re
import urllib.request

from soaking.serving import Server

_LINE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


async def late_answers(server: Server) -> tuple[int, int]:
    """Requests of `work` that were answered after their deadlines, or with nobody there; and all
    that were answered."""
    text = await asyncio.to_thread(_read, f"http://{server.http}/metrics")
    late = answered = 0.0
    for name, labels, value in _LINE.findall(text):
        if 'model="work"' in labels:
            late += float(value) * (name == "headrace_wasted_requests_total")
            counts = name == "headrace_requests_total" and 'outcome="answered"' in labels
            answered += float(value) * counts
    return round(late), round(answered)


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())
