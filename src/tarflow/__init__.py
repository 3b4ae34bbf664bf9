"""tarflow: normalizing flows on images with causal Transformers (TarFlow, arXiv 2412.06329).

The names below are imported when they are first used (PEP 562), so that `import tarflow` and `tarflow --help` are fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "tarflow.config",
    "TarFlowConfig": "tarflow.config",
    "TarFlow": "tarflow.model.flow",
    "SequenceConfig": "tarflow.model.config",
    "SequenceFlow": "tarflow.model.sequence",
    "VectorConfig": "tarflow.model.config",
    "VectorFlow": "tarflow.model.vector",
    "from_pretrained": "tarflow.model.saving",
    "NULL_CLASS": "tarflow.model.condition",
    "second_order": "tarflow.model.derivatives",
    "Auto": "tarflow.sampling.auto",
    "Calibration": "tarflow.sampling.auto",
    "Guidance": "tarflow.sampling.guidance",
    "Jacobi": "tarflow.sampling.jacobi",
    "SampleBatch": "tarflow.sampling.sample",
    "SamplingError": "tarflow.sampling.sample",
    "Sequential": "tarflow.sampling.sequential",
    "sample": "tarflow.sampling.sample",
    "sample_batches": "tarflow.sampling.sample",
    "denoise": "tarflow.sampling.denoise",
    "narrowed": "tarflow.sampling.narrow",
    "FlowDistribution": "tarflow.sampling.distribution",
    "InverseFlow": "tarflow.sampling.inverse",
    "Observed": "tarflow.sampling.observed",
    "Inpainted": "tarflow.sampling.inpaint",
    "inpaint": "tarflow.sampling.inpaint",
    "mixed_kl": "tarflow.sampling.objectives",
    "reverse_kl": "tarflow.sampling.objectives",
    "interpolate": "tarflow.sampling.editing",
    "reconstruct": "tarflow.sampling.editing",
    "resample": "tarflow.sampling.editing",
    "trace": "tarflow.sampling.editing",
    "Estimate": "tarflow.inference.estimate",
    "Weighted": "tarflow.inference.weights",
    "importance": "tarflow.inference.weights",
    "hmc": "tarflow.inference.hmc",
    "independence_metropolis": "tarflow.inference.chains",
    "load_official": "tarflow.interop",
    "Measure": "tarflow.measure",
    "patch_log_prob": "tarflow.evaluation.likelihood.patch_maps",
    "export": "tarflow.exporting",
    "load_images": "tarflow.data.load",
    "save_sheet": "tarflow.pictures",
    "show": "tarflow.pictures",
    "to_images": "tarflow.pictures",
    "from_pil": "tarflow.runs",
    "Run": "tarflow.runs",
    "open_run": "tarflow.tables",
    "train": "tarflow.runs",
    "Setting": "tarflow.sampling.setting",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from tarflow.config import ConfigError as ConfigError
    from tarflow.config import TarFlowConfig as TarFlowConfig
    from tarflow.data.load import load_images as load_images
    from tarflow.evaluation.likelihood.patch_maps import patch_log_prob as patch_log_prob
    from tarflow.exporting import export as export
    from tarflow.inference.chains import independence_metropolis as independence_metropolis
    from tarflow.inference.estimate import Estimate as Estimate
    from tarflow.inference.hmc import hmc as hmc
    from tarflow.inference.weights import Weighted as Weighted
    from tarflow.inference.weights import importance as importance
    from tarflow.interop import load_official as load_official
    from tarflow.measure import Measure as Measure
    from tarflow.model.condition import NULL_CLASS as NULL_CLASS
    from tarflow.model.config import SequenceConfig as SequenceConfig
    from tarflow.model.config import VectorConfig as VectorConfig
    from tarflow.model.derivatives import second_order as second_order
    from tarflow.model.flow import TarFlow as TarFlow
    from tarflow.model.saving import from_pretrained as from_pretrained
    from tarflow.model.sequence import SequenceFlow as SequenceFlow
    from tarflow.model.vector import VectorFlow as VectorFlow
    from tarflow.pictures import save_sheet as save_sheet
    from tarflow.pictures import show as show
    from tarflow.pictures import to_images as to_images
    from tarflow.runs import Run as Run
    from tarflow.runs import from_pil as from_pil
    from tarflow.runs import train as train
    from tarflow.sampling.auto import Auto as Auto
    from tarflow.sampling.auto import Calibration as Calibration
    from tarflow.sampling.denoise import denoise as denoise
    from tarflow.sampling.distribution import FlowDistribution as FlowDistribution
    from tarflow.sampling.editing import interpolate as interpolate
    from tarflow.sampling.editing import reconstruct as reconstruct
    from tarflow.sampling.editing import resample as resample
    from tarflow.sampling.editing import trace as trace
    from tarflow.sampling.guidance import Guidance as Guidance
    from tarflow.sampling.inpaint import Inpainted as Inpainted
    from tarflow.sampling.inpaint import inpaint as inpaint
    from tarflow.sampling.inverse import InverseFlow as InverseFlow
    from tarflow.sampling.jacobi import Jacobi as Jacobi
    from tarflow.sampling.narrow import narrowed as narrowed
    from tarflow.sampling.objectives import mixed_kl as mixed_kl
    from tarflow.sampling.objectives import reverse_kl as reverse_kl
    from tarflow.sampling.observed import Observed as Observed
    from tarflow.sampling.sample import SampleBatch as SampleBatch
    from tarflow.sampling.sample import SamplingError as SamplingError
    from tarflow.sampling.sample import sample as sample
    from tarflow.sampling.sample import sample_batches as sample_batches
    from tarflow.sampling.sequential import Sequential as Sequential
    from tarflow.sampling.setting import Setting as Setting
    from tarflow.tables import open_run as open_run


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tarflow' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
