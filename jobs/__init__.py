"""What people run: recipes, mixes, benchmarks, and the command. Wiring only."""
