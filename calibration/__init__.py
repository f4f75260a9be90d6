"""From recorded attention to a plan, and from a plan to masks and orders. Knows no host."""

from .noise_bands import NoiseBands
from .plan import ModelIdentity, Origin, Plan, PlanError, PlanMismatchError
from .plan_file import load_plan, read_description, save_plan
from .plan_runtime import PlanRuntime
from .recorder import Recorder
from .runtime_options import RuntimeOptions
from .token_grid import TokenGrid

__all__ = [
    "ModelIdentity",
    "NoiseBands",
    "Origin",
    "Plan",
    "PlanError",
    "PlanMismatchError",
    "PlanRuntime",
    "Recorder",
    "RuntimeOptions",
    "TokenGrid",
    "load_plan",
    "read_description",
    "save_plan",
]
