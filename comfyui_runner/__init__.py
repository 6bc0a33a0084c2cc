"""ComfyUI Workflow Runner: how each step of comfyui_workflow_runner.py is done."""
