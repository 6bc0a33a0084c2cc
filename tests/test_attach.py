"""--attach behind a load balancer: the server of a prompt is found, and the others are left."""

from __future__ import annotations

import threading
from typing import Any, List

import pytest
from served import Make, post_elsewhere
from support import FAST, run, slow_prompt, wait_until
from test_cookies import Sticky, make_balancer  # noqa: F401 - a fixture

from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.attach import find_prompt


def count_sockets(simulator: Any) -> int:
    return len(simulator._server.life.sockets)


def test_the_prompt_of_one_of_three_servers_is_found(
    make_simulator: Make,
    make_balancer: Make,  # noqa: F811
) -> None:
    servers = [make_simulator() for _ in range(3)]
    balancer = make_balancer(servers, Sticky(3))
    # The look for a ComfyUI goes to server 1, the first tries to 2 and to 0.
    prompt_id = post_elsewhere(servers[1], slow_prompt(steps=200, seconds=60.0))
    outcomes: List[Any] = []
    arguments = ("--server", balancer.url, "--json", "--attach", prompt_id)
    thread = threading.Thread(target=lambda: outcomes.append(run(*arguments)))
    thread.start()
    tried = wait_until(lambda: [seen.server for seen in balancer.seen if seen.path == "/ws"][2:], what="three tries")
    assert tried == [1]
    wait_until(lambda: [count_sockets(server) for server in servers] == [0, 1, 0], what="the end of the other sockets")
    servers[1]._server.life.interrupt(prompt_id)
    thread.join(15.0)
    assert outcomes[0].status == ExitStatus.INTERRUPTED
    assert outcomes[0].event("end")["prompt_id"] == prompt_id
    assert len([seen for seen in balancer.seen if seen.path == "/ws"]) == 3


@pytest.mark.parametrize(("has_balancer", "tries"), [(True, 4), (False, 1)])
def test_a_prompt_that_no_server_has_is_looked_for_a_limited_number_of_times(
    has_balancer: bool,
    tries: int,
    make_simulator: Make,
    make_balancer: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(find_prompt.__globals__, "ATTACH_TRIES", 4)
    simulator = make_simulator()
    url = make_balancer([simulator], Sticky(1)).url if has_balancer else simulator.url
    result = run("--server", url, "--attach", "00000000-0000-4000-8000-000000000000", limits=FAST)
    assert result.status == ExitStatus.LOST
    assert result.err.startswith("ComfyUI does not know the prompt 00000000-0000-4000-8000-000000000000.")
    assert [path for _, path in simulator.requests].count("/ws") == tries
