"""ctypes structs that describe a network and its states to the C++ kernels.

They mirror network.h and weight.h field by field; `layout_of_structs` in network.cpp reports the
offsets that the compiler chose, and a test compares them. Pointers are addresses of buffers, which
the creator of a struct must keep alive.
"""

import ctypes

_POINTER = ctypes.c_void_p
_INT = ctypes.c_int64


class NativeWeight(ctypes.Structure):
    """struct Weight of weight.h."""

    _fields_ = (
        ("values", _POINTER),
        ("scales", _POINTER),
        ("rows", _INT),
        ("columns", _INT),
        ("row_bytes", _INT),
        ("scale_row", _INT),
        ("format", ctypes.c_int32),
        ("simulate", ctypes.c_int32),
        ("first", _INT),
    )


class NativeVector(ctypes.Structure):
    """struct Vector of network.h."""

    _fields_ = (("data", _POINTER), ("bfloat16", _INT))


class NativeHyperConnection(ctypes.Structure):
    """struct HyperConnection of network.h."""

    _fields_ = (("fn", _POINTER), ("base", _POINTER), ("scale", _POINTER))


class NativePooling(ctypes.Structure):
    """struct Pooling of network.h."""

    _fields_ = (
        ("wkv", NativeWeight),
        ("wgate", NativeWeight),
        ("ape", NativeVector),
        ("norm", NativeVector),
        ("width", _INT),
    )


NeedExperts = ctypes.CFUNCTYPE(
    _INT, _INT, ctypes.POINTER(_INT), ctypes.POINTER(_INT), _INT
)  # fmt: skip
NextExperts = ctypes.CFUNCTYPE(_INT, _INT, ctypes.POINTER(_INT))


class NativeExpertSource(ctypes.Structure):
    """struct ExpertSource of network.h."""

    _fields_ = (("need", NeedExperts), ("next", NextExperts))


class NativeLayer(ctypes.Structure):
    """struct Layer of network.h."""

    _fields_ = (
        ("ratio", _INT),
        ("frequencies", _POINTER),
        *((name, NativeVector) for name in ("attn_norm", "ffn_norm", "q_norm", "kv_norm", "sink")),
        ("attn_hc", NativeHyperConnection),
        ("ffn_hc", NativeHyperConnection),
        *((name, NativeWeight) for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")),
        ("compressor", NativePooling),
        ("index_compressor", NativePooling),
        *((name, NativeWeight) for name in ("index_wq_b", "index_weights", "gate")),
        ("bias", NativeVector),
        ("table", _POINTER),
        *((name, _POINTER) for name in ("w1", "w2", "w3")),
        *((name, NativeWeight) for name in ("shared_w1", "shared_w2", "shared_w3")),
        ("source", _POINTER),
        ("number", _INT),
    )


class NativeDelta(ctypes.Structure):
    """struct Delta of network.h."""

    _fields_ = (("low", NativeWeight), ("high", NativeWeight), ("factor", ctypes.c_double))


class NativeAdapterLayer(ctypes.Structure):
    """struct AdapterLayer of network.h."""

    _fields_ = (
        *((name, NativeDelta) for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")),
        *((name, _POINTER) for name in ("w1", "w2", "w3")),
        *((name, NativeDelta) for name in ("shared_w1", "shared_w2", "shared_w3")),
    )


class NativeNetwork(ctypes.Structure):
    """struct Network of network.h."""

    _fields_ = (
        *(
            (name, _INT)
            for name in (
                "channels streams heads head_dim rotary q_rank groups o_rank window index_heads "
                "index_width index_limit experts choices inner vocabulary iterations simulate_kv "
                "simulate_index"
            ).split()
        ),
        *(
            (name, ctypes.c_double)
            for name in ("norm_eps", "hc_eps", "swiglu_limit", "routed_scale")
        ),
    )


class NativeEnds(ctypes.Structure):
    """struct Ends of network.h."""

    _fields_ = (
        ("embedding", NativeWeight),
        ("head", NativeWeight),
        ("hc", NativeHyperConnection),
        ("norm", NativeVector),
    )


class NativeDraftEnds(ctypes.Structure):
    """struct DraftEnds of network.h."""

    _fields_ = (
        ("embedding", NativeWeight),
        ("e_proj", NativeWeight),
        ("h_proj", NativeWeight),
        ("enorm", NativeVector),
        ("hnorm", NativeVector),
    )


class NativeRows(ctypes.Structure):
    """struct Rows of network.h: a list of rows with its own memory; row i is in slot i % slots."""

    _fields_ = (
        ("data", _POINTER),
        ("used", _POINTER),
        ("slots", _INT),
        ("row_bytes", _INT),
        ("length", _INT),
        ("kept", _INT),
        ("bounded", _INT),
        ("shared", _INT),
        ("format", _INT),
    )


STRUCTS: tuple[type[ctypes.Structure], ...] = (
    NativeWeight,
    NativeVector,
    NativeHyperConnection,
    NativePooling,
    NativeExpertSource,
    NativeLayer,
    NativeDelta,
    NativeAdapterLayer,
    NativeNetwork,
    NativeEnds,
    NativeDraftEnds,
    NativeRows,
)
"""In the order of `layout_of_structs`."""
