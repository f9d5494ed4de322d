"""``fo1 plan``: each artifact of a recipe, its state, its command; as a table or as JSON.

The JSON is one object:

    recipe      name of the recipe, and its words
    artifacts   [{kind, name, fingerprint, status, path, command}], inputs before what reads them;
                command is null where the artifact is done
    notes       [text]
    budget      [{training, steps, batch_size, sources: [{source, share, available, drawn, epochs,
                tokens_each, tokens, nominal}]}]; available and epochs are null where unknown,
                nominal is true where numbers are published counts rather than what was built
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from jobs.chain.chain import Chain, Step
from jobs.chain.recipe_chain import recipe_chain
from jobs.command.flags import runtime_of
from jobs.command.verbs import shell_command
from jobs.plan_budget import budget_text, built_budgets, published_budgets
from jobs.recipes.catalogue import named_recipe
from pipelines.errors import SETTING_ERRORS

SOMETHING_TO_DO = 3
"""Exit status of ``plan --json`` when an artifact is not done."""


def plan(words: list[str], flags: Namespace) -> int:
    """Print the plan of a recipe; nothing is made.

    Returns:
        0; with ``--json`` `SOMETHING_TO_DO` when an artifact is not done.
    """
    recipe = named_recipe(words)
    try:
        chain = recipe_chain(recipe, runtime_of(flags))
    except SETTING_ERRORS:
        # A dataset that is not there, say: what the mix amounts to is known all the same.
        if not flags.json and (table := budget_text(published_budgets(recipe))):
            print(table)
        raise
    if flags.json:
        facts = plan_facts(chain, words)
        print(json.dumps(facts, indent=1))
        done = all(item["status"] == "done" for item in facts["artifacts"])
        return 0 if done else SOMETHING_TO_DO
    print(plan_table(chain, words))
    if table := budget_text(built_budgets(chain)):
        print(f"\n{table}")
    return 0


def plan_facts(chain: Chain, words: Sequence[str]) -> dict[str, Any]:
    """Return what the module's docstring describes."""
    return {
        "recipe": {"name": chain.recipe.name, "words": list(words)},
        "artifacts": [_facts(step, words) for step in chain.steps.values()],
        "notes": chain.notes,
        "budget": [budget.facts() for budget in built_budgets(chain)],
    }


def plan_table(chain: Chain, words: Sequence[str]) -> str:
    """Return one line an artifact: state, fingerprint, name, and the command that makes it."""
    lines = []
    for step in chain.steps.values():
        facts = _facts(step, words)
        what = f"{facts['kind']}/{facts['name']}"
        make = facts["command"] or ""
        lines.append(f"{facts['status']:<8} {facts['fingerprint']}  {what:<44} {make}".rstrip())
    lines += (f"note: {note}" for note in chain.notes)
    return "\n".join(lines)


def _facts(step: Step, words: Sequence[str]) -> dict[str, Any]:
    artifact, status = step.artifact, step.artifact.status()
    return {
        "kind": artifact.kind,
        "name": artifact.name,
        "fingerprint": artifact.fingerprint,
        "status": status,
        "path": artifact.path,
        "command": None if status == "done" else shell_command(step.verb, words),
    }
