"""Typed configuration: YAML -> frozen dataclasses. Unknown keys are refused by name, impossible values by option.

``SystemConfig`` describes the networks and everything else that changes their output; it travels inside each checkpoint.
``TrainConfig`` describes a training run, ``ServeConfig`` a server.
"""

from .learning import LearningConfig
from .lora import LoraConfig
from .machines import MachinesConfig
from .reading import ConfigError, from_dict, load_yaml, read_yaml, set_option, to_dict
from .refine import NESTED, CorruptionConfig, JointConfig, PointsConfig, RefineConfig
from .serve import PacsConfig, ServeConfig, serve_config
from .system import (
    CoarseConfig,
    GateConfig,
    PostConfig,
    PpnConfig,
    PromptConfig,
    RefinerConfig,
    SafetyConfig,
    SamConfig,
    SystemConfig,
)
from .tower import TowerConfig
from .train import CoarseLossConfig, DataConfig, OptimiserConfig, TrainConfig
from .weak import WeakConfig

__all__ = [
    "NESTED",
    "CoarseConfig",
    "CoarseLossConfig",
    "ConfigError",
    "CorruptionConfig",
    "DataConfig",
    "GateConfig",
    "JointConfig",
    "LearningConfig",
    "LoraConfig",
    "MachinesConfig",
    "OptimiserConfig",
    "PacsConfig",
    "PointsConfig",
    "PostConfig",
    "PpnConfig",
    "PromptConfig",
    "RefineConfig",
    "RefinerConfig",
    "SafetyConfig",
    "SamConfig",
    "ServeConfig",
    "SystemConfig",
    "TowerConfig",
    "TrainConfig",
    "WeakConfig",
    "from_dict",
    "load_yaml",
    "read_yaml",
    "serve_config",
    "set_option",
    "to_dict",
]
