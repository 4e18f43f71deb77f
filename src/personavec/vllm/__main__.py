"""`python -m personavec.vllm --vectors DIR --model M …`: vLLM's server with the plugin; the rest are vLLM's options."""

import argparse
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from personavec.vllm.settings import Refusal, check_version, make_settings


def arguments(given: Sequence[str]) -> list[str]:
    """The command line for vLLM's server from that of this one.

    Raises:
        Refusal: The folder holds no vectors, or what the plugin sets is given as well.
    """
    parser = argparse.ArgumentParser("python -m personavec.vllm", allow_abbrev=False, description=__doc__)
    parser.add_argument("--vectors", metavar="DIR", help="folder of persona vectors, the same on every machine")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to steer and read, default all")
    parser.add_argument("--edits", type=int, default=2, help="most ablated, capped or gated directions in a layer")
    parser.add_argument("--no-means", action="store_true", help="no means over spans, whose sums take memory")
    parser.add_argument("--accept-vectors", metavar="DIR", help="clients may put vectors into this folder, seen by all")
    options, rest = parser.parse_known_args(given)
    if taken := {"--worker-cls", "--additional-config", "--enable-scale-out"} & {word.split("=")[0] for word in rest}:
        raise Refusal(f"expected no {sorted(taken)[0]}, got one; the plugin sets it")
    if options.edits < 0:
        raise Refusal(f"expected --edits of at least 0, got {options.edits}; 0 leaves additions alone")
    layers = None if options.layers is None else tuple(sorted(set(options.layers)))
    accepted = None if options.accept_vectors is None else str(Path(options.accept_vectors).resolve())
    settings = make_settings(
        options.vectors, layers=layers, edits=options.edits, means=not options.no_means, given=accepted
    )
    return [
        *rest,
        "--enable-scale-out",
        "--worker-cls=personavec.vllm.worker.PersonaWorker",
        f"--additional-config={json.dumps(settings.config())}",
    ]


def main() -> None:
    """Become the server; what it will not do is said in one line."""
    try:
        given = arguments(sys.argv[1:])
        try:
            import vllm
        except ImportError as error:
            raise Refusal(f"expected vLLM beside personavec, got none ({error}); install both in one place") from None
        check_version(vllm.__version__)
        # routes are added by plugins that are named alone; naming one leaves the others out unless they are named too
        named = os.environ.get("VLLM_PLUGINS")
        os.environ["VLLM_PLUGINS"] = "personavec" if not named else f"{named},personavec"
        sys.argv[1:] = given
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
