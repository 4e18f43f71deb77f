"""Figures of the paper (arXiv 2507.21509) for Qwen2.5-7B-Instruct and Llama-3.1-8B-Instruct, under our trait names."""

Figures = dict[str, tuple[float, ...]]

SYSTEM_PROMPTS: Figures = {"evil": (0.747,), "sycophantic": (0.798,), "hallucinating": (0.830,)}
"""Table 2, appendix C.2: r over all graded system prompts (Qwen)."""
WITHIN_SYSTEM_PROMPTS: Figures = {"evil": (0.511,), "sycophantic": (0.669,), "hallucinating": (0.245,)}
"""Table 2: mean r within system prompts."""
SHOTS: Figures = {"evil": (0.755,), "sycophantic": (0.817,), "hallucinating": (0.634,)}
"""Table 2: r over numbers of shots."""
WITHIN_SHOTS: Figures = {"evil": (0.735,), "sycophantic": (0.813,), "hallucinating": (0.400,)}
"""Table 2: mean r within a number of shots."""
SHIFT: Figures = {
    "evil": (0.826, 0.930),
    "sycophantic": (0.758, 0.893),
    "hallucinating": (0.916, 0.967),
    "optimistic": (0.865, 0.961),
    "impolite": (0.862, 0.944),
    "apathetic": (0.839, 0.936),
    "humorous": (0.811, 0.908),
}
"""Figures 18 and 20: r of finetuning shift and trait score."""
PROJECTION_DIFFERENCE: Figures = {
    "evil": (0.88,),
    "sycophantic": (0.88,),
    "hallucinating": (0.88,),
    "optimistic": (0.873, 0.913),
    "impolite": (0.900, 0.907),
    "apathetic": (0.858, 0.787),
    "humorous": (0.937, 0.902),
}
"""Figure 19; for the first three figure 8, of which only the range 0.88 to 0.95 is known: its lower end."""
DIFFERENCE_AND_SHIFT: Figures = {
    "evil": (0.839, 0.953),
    "sycophantic": (0.745, 0.915),
    "hallucinating": (0.408, 0.593),
}
"""Figure 17: r of projection difference and finetuning shift."""
OVER_RAW: Figures = {"evil": (0.096,), "sycophantic": (0.34,), "hallucinating": (0.245,)}
"""Appendix H: r of the projection difference (lower end of figure 8's range) with the trait score (Qwen), less that of
the raw projection (0.784, 0.540, 0.635)."""
PROXY_OVER_RAW: Figures = {"evil": (0.147,), "sycophantic": (0.041,), "hallucinating": (0.054,)}
"""Appendix I: the same of the projection less that of the last prompt token (0.931, 0.581, 0.689)."""
COSINES: dict[tuple[str, str], tuple[float, ...]] = {
    ("evil", "sycophantic"): (0.368, 0.412),
    ("evil", "hallucinating"): (0.192, 0.233),
    ("hallucinating", "sycophantic"): (0.162, 0.252),
    ("evil", "impolite"): (0.552, 0.440),
    ("apathetic", "evil"): (0.390, 0.331),
    ("evil", "humorous"): (0.478, 0.369),
    ("evil", "optimistic"): (-0.472, -0.469),
    ("apathetic", "impolite"): (0.542, 0.734),
    ("humorous", "impolite"): (0.594, 0.435),
}
"""Figure of appendix G.2: cosines between vectors at the layer of the first three."""
