"""The simulator: an installation that is served."""

from __future__ import annotations

import os
import shutil
import tempfile

from comfyui_runner.simulator.folders import FOLDERS
from comfyui_runner.simulator.handler import Server
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.pictures import draw


class Simulator(Installation):
    """A simulated ComfyUI server in threads of this process; its arguments are Installation's."""

    _server: Server | None = None
    #: The temporary folder that start() made: stop() removes it, and nothing else.
    _made_folder = ""

    def start(self) -> Simulator:
        """Make the folders and listen. Raises OSError if the port is taken."""
        if self.is_temporary and not self.root:
            self._made_folder = tempfile.mkdtemp(prefix="comfyui-simulator-")
            self.root = self._made_folder
        self.root = os.path.realpath(self.root)
        for folder in FOLDERS:
            os.makedirs(self.folder(folder), exist_ok=True)
        if self.is_temporary:
            with open(os.path.join(self.folder("input"), "example.png"), "wb") as file:
                file.write(draw(512, 512, 0, ["SIMULATED", "EXAMPLE"]))
        self.revive()
        return self

    def stop(self) -> None:
        """Stop, cut everything and remove the temporary folder."""
        self.crash()
        if self._made_folder:
            shutil.rmtree(self._made_folder, ignore_errors=True)
            self._made_folder = self.root = ""

    def __enter__(self) -> Simulator:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def restart(self) -> None:
        """Be killed and started again: queue, history, temp/, sockets, running prompt are gone."""
        self.crash()
        self.revive()

    def crash(self) -> None:
        """Stop listening and cut everything, as a killed process does."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def revive(self) -> None:
        """Listen again on the same port, with nothing in memory."""
        if self._server is not None:
            return
        shutil.rmtree(self.folder("temp"), ignore_errors=True)
        os.makedirs(self.folder("temp"), exist_ok=True)
        self._server = Server(self, (self.host, self.port))
        self.port = self._server.server_address[1]

    def cut_websockets(self) -> None:
        """Cut all sockets without a close frame."""
        if self._server is not None:
            self._server.life.cut_websockets()
