"""A stand-in for a ComfyUI server: no GPU, no models, and every picture says SIMULATED.

It answers the routes and sends the WebSocket messages of a real server, in the order of a real
server, so that a client can be shown, tested and written without one. Usage:

    python -m comfyui_runner.simulator --port 8188 --step-seconds 0.15

    with Simulator(version="0.3.64") as server:
        requests.get(server.url + "/queue")
        server.faults.drop_events = frozenset({"execution_success"})

Nothing is computed: a node only passes on the size and the seed of a picture. ``Simulator`` plays
the server versions told apart in ``faults.SINCE``, and misbehaves as asked in ``Faults``.

The modules, each using only those above it: prompts, faults, pictures, installation (what a
restart keeps), actions and nodes, validation, life (what a restart loses), running, jobs, sockets,
forms, replies, handler (HTTP), server (the class Simulator), command.
"""

from comfyui_runner.simulator.faults import Faults
from comfyui_runner.simulator.pictures import draw, measure
from comfyui_runner.simulator.server import Simulator

__all__ = ["Faults", "Simulator", "draw", "measure"]
