"""A released bundle as the torch network it was exported from, with the weights that stand in its graph.

A bundle holds no torch form. Its graph keeps most weights under their names; what has no name is found by the named bias it
is added to. Whether the result is the released network is for the golden vectors to say, not for this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.reader import Bundle
from engines.records import Modality

if TYPE_CHECKING:
    from torch import nn

Weights = Mapping[str, NDArray[Any]]
_PREFIX = "network."


class NoTorchForm(Exception):
    """The bundle's graph cannot be read back into a network of ``training.models``."""


def torch_network(bundle: Bundle) -> nn.Module:
    """Return the network in evaluation mode; it returns its outputs by name.

    Raises:
        NoTorchForm: no network of ``training.models`` takes these weights.
    """
    import onnx

    model = onnx.load_from_string(bundle.graph())
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    try:
        network = _FORMS[bundle.manifest.modality](bundle, model, weights)
    except (KeyError, RuntimeError, StopIteration, ValueError) as error:
        msg = f"{bundle.manifest.name} does not fit the network of its modality: {error}"
        raise NoTorchForm(msg) from error
    return network.eval().requires_grad_(requires_grad=False)


def _transformer(bundle: Bundle, model: Any, weights: Weights) -> nn.Module:
    """The vision transformer on an ECG with its probes; its recipe has the name of the bundle."""
    from torch import nn

    from training.config import load_recipe
    from training.ecg_cmr.config import EcgCmrRun
    from training.models.ecg_vit import EcgVit, EcgVitNet

    run = load_recipe(bundle.manifest.name.replace("-", "_"))
    assert isinstance(run, EcgCmrRun)
    widths = {tensor.name: tensor.shape[1] for tensor in bundle.manifest.outputs if tensor.name != "embedding"}
    probes = {name: nn.Linear(run.encoder.width, width) for name, width in widths.items()}
    network = EcgVitNet(EcgVit(run.encoder), probes)
    named = {name.removeprefix(_PREFIX): array for name, array in weights.items()}
    _load(network, {key: {**named, **dict(_beside_their_bias(model, weights))}[key] for key in network.state_dict()})
    return network


def _space_time(bundle: Bundle, model: Any, weights: Weights) -> nn.Module:
    """The space-time Transformer with its regressor, every norm folded as it is released."""
    import torch

    from training.coreecho.config import EchoRun
    from training.coreecho.networks import build_network
    from training.models.coreecho_net import folded

    torch.manual_seed(0)
    network = folded(build_network(_run(bundle, EchoRun)))
    named = {name.removeprefix(_PREFIX): array for name, array in weights.items()}
    _load(network, {key: {**named, **dict(_beside_their_bias(model, weights))}[key] for key in network.state_dict()})
    return network


def _field(bundle: Bundle, model: Any, weights: Weights) -> nn.Module:
    """The equivariant neural field with its classifier."""
    import torch

    from training.enf.config import EnfRun
    from training.enf.latents import frozen_field
    from training.models.enf import Enf
    from training.models.enf_risk_net import EnfRiskNet
    from training.models.invariant_transformer import InvariantTransformer
    from training.models.latent_cloud import initial_cloud

    run = _run(bundle, EnfRun)
    cloud = initial_cloud(run.shape.latents, run.shape.context_width)
    ones = torch.ones(run.shape.context_width)
    classifier = InvariantTransformer(run.classifier.shape, cloud.poses, 0 * ones, ones)
    field = frozen_field(run, Enf(run.shape), run.preprocess.size_px)
    network = EnfRiskNet(field, classifier, cloud.poses)
    named = {name.removeprefix(_PREFIX): array for name, array in weights.items() if name.startswith(_PREFIX)}
    named |= dict(_beside_their_bias(model, weights)) | dict(_head(model, weights, run.classifier.shape.width))
    value = (run.shape.context_width + 1, 1, run.shape.hidden)
    named["field.value"] = next(array[:, 0] for array in weights.values() if array.shape == value)
    kept = {key: value.numpy() for key, value in network.state_dict().items() if key in _OF_THE_RECIPE}
    _load(network, {key: {**kept, **named}[key] for key in network.state_dict()})
    return network


_OF_THE_RECIPE = ("field.start", "field.pixels", "field.restore")
"""Constants that follow from the recipe; the graph holds them in another form."""


def _run(bundle: Bundle, kind: type) -> Any:
    """The first recipe of a kind whose bundle has this name."""
    from training.config import load_recipe, recipe_names

    runs = [load_recipe(name) for name in recipe_names()]
    return next(run for run in runs if isinstance(run, kind) and run.bundle.name == bundle.manifest.name)  # type: ignore[union-attr]


def _beside_their_bias(model: Any, weights: Weights) -> Iterator[tuple[str, NDArray[Any]]]:
    """Weights of linear layers: the exporter turned them and dropped their names, but not those of their biases."""
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "MatMul"}
    for node in model.graph.node:
        bias = next((name for name in node.input if name.startswith(_PREFIX) and name.endswith(".bias")), None)
        product = next((makers[name] for name in node.input if name in makers), None)
        if node.op_type == "Add" and bias and product is not None and product.input[1] in weights:
            name = f"{bias.removeprefix(_PREFIX).removesuffix('bias')}weight"
            yield name, np.ascontiguousarray(weights[product.input[1]].T)


def _head(model: Any, weights: Weights, width: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Last normalisation and head: the exporter folded their scales into one, and their shifts into a constant."""
    others = {name: array for name, array in weights.items() if not name.startswith(_PREFIX)}
    last = next(node for node in model.graph.node if "logit" in node.output)
    yield "classifier.norm.weight", next(array for array in others.values() if array.shape == (width,))
    yield "classifier.norm.bias", np.zeros(width, np.float32)
    yield "classifier.head.weight", np.ones((1, width), np.float32)
    yield "classifier.head.bias", next(others[name] for name in last.input if name in others).reshape(1)
    yield "classifier.frame", next(array[:, 0] for array in others.values() if array.shape == (2, 1, width))


_FORMS = {Modality.CMR: _field, Modality.ECG: _transformer, Modality.ECHO: _space_time}


def _load(network: nn.Module, state: Weights) -> None:
    import torch

    network.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
