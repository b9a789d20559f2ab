"""A trace of a few steps, for xprof (TensorBoard's profiler) and Perfetto, and where the host's
time went in them."""

import collections
from collections.abc import Callable
from pathlib import Path

SPANS = (
    "data",
    "step",
    "wait",
    "log",
)  # in order: next batch, dispatch (on CPU the computation too), waiting for the device, writing


class Profiler:
    """Traces `n_steps` steps once compilation is over. `span("data")` is a context that marks what
    the host does; outside a trace it costs next to nothing. n_steps 0: no trace is made."""

    def __init__(self, directory: Path, n_steps: int, log: Callable[[str], None]):
        self._directory, self._n_steps, self._log = directory, n_steps, log
        self._steps = 0
        self._is_tracing = False

    def span(self, name: str):
        import jax

        assert name in SPANS, name
        return jax.profiler.TraceAnnotation(f"gptjax/{name}")

    def before_step(self) -> None:
        """Call it before each step: the trace begins with the third, since the first two compile
        and settle."""
        import jax

        self._steps += 1
        if self._n_steps and self._steps == 3:
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._is_tracing = True
        if self._is_tracing and self._steps == 3 + self._n_steps:
            self.close()

    def close(self) -> None:
        """End the trace if one is running, and say where it lies and what it shows; say so if
        none was begun."""
        import jax

        if not self._is_tracing:
            if self._n_steps and self._steps < 3:
                self._log(
                    f"nothing was traced: {self._steps} steps were taken, and a trace begins with "
                    "the third; give another --run, or "
                    f"prolong this one (--tokens=N)"
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
    """The part of the time of each span, out of all of them, in the newest trace under
    `directory`."""
    import jax

    newest = max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds: dict[str, float] = collections.defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name.startswith("gptjax/"):
                    seconds[event.name.removeprefix("gptjax/")] += event.duration_ns / 1e9
    return {name: seconds[name] / sum(seconds.values()) for name in SPANS}
