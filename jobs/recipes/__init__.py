"""Recipes: what can be run, and with which arguments.

- `recipe`: `Recipe` and `Training`, what a recipe returns.
- `catalogue`: every named recipe; finds ``my_module:my_recipe`` too.
- `stages`: the recipes of the two stages of the region-token model.
- `opn`: the recipe of the proposal network, and the detector that a recipe names.
- `shared_arguments`: arguments that several recipes take, each declared once.
- `settings`: what an argument that is left out is at each size.
- `arguments`: what arguments a recipe takes, and strict parsing of ``name=value`` words.
- `argument_help`: the table of arguments that ``fo1 VERB RECIPE --help`` shows.
"""
