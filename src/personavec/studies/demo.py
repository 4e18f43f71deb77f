"""The demo: the main job on a small real model, from a trait's words to a proven vector and its report."""

from typing import Any

from personavec.config import DemoConfig, ExtractConfig
from personavec.extract import extract
from personavec.report.page import write_pages


def demo(config: DemoConfig) -> dict[str, Any]:
    """Extract one trait and write its report; returns what `extract` returns, with the report's path."""
    return write_pages(
        extract(
            ExtractConfig(
                traits=(config.trait,),
                model=config.model,
                out=config.out,
                seed=config.seed,
                dtype=config.dtype,
                device=config.device,
                trust_remote_code=config.trust_remote_code,
                json=config.json,
            )
        )
    )
