"""What a recipe comes to: the layers of its networks with shapes and parameter counts, its loss, its schedule, its data.

Called by ``purkinje-train describe``. Networks of clips are built
without memory for their weights, so that any size can be described.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from training.config import RunConfig, describe
from training.coreecho.config import AnyEchoRun, CoReEchoRun, EchoRun
from training.ecg_cmr.config import EcgCmrRun
from training.enf.config import EnfRun
from training.signature import input_of

_DEPTH = 3
AnyRun = RunConfig | EnfRun | AnyEchoRun
"""Runs whose data are hearts or clips."""


def summary(config: AnyRun | EcgCmrRun) -> dict[str, Any]:
    """Return networks, loss, schedule and data first, then everything else that decides the run, as plain JSON values."""
    described = describe(config)
    if isinstance(config, EcgCmrRun):
        return _of_pairs(config, described)
    first = {"recipe": described["recipe"], "networks": _networks(config), **_training(config)}
    return {**first, "data": described["data"], **{key: value for key, value in described.items() if key not in first}}


def _of_pairs(config: EcgCmrRun, described: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a run on pairs, whose preprocessing is that of the store it is given."""
    contrast = config.contrast
    form = "none" if contrast is None else f"{contrast.form}, temperature {contrast.temperature:g}, in nats"
    first = {
        "recipe": config.recipe,
        "networks": [
            {"network": name, "parameters": parameters(network), "layers": layers(network, inputs)}
            for name, network, inputs in _parts_of_pairs(config)
        ],
        "loss": {
            "mae": f"squared error and correlation, {config.mae.correlation_weight:g} of the latter",
            "towers": "squared error of the targets that were measured, in variances",
            "contrast": form,
        },
        "schedule": {
            "mae": asdict(config.mae.optim),
            "towers": [asdict(tower.optim) for tower in config.towers],
            "contrast": None if contrast is None else asdict(contrast.optim),
        },
        "data": {"pairs": "a store of pairs", "preprocess": "that of the store; its manifest holds the specification"},
    }
    return {**first, **{key: value for key, value in described.items() if key not in first}}


def _parts_of_pairs(config: EcgCmrRun) -> list[tuple[str, nn.Module, Tensor | None]]:
    from training.models.ecg_vit import EcgMae, EcgVit

    shape = config.encoder
    with torch.device("meta"):
        encoder, record = EcgVit(shape), torch.zeros(1, shape.leads, shape.samples)
        mae = EcgMae(EcgVit(shape), mask_share=config.mae.mask_share)
        towers: list[tuple[str, nn.Module, Tensor | None]] = [
            (name, tower.tower(), None) for name, tower in zip(config.names, config.towers, strict=True)
        ]
    return [("encoder", encoder, record), ("autoencoder", mae, None), *towers]


def layers(network: nn.Module, inputs: Tensor | None) -> list[dict[str, Any]]:
    """Return the modules down to the third level with type, output shape and parameter count, in the order of the network.

    Args:
        network: on the "meta" device.
        inputs: of one case, on the same device; None leaves the shapes out.
    """
    shown = [(name, module) for name, module in network.named_modules() if name and name.count(".") < _DEPTH]
    shapes: dict[str, list[int]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = list(output.shape[1:])

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in shown]
    if inputs is not None:
        with torch.no_grad():
            network.eval()(inputs)
    for handle in handles:
        handle.remove()
    return [
        {"layer": name, "type": type(module).__name__, "output": shapes.get(name), "parameters": parameters(module)}
        for name, module in shown
    ]


def parameters(network: nn.Module) -> int:
    """Return the number of weights, trained or not."""
    return sum(parameter.numel() for parameter in network.parameters())


def _networks(config: AnyRun) -> list[dict[str, Any]]:
    return [
        {"network": name, "parameters": parameters(network), "layers": layers(network, inputs)}
        for name, network, inputs in _parts(config)
    ]


def _parts(config: AnyRun) -> list[tuple[str, nn.Module, Tensor | None]]:
    if isinstance(config, EnfRun):
        from training.models.enf import Enf

        return [("field", Enf(config.shape), None), ("classifier", _classifier(config), None)]
    with torch.device("meta"):
        if isinstance(config, RunConfig):
            return [("network", config.model(), _input(config))]
        from training.coreecho.networks import build_network

        return [("network", build_network(config), _input(config))]


def _classifier(config: EnfRun) -> nn.Module:
    from training.models.invariant_transformer import InvariantTransformer
    from training.models.latent_cloud import initial_cloud

    width = config.shape.context_width
    poses = initial_cloud(config.shape.latents, width).poses
    return InvariantTransformer(config.classifier.shape, poses, torch.zeros(width), torch.ones(width))


def _input(config: RunConfig | EchoRun) -> Tensor:
    spec = input_of(config.data)
    return torch.zeros((1, *spec.shape[1:]), dtype=getattr(torch, spec.dtype))


def _training(config: AnyRun) -> dict[str, Any]:
    """Return the loss in words and the schedule."""
    if isinstance(config, EnfRun):
        return {
            "loss": {
                "field": f"mean squared error after {config.fit.steps} inner steps, {config.meta.order} order",
                "classifier": f"binary cross-entropy of {config.task.condition}",
            },
            "schedule": {"field": asdict(config.meta), "classifier": asdict(config.classifier)},
        }
    if isinstance(config, CoReEchoRun):
        return {
            "loss": {
                "stage1": (
                    f"encoder: Rank-N-Contrast, temperature {config.stage1.temperature:g}; regressor: mean absolute error "
                    "in percent on detached embeddings"
                ),
                "stage2": "regressor: mean absolute error in percent, encoder frozen",
            },
            "schedule": {"stage1": asdict(config.stage1), "stage2": asdict(config.stage2)},
        }
    if isinstance(config, EchoRun):
        words = {"l1": "mean absolute error", "mse": "mean squared error"}
        return {"loss": f"{words[config.fit.loss]} in percent, end to end", "schedule": {"fit": asdict(config.fit)}}
    return {"loss": _of_function(config.loss), "schedule": {"fit": asdict(config.optim)}}


def _of_function(function: Any) -> str:
    """Return name and first line of documentation."""
    said = (inspect.getdoc(function) or "").split("\n", 1)[0]
    return f"{function.__module__}.{function.__qualname__}: {said}"
