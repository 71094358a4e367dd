"""How loud a recording is to people: integrated loudness as EBU R 128 measures it (ITU-R BS.1770-4), in LUFS.

pyloudnorm measures the same, of a whole recording at once, and takes seconds to import; this meter hears block after
block, in memory that grows by 80 bytes a second, and its tests hold it to pyloudnorm. The weighting filters are those
of the standard, designed anew for 16 kHz (De Man 2014, "Evaluation of implementations of the EBU R128 loudness
measurement"); what lies above 8 kHz is not heard.
"""

import numpy as np

from speech.audio.mixdown import SAMPLE_RATE

SILENT_LUFS = -70.0  # the absolute gate: what is not above it is not measured
RELATIVE_GATE_LU = -10.0

_STEP = SAMPLE_RATE // 10  # samples: blocks of 0.4 s begin every 0.1 s
_STEPS = 4
_OFFSET_LU = -0.691  # so that a sine of 997 Hz at full scale measures -3.01 LUFS
_HEARD = 18 * _STEP  # weighted at once
_BEFORE = 3_968  # samples, 0.25 s: the filters have forgotten what is older, to the last bit of a float


class LoudnessMeter:
    """Measures one recording, block by block."""

    def __init__(self) -> None:
        self._weights = _weighting(np.fft.rfftfreq(_BEFORE + _HEARD, 1 / SAMPLE_RATE))
        self._before = np.zeros(_BEFORE)
        self._held = np.zeros(0)
        self._energies = [np.zeros(0)]  # of steps

    def add(self, samples: np.ndarray) -> None:
        """Hear what comes next: float samples [n], 16 kHz mono."""
        self._held = np.concatenate((self._held, samples))
        while len(self._held) >= _HEARD:
            self._hear(self._held[:_HEARD])
            self._held = self._held[_HEARD:].copy()  # a view would keep all that came

    def lufs(self) -> float:
        """The integrated loudness of all that was heard; `SILENT_LUFS` where no whole block of 0.4 s is louder."""
        if len(self._held):
            self._hear(self._held)
            self._held = np.zeros(0)
        steps = np.concatenate(self._energies)
        if len(steps) < _STEPS:
            return SILENT_LUFS
        blocks = np.lib.stride_tricks.sliding_window_view(steps, _STEPS).mean(axis=1)
        heard = blocks[_lufs(blocks) > SILENT_LUFS]
        if not len(heard):
            return SILENT_LUFS
        return float(_lufs(heard[_lufs(heard) > _lufs(heard.mean()) + RELATIVE_GATE_LU].mean()))

    def _hear(self, samples: np.ndarray) -> None:
        together = np.concatenate((self._before, samples))
        weighted = np.fft.irfft(np.fft.rfft(together, _BEFORE + _HEARD) * self._weights)[_BEFORE:]
        whole = weighted[: len(samples) - len(samples) % _STEP]
        self._energies.append(np.square(whole).reshape(-1, _STEP).mean(axis=1))
        self._before = together[-_BEFORE:]


def _weighting(frequencies: np.ndarray) -> np.ndarray:
    """The response at these frequencies, complex: a shelf for the head, and a high-pass."""
    z = np.exp(-2j * np.pi * frequencies / SAMPLE_RATE)
    response = np.ones(len(frequencies), np.complex128)
    for hz, quality, gain_db in ((1681.974450955533, 0.7071752369554196, 3.999843853973347), (38.135, 0.5003, None)):
        k = np.tan(np.pi * hz / SAMPLE_RATE)
        poles = (1 + k / quality + k * k) + 2 * (k * k - 1) * z + (1 - k / quality + k * k) * z * z
        if gain_db is None:
            zeros = (1 - z) ** 2 * (1 + k / quality + k * k)
        else:
            high = 10 ** (gain_db / 20)
            band = high**0.4996667741545416 * k / quality
            zeros = (high + band + k * k) + 2 * (k * k - high) * z + (high - band + k * k) * z * z
        response *= zeros / poles
    return response


def _lufs(energy: np.ndarray) -> np.ndarray:
    return _OFFSET_LU + 10 * np.log10(np.maximum(energy, 1e-30))
