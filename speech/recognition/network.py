"""The network of a bundle: mel frames and caches in, log-probabilities and the next caches out.

Whole recordings and live streams run the same one; what it remembers of a stream is a value that the caller holds.
"""

from typing import TYPE_CHECKING

import numpy as np

from speech.bundle import BundleError, ModelBundle, Precision, Sealed
from speech.recognition.state import State

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_INPUTS = ("audio_signal", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len")
_OUTPUTS = 5


def open_session(bundle: Sealed, name: str, threads: int = 1) -> "InferenceSession":
    """Open a network of a bundle for this many threads. Raises BundleError where it is none."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    # A replica shares its cores with others: waiting threads must sleep, not spin.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(bundle.read(name), options, ["CPUExecutionProvider"])
    except BundleError:
        raise
    except Exception as error:  # onnxruntime raises its own types, which share no base but Exception
        raise BundleError(f"{bundle.path}: {name} is not a network that can be opened ({error})") from error


class Network:
    """The bundle's network as a function from mel frames and caches to log-probabilities and caches."""

    def __init__(self, bundle: ModelBundle, threads: int = 1, variant: Precision = "fp32") -> None:
        """Open and warm the network; BundleError when it is not what bundle.json says."""
        name = bundle.network_name(variant)
        self._session = open_session(bundle, name, threads)
        self.geometry = bundle.geometry
        self.features = bundle.features
        self.symbols = bundle.blank_id + 1
        names = tuple(item.name for item in self._session.get_inputs())
        if set(names) != set(_INPUTS) or len(self._session.get_outputs()) != _OUTPUTS:
            raise BundleError(f"{bundle.path}: {name} takes {', '.join(names)}, not {', '.join(_INPUTS)}")
        self._warm(f"{bundle.path}: {name}")

    def caches(self, batch: int) -> State:
        """Return the caches of `batch` streams that have not begun.

        Attention [batch, layers, output frames, width] float32, convolution [batch, layers, width, output frames]
        float32, and how many output frames of the first are real [batch] int64.
        """
        shape = self.geometry
        return (
            np.zeros((batch, *shape.attention_cache), np.float32),
            np.zeros((batch, *shape.convolution_cache), np.float32),
            np.zeros(batch, np.int64),
        )

    def run(self, frames: np.ndarray, lengths: np.ndarray, caches: State) -> tuple[np.ndarray, np.ndarray, State]:
        """Advance a batch of streams by one run.

        frames: [batch, frames, mels] float32, each row as `Geometry` says; lengths: [batch] how many of
        them are real. Returns log-probabilities [batch, outputs, symbols], how many outputs of each row
        are real [batch], and the next caches.
        """
        values = (np.ascontiguousarray(frames.transpose(0, 2, 1)), np.asarray(lengths, np.int64), *caches)
        outputs = self._session.run(None, dict(zip(_INPUTS, values, strict=True)))
        return outputs[0], outputs[1], tuple(outputs[2:])

    def _warm(self, name: str) -> None:
        """Run once with zeros: memory is reserved before the first caller, and shapes are checked."""
        size = self.geometry.history + self.geometry.chunk
        try:
            outputs, lengths, caches = self.run(
                np.zeros((1, size, self.features.mels), np.float32), np.array([size]), self.caches(1)
            )
        except Exception as error:
            raise BundleError(f"{name} does not run with the geometry of its bundle.json ({error})") from error
        expected = (1, self.geometry.chunk_outputs, self.symbols)
        kept = [cache.shape for cache in caches] == [cache.shape for cache in self.caches(1)]
        if outputs.shape != expected or lengths.tolist() != [expected[1]] or not kept:
            raise BundleError(f"{name} gives shape {list(outputs.shape)}, its bundle.json promises {list(expected)}")
