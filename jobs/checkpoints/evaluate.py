"""A checkpoint's answers to a benchmark, with its own detector or another."""

from dataclasses import dataclass
from typing import Literal

from fo1_model.detectors.configs import name_of
from jobs.chain.chain import Chain
from jobs.chain.evaluation_steps import evaluation_steps
from jobs.checkpoints.find import checkpoint_step, find_checkpoint
from jobs.checkpoints.lineage import check_found, detector_for, options_of, rejection_of
from jobs.recipes.arguments import parse_arguments
from jobs.recipes.recipe import Recipe
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Arguments of ``fo1 evaluate BENCHMARK``."""

    checkpoint: str
    """Run by name or NAME/FINGERPRINT; folder, URI or hub name of a model, ours or released."""
    detector: str | None = None
    """Detector of the proposals; none: the one that the run was trained with."""
    proposals: int | None = None
    """Most boxes an image; none: as the run was trained."""
    constraint: Literal["none", "grammar", "names"] = "none"
    """What answers may say: anything, what reads cleanly, or only names that were asked for."""
    score: Literal["proposal", "model", "product"] = "proposal"
    """Score of a named region: the proposal's, the model's probability, or their product."""


def evaluation_of_checkpoint(benchmark: str, words: list[str], runtime: RuntimeConfig) -> Chain:
    """Return the steps from a benchmark's annotations to the answers of one checkpoint.

    Args:
        benchmark: Name in BENCHMARKS.
        words: `EvaluateArguments` as ``name=value`` words.
        runtime: Where and how wide.

    Raises:
        SettingError: For words that cannot be, or a detector that manifests do not tell.
    """
    given = EvaluateArguments(**parse_arguments(EvaluateArguments, words))
    found = find_checkpoint(given.checkpoint, runtime)
    run = found if isinstance(found, Artifact) else None
    chosen = detector_for(found, given.detector, given.proposals)
    check_found(chosen, given.checkpoint, f"say detector={name_of(chosen.config)}:PATH")
    chain = Chain(
        recipe=Recipe(
            name=f"{benchmark}-{found.name}",
            detector=chosen.config,
            detector_sources=chosen.sources,
            options=options_of(run),
            rejection=rejection_of(run),
            constraint=given.constraint,
            score=given.score,
        ),
        runtime=runtime,
    )
    chain.runs = [checkpoint_step(chain, found)]
    evaluation_steps(chain, benchmark)
    return chain
