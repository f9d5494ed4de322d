"""Answers: decoded in batches, free or held to the grammar.

decoding       batched decoding, token by token
constraint     the grammar as a constraint on decoding
answer_tokens  what each token of a vocabulary may do in an answer
"""

from fo1_model.generation.decoding import (
    Answer,
    GenerationConfig,
    LogitsHook,
    generate,
    read_answer,
)

__all__ = ["Answer", "GenerationConfig", "LogitsHook", "generate", "read_answer"]
