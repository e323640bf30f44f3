"""Whether a model's runs take a time that follows from shapes alone.

Such a run cannot hang, nor take a hundred times as long for what some caller has sent: where it is
brief it may be made where nothing else can go on meanwhile, on the event loop's thread.

ONNX Runtime's profiler says which operators a run has gone through, those that it has put in the
place of others among them. Steady are those that do as much work as their inputs and outputs have
elements, and whose outputs are as large as their inputs' shapes or the graph itself say. Loops and
branches are not; nor is what makes a tensor as large as a number in another one says; nor what is
not known here.
"""

from __future__ import annotations

import json
import logging
import math
import pathlib
import tempfile
from dataclasses import replace

from headrace.server.executors.onnx import BRIEF
from headrace.server.executors.running import run_session
from headrace.server.executors.session import SessionOptions, open_session
from headrace.server.models.plan import Plan
from headrace.server.models.planner import open_rows
from headrace.server.models.profile import Profile, synthetic_rows
from headrace.server.models.spec import ModelSpec

_log = logging.getLogger(__name__)

_BY_ELEMENT = (
    "Abs Add And BiasGelu Cast Ceil Celu Clip Cos CumSum Div Elu Equal Erf Exp FastGelu Floor Gelu "
    "Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual "
    "Log Max Mean Min Mod Mul Neg Not Or PRelu Pow QuickGelu Reciprocal Relu Round Selu Sigmoid "
    "Sign Sin Softplus Softsign Sqrt Sub Sum Tanh ThresholdedRelu Where Xor"
)
_LAYERS = (
    "ArgMax ArgMin Attention AveragePool BatchNormalization Conv FusedConv FusedGemm FusedMatMul "
    "GRU Gemm GlobalAveragePool GlobalMaxPool InstanceNormalization LSTM LayerNormalization "
    "LogSoftmax MatMul MaxPool RNN ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare SimplifiedLayerNormalization "
    "SkipLayerNormalization Softmax TopK"
)
_LAYOUT = (
    "Concat DepthToSpace Flatten Gather GatherElements GatherND ReorderInput ReorderOutput Reshape "
    "Shape Size Slice SpaceToDepth Split Squeeze Transpose Unsqueeze"
)
_QUANTISED = (
    "ConvInteger DequantizeLinear DynamicQuantizeLinear DynamicQuantizeMatMul MatMulInteger "
    "MatMulIntegerToFloat QLinearAdd QLinearConv QLinearMatMul QLinearMul QuantizeLinear"
)
# Of ai.onnx.ml.
_TABLES = (
    "ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder LinearClassifier "
    "LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler "
    "TreeEnsembleClassifier TreeEnsembleRegressor"
)
STEADY = frozenset(" ".join((_BY_ELEMENT, _LAYERS, _LAYOUT, _QUANTISED, _TABLES)).split())


def is_steady(path: pathlib.Path, spec: ModelSpec, plan: Plan) -> bool:
    """Whether runs of the model at `path` are steady. Only looked at where the plan has runs on the
    caller's thread that are brief enough for it to matter: one more session is opened to see."""
    profile, options = plan.measured[0].profile, plan.main.session
    quickest = min((seconds for _, seconds in profile.runs), default=math.inf)
    if quickest > BRIEF or not options.on_caller or options.operator_libraries:
        return False
    try:
        found = operators(path, spec, options, profile)
    except Exception:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class)
        _log.warning("%s: its operators could not be listed", path.name, exc_info=True)
        return False
    return bool(found) and found <= STEADY


def operators(
    path: pathlib.Path, spec: ModelSpec, options: SessionOptions, profile: Profile
) -> set[str]:
    """The operators that a run of the model at `path` on inputs as those of `profile` goes through.

    Raises LoadFailed, OSError, and whatever ONNX Runtime raises.
    """
    assert profile.key is not None
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        session = open_session(path, replace(options, profile=pathlib.Path(folder, "run")))
        arrays = synthetic_rows(spec, 1, profile.recipe)
        run_session(open_rows(spec, session), profile.key, arrays)
        events = json.loads(pathlib.Path(session.end_profiling()).read_bytes())
    named = (event.get("args", {}).get("op_name") for event in events)
    return {name for name in named if name}
