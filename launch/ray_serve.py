"""Serve a model by replicas of Ray Serve: `serve run gptjax.launch.ray_serve:build model=DIR`.

It needs `pip install "ray[serve]"`, which is in no requirements file. How many replicas there are,
and on what, is Ray's configuration, of the deployment `Server`: docs/guides/serve.md has one.
"""

import argparse
from typing import Any, NoReturn

import ray.serve  # type: ignore[import-not-found]

from gptjax import sample, serve
from gptjax.configs import registry
from gptjax.report import console
from gptjax.server import access_log, api_keys, app, batcher

# Ray's proxy listens; accounts and logs would be a file of each replica, which has what the policy
# finds in its standard output instead.
NOT_HERE = ("host", "port", "users", "add_user", "intervention_log")


def build(flags: dict[str, Any]) -> Any:
    """Returns the application. flags: those of gptjax.serve, by name; a flag without a value is
    given as true or false. Raises ValueError for others."""
    args = parse_flags(flags)

    @ray.serve.deployment(
        name="Server",
        max_ongoing_requests=app.MAX_ACTIVE,  # beyond --slots and --max_queue a replica refuses
        graceful_shutdown_timeout_s=args.drain,
    )
    @ray.serve.ingress()
    class Server:
        def __init__(self) -> None:
            keys = None if args.api_keys is None else api_keys.load(args.api_keys)
            out, policy = console.Console(quiet=True), registry.policy(args.policy)
            filters, moderation = serve.open_classifiers(
                policy, args.moderation_model, lambda line: print(line, flush=True), out.warn
            )
            loaded = sample.load_model(args.model, args.assignments, out)
            self._engine = batcher.Batcher(
                loaded.inference_model, loaded.tokenizer, args.slots, args.context, args.max_queue
            )
            model = serve.served_model(args, loaded, self._engine)
            options = serve.app_options(args, keys, None, filters, moderation)
            self._application = app.make_app(model, options, access_log.Load())

        def __serve_build_asgi_app__(self) -> Any:
            return self._application

        def check_health(self) -> None:
            """Ray calls it, and starts a new replica for one that raises."""
            if not self._engine.stats().is_running:
                raise RuntimeError("the engine has ended after an error of the device")

        def __del__(self) -> None:
            self._engine.close()

    return Server.bind()  # type: ignore[attr-defined]


def parse_flags(flags: dict[str, Any]) -> argparse.Namespace:
    """Returns gptjax.serve's arguments. Raises ValueError for flags that are Ray's here, and for
    those that gptjax.serve would refuse."""
    parser = serve.make_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # to exit would end a process of Ray
    words = []
    for name, value in flags.items():
        name = name.replace("-", "_")
        if name in NOT_HERE:
            raise ValueError(f"{name}: replicas of Ray Serve have none of their own: leave it out")
        words += make_words(name, value, is_switch=parser.get_default(name) is False)
    args = parser.parse_args(words)
    if args.model is None:
        raise ValueError("there is nothing to serve: give model=DIR")
    serve.check_args(args)
    registry.policy(args.policy)  # refuses one that is not known
    return args


def make_words(name: str, value: Any, is_switch: bool) -> list[str]:
    """Returns a flag as the words of a command line. value: as YAML or `serve run` has it; null is
    as if it were left out, and `set` may have a list. Raises ValueError for a switch that is
    neither true nor false."""
    match value:
        case None:
            return []
        case True | "true" if is_switch:
            return [f"--{name}"]
        case False | "false" if is_switch:
            return []
        case _ if is_switch:
            raise ValueError(f"{name}: {value}: give true or false")
        case list() if name == "set":
            return [f"--set={assignment}" for assignment in value]
        case _:
            return [f"--{name}={value}"]


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
