"""From datasets to a trained, evaluated model: graphs, pure row functions, training, metrics, pages."""
