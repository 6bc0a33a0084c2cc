"""macOS's own Python has LibreSSL, of which urllib3 warns at each start."""

from __future__ import annotations

import subprocess
import sys

from support import ROOT

PROGRAM = """
import ssl
ssl.OPENSSL_VERSION = "LibreSSL 2.8.3"
from comfyui_runner.third_party import import_third_party
import_third_party("requests")
"""


def test_the_warning_is_not_shown() -> None:
    command = [sys.executable, "-W", "default", "-c", PROGRAM]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LibreSSL" not in result.stderr
