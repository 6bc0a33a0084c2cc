"""The stacks that asyncio keeps in debug mode are short. To be imported before asyncio is.

With each task, future and callback, debug mode keeps where it was made, for messages about what was never awaited.
Under pytest that is 75 calls, each file of which is looked at on the disk: a third of the fast set's time. The four
calls next to it are enough to find it.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from types import FrameType
from typing import Optional

DEPTH = 4


def extract_few(f: Optional[FrameType] = None, limit: Optional[int] = None) -> traceback.StackSummary:
    """``traceback.extract_stack()`` of at most DEPTH calls, whose lines are read when they are shown."""
    here = f or sys._getframe(1)
    nearest = itertools.islice(traceback.walk_stack(here), limit or DEPTH)
    summaries = [
        traceback.FrameSummary(each.f_code.co_filename, line, each.f_code.co_name, lookup_line=False)
        for each, line in nearest
    ]
    return traceback.StackSummary.from_list(reversed(summaries))


# Tasks and futures, in C, take the function when asyncio is imported first; callbacks take it when they are made.
whole_stack = traceback.extract_stack
traceback.extract_stack = extract_few
try:
    import asyncio.format_helpers
finally:
    traceback.extract_stack = whole_stack
asyncio.format_helpers.extract_stack = extract_few
