"""The user encoder of a bundle as an ONNX graph, for ONNX Runtime.

The same function as `training.model.SequenceModel`, with two things left out that serving does not need: the last
block and what follows are computed at the last position only, and dropout. The graph is written here, operator by
operator, from the weights: that takes milliseconds, where tracing the module takes seconds for every new version, and
it needs no file in the bundle that could disagree with the weights. A test holds both against each other.

Legend: B histories, L positions (dynamic, up to the model's length), d width, H heads.

Inputs: ``items`` (B, L, d) unit vectors, zeros where padded; ``types``, ``gaps`` (B, L) int64, as the model's
embeddings read them; ``pad`` (B, L) float32, 0 for events and a large negative number where padded; with repeats
also ``elapsed`` (B, L) int64, buckets of the time from each event to the last. Outputs: ``users`` (B, d) of unit
length, and with repeats ``copies`` (B, L).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from training.model import SequenceModel

FORBIDDEN = -1e9  # added to the score of what may not be attended to, or copied
_OPSET, _IR = 20, 10


class _Graph:
    """Nodes and constants under construction; operators return the name of what they give."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._weights = weights

    def __call__(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{kind}_{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, name: str, value: Any) -> str:
        """A constant by name; once is enough."""
        if name not in self.constants:
            array = np.ascontiguousarray(
                value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            )
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self._weights[name])

    def linear(self, x: str, layer: str, part: slice = slice(None)) -> str:
        """``x @ W.T + b`` of a `torch.nn.Linear`, or of some of its outputs."""
        named = f"{layer}.{part.start}.{part.stop}"
        weight, bias = self._weights[f"{layer}.weight"][part].T, self._weights.get(f"{layer}.bias")
        product = self("MatMul", x, self.constant(f"{named}.weight", weight))
        return str(
            product if bias is None else self("Add", product, self.constant(f"{named}.bias", bias[part]))
        )

    def norm(self, x: str, layer: str) -> str:
        weight, bias = self.weight(f"{layer}.weight"), self.weight(f"{layer}.bias")
        return str(self("LayerNormalization", x, weight, bias, axis=-1, epsilon=1e-5))

    def heads(self, x: str, heads: int, width: int, *, transposed: bool = False) -> str:
        """(B, L, H * w) to (B, H, L, w), or to (B, H, w, L)."""
        split = self("Reshape", x, self.constant(f"split{heads}.{width}", np.array([0, 0, heads, width])))
        return str(self("Transpose", split, perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3]))


def encoder_graph(model: SequenceModel) -> bytes:
    """Write the graph of a model (on CPU, any mode): a serialised `onnx.ModelProto`."""
    config = model.config
    d, H = config.dim, config.heads
    g = _Graph({name: weight.detach().float() for name, weight in model.state_dict().items()})
    scaled = g("Mul", "items", g.constant("scale", np.float32(d**0.5)))
    x = g("Add", scaled, g("Gather", g.weight("type_embedding.weight"), "types"))
    x = g("Add", x, g("Gather", g.weight("gap_embedding.weight"), "gaps"))
    x = g.norm(x, "input_norm")
    padding = g("Unsqueeze", "pad", g.constant("axes12", np.array([1, 2])))  # (B, 1, 1, L)
    for block in range(config.blocks):
        last = block == config.blocks - 1
        x = _block(g, x, f"blocks.{block}", _biases(model, block), padding, H, d, last)
    users = g.norm(x, "output_norm")  # (B, 1, d)
    flat = g("Squeeze", users, g.constant("axis1", np.array([1])))
    g.nodes.append(helper.make_node("LpNormalization", [flat], ["users"], axis=-1, p=2))
    inputs = [_value("items", TensorProto.FLOAT, ("B", "L", d))]
    inputs += [_value(name, TensorProto.INT64, ("B", "L")) for name in ("types", "gaps")]
    inputs.append(_value("pad", TensorProto.FLOAT, ("B", "L")))
    outputs = [_value("users", TensorProto.FLOAT, ("B", d))]
    if model.repeats is not None:
        _repeats(g, users, scaled, d)
        inputs.append(_value("elapsed", TensorProto.INT64, ("B", "L")))
        outputs.append(_value("copies", TensorProto.FLOAT, ("B", "L")))
    graph = helper.make_graph(g.nodes, "user_encoder", inputs, outputs, list(g.constants.values()))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return bytes(made.SerializeToString())


def _biases(model: SequenceModel, block: int) -> torch.Tensor:
    """(1, H, length, length): the biases of distance of a block, nothing of the future."""
    at = torch.arange(model.config.length)
    distance = at[:, None] - at[None, :]
    H = model.config.heads
    own = model.distance_bias.weight[:, block * H : (block + 1) * H]
    biases = own[distance.clamp(min=0)].permute(2, 0, 1).masked_fill(distance < 0, FORBIDDEN)
    return biases.detach().unsqueeze(0)


def _block(
    g: _Graph, x: str, name: str, biases: torch.Tensor, padding: str, heads: int, d: int, last: bool
) -> str:
    """One block; the last one at the last position only: (B, L, d) to (B, L or 1, d)."""
    width = d // heads
    normed = g.norm(x, f"{name}.norm_attention")
    asking = _newest(g, normed) if last else normed
    x = _newest(g, x) if last else x
    layer = f"{name}.query_key_value"
    q = g.heads(g.linear(asking, layer, slice(0, d)), heads, width)
    k = g.heads(g.linear(normed, layer, slice(d, 2 * d)), heads, width, transposed=True)
    v = g.heads(g.linear(normed, layer, slice(2 * d, 3 * d)), heads, width)
    scores = g("Mul", g("MatMul", q, k), g.constant(f"root{width}", np.float32(width**-0.5)))
    bias = _corner(g, g.constant(f"{name}.bias", biases[:, :, -1:] if last else biases), last)
    allowed = g("Add", g("Add", scores, bias), padding)
    mixed = g("Transpose", g("MatMul", g("Softmax", allowed, axis=-1), v), perm=[0, 2, 1, 3])
    joined = g("Reshape", mixed, g.constant(f"join{d}", np.array([0, 0, d])))
    x = g("Add", x, g.linear(joined, f"{name}.attention_out"))
    fed = g("Gelu", g.linear(g.norm(x, f"{name}.norm_feed"), f"{name}.feed_in"))
    return str(g("Add", x, g.linear(fed, f"{name}.feed_out")))


def _newest(g: _Graph, x: str) -> str:
    """The last position: (B, L, d) to (B, 1, d)."""
    ends = [g.constant("minus1", np.array([-1])), g.constant("end", np.array([np.iinfo(np.int64).max]))]
    return str(g("Slice", x, *ends, g.constant("axis1", np.array([1]))))


def _corner(g: _Graph, biases: str, last: bool) -> str:
    """Of biases for the longest history, those of the newest L positions."""
    L = g("Shape", "pad", start=1, end=2)
    start = g("Neg", L)
    end = g.constant("end", np.array([np.iinfo(np.int64).max]))
    axes = [3] if last else [2, 3]
    starts = start if last else g("Concat", start, start, axis=0)
    ends = end if last else g.constant("ends", np.array([np.iinfo(np.int64).max] * 2))
    return str(g("Slice", biases, starts, ends, g.constant(f"axes{axes}", np.array(axes))))


def _repeats(g: _Graph, users: str, scaled: str, d: int) -> None:
    """`training.repeats.RepeatHead` with the last position as the only query."""
    keys = g("Transpose", g.linear(scaled, "repeats.key"), perm=[0, 2, 1])  # (B, d, L)
    products = g("MatMul", g.linear(users, "repeats.query"), keys)  # (B, 1, L)
    products = g("Mul", products, g.constant("root_d", np.float32(d**-0.5)))
    scores = g("Add", products, g.linear(users, "repeats.user_bias"))
    # distances to the last position: L - 1 down to 0
    far = g.constant("far", g._weights["repeats.distance_bias.weight"].flip(0).reshape(1, 1, -1))
    L = g("Shape", "pad", start=1, end=2)
    near = g(
        "Slice",
        far,
        g("Neg", L),
        g.constant("end", np.array([np.iinfo(np.int64).max])),
        g.constant("axis2", [2]),
    )
    scores = g("Squeeze", g("Add", scores, near), g.constant("axis1", np.array([1])))
    waited = g(
        "Squeeze", g("Gather", g.weight("repeats.time_bias.weight"), "elapsed"), g.constant("axisl", [-1])
    )
    g.nodes.append(helper.make_node("Sum", [scores, waited, "pad"], ["copies"]))


def _value(name: str, kind: int, shape: tuple[str | int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
