"""The node classes: what /object_info tells of them, and which action each has."""

from __future__ import annotations

from typing import Any, Tuple

from comfyui_runner.simulator.actions import ACTIONS, pass_on
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.prompts import Json

Spec = Tuple[Any, Json]  # (type or list of options, settings), as in /object_info


class Node:
    """A node class: what /object_info tells of it, and what it does with its inputs."""

    def __init__(self, row: str) -> None:
        head, outputs, self.category, self.display, inputs, action = row.split("|")
        self.name, self.output_node = head.rstrip("!"), head.endswith("!")
        self.outputs = [entry.partition(":")[0] for entry in outputs.split()]
        self.run = ACTIONS.get(action) or pass_on(action[1:], self.outputs)
        self.output_names = [entry.partition(":")[2] or entry for entry in outputs.split()]
        self.specs: dict[str, Spec] = {}
        self.optional: set[str] = set()
        for entry in inputs.split():
            key, _, kind = entry.partition(":")
            if key.endswith("?"):
                self.optional.add(key[:-1])
            self.specs[key.rstrip("?")] = _SPECS.get(kind, (kind, {}))

    def inputs(self, sim: Installation) -> dict[str, Spec]:
        """The specs with lists of files filled in: "@loras", or "@image" of the input folder."""
        return {
            key: (sim.options(kind[1:]) if kind[0][0] == "@" else kind, settings)
            for key, (kind, settings) in self.specs.items()
        }

    def info(self, sim: Installation) -> Json:
        """The entry in /object_info."""
        specs: dict[str, Json] = {"required": {}}
        for key, (kind, settings) in self.inputs(sim).items():
            group = specs.setdefault("optional" if key in self.optional else "required", {})
            group[key] = [kind, settings] if settings else [kind]
        info: Json = {
            "input": specs,
            "input_order": {group: list(entries) for group, entries in specs.items()},
            "output": self.outputs,
            "output_is_list": [False] * len(self.outputs),
            "output_name": self.output_names,
            "name": self.name,
            "display_name": self.display,
            "description": "",
            "python_module": "comfyui_runner.simulator" if self.category == "test" else "nodes",
            "category": self.category,
            "output_node": self.output_node,
        }
        if sim.has("jobs"):
            info.update(is_input_list=False, has_intermediate_output=False, search_aliases=[])
        return info


def _number(kind: str, default: float, low: float, high: float, **more: Any) -> Spec:
    return kind, {"default": default, "min": low, "max": high, **more}


def _text(default: str | None = None, **more: Any) -> Spec:
    return "STRING", more if default is None else {"default": default, **more}


_SAMPLERS = """euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0
    exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral
    dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde
    dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm
    ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
    res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2
    seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2"""
_SCHEDULERS = """simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic
    kl_optimal"""
_DTYPES = "default fp8_e4m3fn fp8_e4m3fn_fast fp8_e5m2"
_AUTO = {"default": "auto", "multiselect": False}

#: The inputs in the table of nodes; a name that is not here is a type without settings.
_SPECS: dict[str, Spec] = {
    "add_noise": (["enable", "disable"], {"advanced": True}),
    "audio": ("@audio", {"multiselect": False, "audio_upload": True}),
    "batch": _number("INT", 1, 1, 4096),
    "cfg": _number("FLOAT", 8.0, 0.0, 100.0, step=0.1, round=0.01),
    "codec": ("COMBO", {**_AUTO, "options": ["auto", "h264"]}),
    "color": _number("INT", 0, 0, 0xFFFFFF, step=1, display="color"),
    "denoise": _number("FLOAT", 1.0, 0.0, 1.0, step=0.01),
    "format": ("COMBO", {**_AUTO, "options": ["auto", "mp4"]}),
    "image": ("@image", {"image_upload": True}),
    "latent_side": _number("INT", 512, 16, 16384, step=8),
    "leftover": (["disable", "enable"], {"advanced": True}),
    "message": _text("boom"),
    "preview": ("BOOLEAN", {"default": False}),
    "samplers": (_SAMPLERS.split(), {}),
    "schedulers": (_SCHEDULERS.split(), {}),
    "seconds": _number("FLOAT", 10.0, 0.0, 3600.0),
    "seed": _number("INT", 0, 0, 2**64 - 1, control_after_generate=True),
    "side": _number("INT", 512, 1, 16384, step=1),
    "side0": _number("INT", 512, 0, 16384, step=1),
    "slow_steps": _number("INT", 20, 1, 1000000),
    "start": _number("INT", 0, 0, 10000, advanced=True),
    "steps": _number("INT", 20, 1, 10000),
    "strength": _number("FLOAT", 1.0, -100.0, 100.0, step=0.01),
    "stop": _number("INT", 10000, 0, 10000, advanced=True),
    "text": _text(multiline=True),
    "to_audio": _text("audio/ComfyUI", multiline=False),
    "to_image": _text("ComfyUI"),
    "to_video": _text("video/ComfyUI", multiline=False),
    "words": _text(multiline=True, dynamicPrompts=True),
    "upscale": (["nearest-exact", "bilinear", "area", "bicubic", "lanczos"], {}),
    "crop": (["disabled", "center"], {}),
    "channel": (["alpha", "red", "green", "blue"], {}),
    "video": ("@video", {"multiselect": False, "video_upload": True}),
    "dtype": (_DTYPES.split(), {"advanced": True}),
}

#: Class (! = output node) | outputs, TYPE or TYPE:name | category | title
#: | inputs, ? = optional | action.
#: ComfyUI's own classes, as its /object_info lists them, then those for tests.
_TABLE = """
CheckpointLoaderSimple|MODEL CLIP VAE|model/loaders|Load Checkpoint|ckpt_name:@checkpoints|
CLIPTextEncode|CONDITIONING|model/conditioning|CLIP Text Encode (Prompt)|text:words
  clip:CLIP|=text
EmptyLatentImage|LATENT|model/latent|Empty Latent Image|width:latent_side height:latent_side
  batch_size:batch|empty
KSampler|LATENT|model/sampling|KSampler|model:MODEL seed:seed steps:steps cfg:cfg
  sampler_name:samplers scheduler:schedulers positive:CONDITIONING negative:CONDITIONING
  latent_image:LATENT denoise:denoise|sample
KSamplerAdvanced|LATENT|model/sampling|KSampler (Advanced)|model:MODEL add_noise:add_noise
  noise_seed:seed steps:steps cfg:cfg sampler_name:samplers scheduler:schedulers
  positive:CONDITIONING negative:CONDITIONING latent_image:LATENT start_at_step:start
  end_at_step:stop return_with_leftover_noise:leftover|sample
VAEDecode|IMAGE|model/latent|VAE Decode|samples:LATENT vae:VAE|=samples
VAEEncode|LATENT|model/latent|VAE Encode|pixels:IMAGE vae:VAE|=pixels
VAELoader|VAE|model/loaders|Load VAE|vae_name:@vae|
LoraLoader|MODEL CLIP|model/loaders|Load LoRA (Model and CLIP)|model:MODEL clip:CLIP
  lora_name:@loras strength_model:strength strength_clip:strength|
UNETLoader|MODEL|model/loaders|Load Diffusion Model|unet_name:@diffusion_models
  weight_dtype:dtype|
LoadImage|IMAGE MASK|image|Load Image|image:image|load
LoadImageMask|MASK|image|Load Image (as Mask)|image:image channel:channel|load
SaveImage!|IMAGE:images|image|Save Image|images:IMAGE filename_prefix:to_image|save
PreviewImage!|IMAGE:images|image|Preview Image|images:IMAGE|save
EmptyImage|IMAGE|image|Empty Image|width:side height:side batch_size:batch color:color|empty
ImageScale|IMAGE|image/upscaling|Upscale Image|image:IMAGE upscale_method:upscale width:side0
  height:side0 crop:crop|scale
ImageInvert|IMAGE|image/color|Invert Image Colors|image:IMAGE|=image
ImageBatch|IMAGE|image/batch|Batch Images (DEPRECATED)|image1:IMAGE image2:IMAGE|batch
PreviewAny!|STRING|utilities|Preview as Text|source:*|show
SaveImageWebsocket!||image|Save Image (Websocket)|images:IMAGE|send
LoadAudio|AUDIO|audio|Load Audio|audio:audio|=audio
SaveAudio!|AUDIO:audio|audio|Save Audio (FLAC) (DEPRECATED)|audio:AUDIO
  filename_prefix:to_audio|save_audio
LoadVideo|VIDEO|video|Load Video|file:video|=file
SaveVideo!|VIDEO:video|video|Save Video|video:VIDEO filename_prefix:to_video format:format
  codec:codec|save_video
SlowProgress|IMAGE|test|Slow Progress (test)|steps:slow_steps seconds:seconds seed:seed
  preview:preview|slow
FailNode|IMAGE|test|Fail (test)|message:message image:IMAGE|fail
TextOut!||test|Text Out (test)|text:text|text
SimulatedOutput!||test|Simulated Output (test)|ui:text source?:*|simulate
"""


#: Every class there is.
NODES: dict[str, Node] = {node.name: node for node in map(Node, _TABLE.replace("\n  ", " ").strip().splitlines())}
