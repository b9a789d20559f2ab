"""Profiler trace of a few steps, for xprof (TensorBoard's profiler) and Perfetto, with the host's
time per activity.
"""

import collections
from collections.abc import Callable
from pathlib import Path

# Next batch, dispatch (on CPU also the computation), waiting for the device, logging.
SPANS = ("data", "step", "wait", "log")


class Profiler:
    """Traces `n_steps` steps once compilation is over; 0 traces none."""

    def __init__(self, directory: Path, n_steps: int, log: Callable[[str], None]):
        self._directory, self._n_steps, self._log = directory, n_steps, log
        self._steps = 0
        self._is_tracing = False

    def span(self, name: str):
        """Context manager that marks a host activity, one of SPANS, in the trace; it costs almost
        nothing outside a trace.
        """
        import jax

        assert name in SPANS, name
        return jax.profiler.TraceAnnotation(f"gptjax/{name}")

    def before_step(self) -> None:
        """Call it before each step. The trace starts with the third, since the first two compile
        and settle.
        """
        import jax

        self._steps += 1
        if self._n_steps and self._steps == 3:
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._is_tracing = True
        if self._is_tracing and self._steps == 3 + self._n_steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if one is running, and prints where it is and the time shares; prints a
        notice if none was started.
        """
        import jax

        if not self._is_tracing:
            if self._n_steps and self._steps < 3:
                self._log(
                    f"nothing was traced: the run had {self._steps} steps, and a trace starts with "
                    "the third; give another --run_dir, or prolong this one (--tokens=N)"
                )
            return
        self._is_tracing = False
        jax.profiler.stop_trace()
        shares_text = ", ".join(
            f"{name} {share:.1%}" for name, share in time_shares(self._directory).items()
        )
        self._log(
            f"profile of {self._steps - 3} steps in {self._directory}: the host's time is "
            f"{shares_text}"
        )
        self._log(
            f"look at it with xprof --logdir={self._directory}, or open its perfetto_trace.json.gz "
            "in ui.perfetto.dev"
        )


def time_shares(directory: Path) -> dict[str, float]:
    """Share of each span in the total time of all spans, in the newest trace under `directory`."""
    import jax

    newest = max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds: dict[str, float] = collections.defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name.startswith("gptjax/"):
                    seconds[event.name.removeprefix("gptjax/")] += event.duration_ns / 1e9
    return {name: seconds[name] / sum(seconds.values()) for name in SPANS}
