"""The ``fo1`` command: what it understands, shows and answers.

- `command_line`: `main`: parse, set up logging, run the verb, turn an error into an exit status.
- `verbs`: the table of verbs: words, flags, examples, and where the function of each lies.
- `flags`: every flag, declared once.
- `help`: the texts of ``fo1 --help``, ``fo1 VERB --help`` and ``fo1 VERB RECIPE --help``.
- `listing`: ``fo1 list``, every name that the verbs understand.
- `plan`: ``fo1 plan``, the artifacts of a recipe as a table or as JSON.
- `suggestions`: "did you mean ...?" for a name that there is not.
"""
