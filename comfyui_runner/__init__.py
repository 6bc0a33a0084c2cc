"""What comfyui_workflow_runner.py stands on. The script beside this folder tells the story."""

__version__ = "0.1.0"
