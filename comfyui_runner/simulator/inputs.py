"""The inputs of nodes: their types and settings, in the form of /object_info."""

from __future__ import annotations

from typing import Any, Tuple

from comfyui_runner.simulator.prompts import Json

#: The type of an input, or the list of its options, and its settings. A type that begins with "@"
#: stands for a list that Installation.options() makes: models, or files in input/.
Spec = Tuple[Any, Json]

FILE_LIST_MARK = "@"


def link_to(output_type: str) -> Spec:
    """An input that only a link can fill; "*" takes any type."""
    return output_type, {}


def list_of(what: str, **settings: Any) -> Spec:
    """An input with the models of a folder, or the files of a type, as its options."""
    return FILE_LIST_MARK + what, settings


def choice_of(options: list[str], **settings: Any) -> Spec:
    """An input with fixed options."""
    return options, settings


def number_from(number_type: str, default: float, low: float, high: float, **more: Any) -> Spec:
    """An INT or a FLOAT with its bounds."""
    return number_type, {"default": default, "min": low, "max": high, **more}


SAMPLERS = """
    euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0
    exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral
    dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde
    dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm
    ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
    res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2
    seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2
"""
SCHEDULERS = """
    simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal
"""

# Links.

AUDIO = link_to("AUDIO")
CLIP = link_to("CLIP")
CONDITIONING = link_to("CONDITIONING")
IMAGE = link_to("IMAGE")
LATENT = link_to("LATENT")
MODEL = link_to("MODEL")
VAE = link_to("VAE")
VIDEO = link_to("VIDEO")
ANYTHING = link_to("*")

# Files and options.

CHECKPOINT_NAME = list_of("checkpoints")
DIFFUSION_MODEL_NAME = list_of("diffusion_models")
LORA_NAME = list_of("loras")
VAE_NAME = list_of("vae")
IMAGE_FILE = list_of("image", image_upload=True)
AUDIO_FILE = list_of("audio", multiselect=False, audio_upload=True)
VIDEO_FILE = list_of("video", multiselect=False, video_upload=True)
SAMPLER_NAME = choice_of(SAMPLERS.split())
SCHEDULER = choice_of(SCHEDULERS.split())
UPSCALE_METHOD = choice_of(["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
CROP = choice_of(["disabled", "center"])
CHANNEL = choice_of(["alpha", "red", "green", "blue"])
ADD_NOISE = choice_of(["enable", "disable"], advanced=True)
LEFTOVER_NOISE = choice_of(["disable", "enable"], advanced=True)
WEIGHT_DTYPE = choice_of(["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"], advanced=True)
VIDEO_FORMAT: Spec = (
    "COMBO",
    {"default": "auto", "multiselect": False, "options": ["auto", "mp4"]},
)
VIDEO_CODEC: Spec = (
    "COMBO",
    {"default": "auto", "multiselect": False, "options": ["auto", "h264"]},
)

# Numbers.

SEED = number_from("INT", 0, 0, 2**64 - 1, control_after_generate=True)
STEPS = number_from("INT", 20, 1, 10000)
SLOW_STEPS = number_from("INT", 20, 1, 1000000)
START_AT_STEP = number_from("INT", 0, 0, 10000, advanced=True)
END_AT_STEP = number_from("INT", 10000, 0, 10000, advanced=True)
CFG = number_from("FLOAT", 8.0, 0.0, 100.0, step=0.1, round=0.01)
DENOISE = number_from("FLOAT", 1.0, 0.0, 1.0, step=0.01)
STRENGTH = number_from("FLOAT", 1.0, -100.0, 100.0, step=0.01)
SECONDS = number_from("FLOAT", 10.0, 0.0, 3600.0)
BATCH_SIZE = number_from("INT", 1, 1, 4096)
LATENT_SIDE = number_from("INT", 512, 16, 16384, step=8)
IMAGE_SIDE = number_from("INT", 512, 1, 16384, step=1)
SCALED_SIDE = number_from("INT", 512, 0, 16384, step=1)
COLOR = number_from("INT", 0, 0, 0xFFFFFF, step=1, display="color")

# Texts and switches.

PROMPT_TEXT: Spec = ("STRING", {"multiline": True, "dynamicPrompts": True})
TEXT: Spec = ("STRING", {"multiline": True})
ERROR_MESSAGE: Spec = ("STRING", {"default": "boom"})
IMAGE_PREFIX: Spec = ("STRING", {"default": "ComfyUI"})
AUDIO_PREFIX: Spec = ("STRING", {"default": "audio/ComfyUI", "multiline": False})
VIDEO_PREFIX: Spec = ("STRING", {"default": "video/ComfyUI", "multiline": False})
PREVIEW: Spec = ("BOOLEAN", {"default": False})
