"""A stand-in for a ComfyUI server: no GPU, no models, and every picture says SIMULATED.

It answers the routes and sends the WebSocket messages of a real server, in the order of a real
server, so that a client can be shown, tested and written without one. Usage:

    python -m comfyui_runner.simulator --port 8188 --step-seconds 0.15

    with Simulator(version="0.3.64") as server:
        requests.get(server.url + "/queue")
        server.faults.drop_events = frozenset({"execution_success"})

Nothing is computed: a node only passes on the size and the seed of a picture. ``Simulator`` plays
the server versions listed in ``versions.SINCE``, and misbehaves as asked in ``Faults``.

The modules, each using only those above it:

- prompts, versions, faults, pictures, folders
- installation: what a restart keeps
- actions, inputs, node_class, nodes: what nodes do, and what /object_info says of them
- validation, order, signatures: what is wrong with a prompt, which node is next, what is cached
- frames, life: what is sent, and what a restart loses (queue, history, cache, sockets)
- running, jobs, sockets: prompts are executed, looked at, and followed
- bodies, forms, replies, http_request: the parts of HTTP
- info_routes, queue_routes, file_routes, job_routes, routes: the answers
- handler, server, command: the HTTP server, the class Simulator, the command line
"""

from comfyui_runner.simulator.faults import Faults
from comfyui_runner.simulator.pictures import draw, measure
from comfyui_runner.simulator.server import Simulator

__all__ = ["Faults", "Simulator", "draw", "measure"]
